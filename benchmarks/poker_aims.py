"""The aims of PF-MAG's recipe, set before it was known whether they can be met, and what its runs say of each.

A figure is read from result files, by seed; an aim is judged over seeds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfcluster.report.statistics import Paired, Summary, holm, paired, summarize

OURS, WITHOUT, CLASSIFIER = "pf-vit", "no-adversary", "mae-vit"
CHANCE_OF_LUCK = 0.05
"""p below which two runs differ; for the poker face against the reconstruction a tenth of 0.1 was asked for."""
STRICT = 0.01
ROWS = {"input": "input", "reconstruction": "rec", "poker face": "poker", "truth": "truth"}
BETTER = {
    "poker_region": -1,
    "poker_mse_outside": -1,
    "poker_neutralised_rate": 1,
    "accuracy": 1,
    "f_p_emotion": -1,
    "f_p_people": 1,
}
"""Figures by which an adversary may be needed, and which way is better."""

Figures = Mapping[str, Mapping[int, float]]
"""Figure -> seed -> value."""


@dataclass(frozen=True)
class Judged:
    """An aim and what came of it."""

    name: str
    wanted: str
    value: Summary
    p: float | None
    """Of the paired test, where the aim asks for one."""
    met: bool
    note: str = ""


def figures_of(result: Mapping[str, Any]) -> dict[str, float]:
    """What is compared of one run, by name; what it has not got is left out."""
    found = {"accuracy": result["test"]["accuracy"]}
    for row, short in ROWS.items():
        cells = ((result.get("poker") or {}).get("rows") or {}).get(row) or {}
        for column, name in (("mse_inside", "region"), ("mse_outside", "outside")):
            found[f"{short}_{name}"] = cells.get(column)
        for column in ("neutralised_rate", "emotion_agreement"):
            found[f"{short}_{column}"] = cells.get(column)
    probes = result.get("probes") or {}
    for row, cells in (probes.get("rows") or {}).items():
        short = ROWS.get(row, row)
        found |= {f"{short}_emotion": cells["emotion"], f"{short}_people": cells["identity"]}
    found |= {"emotion_chance": probes.get("emotion_chance"), "people_chance": probes.get("identity_chance")}
    return {name: float(value) for name, value in found.items() if value is not None}


def read(folder: Path, name: str, seeds: Sequence[int]) -> dict[str, dict[int, float]]:
    """The figures of a run's seeds. Raises FileNotFoundError for one that has not finished."""
    found: dict[str, dict[int, float]] = {}
    for seed in seeds:
        result = json.loads((folder / name / f"seed-{seed}" / "result.json").read_text())
        if result["status"] != "finished" or result["measured_on"] != "test":
            raise FileNotFoundError(f"{folder / name / f'seed-{seed}'} is not finished, or not measured on test")
        for figure, value in figures_of(result).items():
            found.setdefault(figure, {})[seed] = value
    return found


def summary(figures: Figures, name: str) -> Summary:
    """Mean, standard deviation and interval over seeds."""
    return summarize(list(figures[name].values()))


def difference(treated: Mapping[int, float], reference: Mapping[int, float]) -> Paired:
    """On the same seeds."""
    return paired([treated[seed] for seed in sorted(treated)], [reference[seed] for seed in sorted(treated)])


def judge(ours: Figures, without: Figures, classifier: Figures) -> list[Judged]:
    """Every aim."""

    def ratio(name: str, other: str) -> Summary:
        return summarize([value / ours[other][seed] for seed, value in ours[name].items()])

    removed, outside = ratio("poker_region", "input_region"), ratio("poker_mse_outside", "rec_mse_outside")
    nearer = difference(ours["poker_region"], ours["rec_region"])
    people = difference(ours["poker_people"], ours["rec_people"])
    accuracy = difference(ours["accuracy"], classifier["accuracy"])
    told = summarize([100 * (value - ours["emotion_chance"][seed]) for seed, value in ours["f_p_emotion"].items()])
    kept = summarize([value / classifier["f_people"][seed] for seed, value in ours["f_p_people"].items()])
    calm, clear = summary(ours, "poker_neutralised_rate"), summary(ours, "rec_emotion_agreement")
    worse = accuracy.difference.mean < 0 and accuracy.t_p is not None and accuracy.t_p < CHANCE_OF_LUCK
    below = nearer.difference.mean < 0 and nearer.t_p is not None and nearer.t_p < STRICT
    return [
        Judged("expression removed", "poker face's error in the region at most 0.35 of the input's", removed, None,
               removed.mean <= 0.35),
        Judged("nearer than the reconstruction", "error in the region below the reconstruction's, p < 0.01",
               nearer.difference, nearer.t_p, below),
        Judged("the rest kept", "error outside at most 1.10 of the reconstruction's", outside, None,
               outside.mean <= 1.10),
        Judged("person kept", "linear probe of pixels within 3 points of the reconstruction's",
               summarize([100 * (value - ours["rec_people"][seed]) for seed, value in ours["poker_people"].items()]),
               people.t_p, abs(people.difference.mean) <= 0.03),
        Judged("neutral to a judge", "at least 75 % of faces with an expression", calm, None, calm.mean >= 0.75),
        Judged("not by blur", "the judge names the emotion of at least 70 % of the reconstructions", clear, None,
               clear.mean >= 0.70),
        Judged("recognition", "accuracy not below MAE-ViT's at the same compute (not lower with p < 0.05)",
               accuracy.difference, accuracy.t_p, not worse),
        Judged("no emotion in f_p", "linear probe at most 15 points above chance", told, None, told.mean <= 15),
        Judged("person in f_p", "linear probe at least 0.95 of that on MAE-ViT's tokens", kept, None,
               kept.mean >= 0.95),
        _needed(ours, without),
    ]  # fmt: skip


def _needed(ours: Figures, without: Figures) -> Judged:
    """Whether the adversary does anything: worse without it in one of the figures, after Holm's correction."""
    tests = {name: difference(without[name], ours[name]) for name in BETTER}
    p_values = holm([1.0 if test.t_p is None else test.t_p for test in tests.values()])
    corrected = dict(zip(tests, p_values, strict=True))
    told = [name for name, p in corrected.items() if p < CHANCE_OF_LUCK]
    lost = [name for name in told if tests[name].difference.mean * BETTER[name] < 0]
    won = [name for name in told if name not in lost]
    words = [f"without it worse in {', '.join(lost)}"] if lost else ["without it nothing is measurably worse"]
    words += [f"better in {', '.join(won)}"] if won else []
    first = min(lost or corrected, key=lambda name: corrected[name])
    wanted = "λ_adv = 0 is measurably worse in one of the figures (p < 0.05 after Holm's correction)"
    return Judged("adversary needed", wanted, tests[first].difference, corrected[first], bool(lost), "; ".join(words))
