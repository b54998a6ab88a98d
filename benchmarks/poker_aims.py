"""Aims of the poker-face recipe, fixed before its results were known, and whether its runs meet them.

A figure is a number read from a run's result.json; aims are tested over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfcluster.evaluate.poker_faces import TRANSFER
from pfcluster.report.statistics import Paired, Summary, holm, paired, summarize
from pfcluster.runs.folder import read_result

START, RECIPE, NO_ADVERSARY = "mae-vit", "pf-vit", "no-adversary"
SIGNIFICANCE = 0.05
MARGIN = 0.005
"""Accuracy by which PF-ViT may be below MAE-ViT."""
PREFIXES = {"input": "input", "reconstruction": "rec", "poker face": "poker", "truth": "truth", TRANSFER: "transfer"}
"""Row of result.json -> prefix of its figures."""
METRICS = ("mse_inside", "mse_outside", "neutralised_rate", "emotion_agreement", "fid", "fid_neutral")
ADVERSARY_FIGURES = {
    "poker_mse_inside": -1,
    "poker_mse_outside": -1,
    "poker_neutralised_rate": 1,
    "accuracy": 1,
    "f_p_emotion_probe": -1,
    "f_p_identity_probe": 1,
}
"""Figures that may show an effect of the adversary; 1 where higher is better, -1 where lower is."""

Figures = Mapping[str, Mapping[int, float]]
"""Figure -> seed -> value."""


@dataclass(frozen=True)
class AimResult:
    """An aim, the measured value and whether it is met."""

    name: str
    criterion: str
    value: Summary
    p: float | None
    """Of the paired test; None if the aim needs no test."""
    met: bool
    note: str = ""


def run_figures(result: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a run by name, without those that its result lacks."""
    figures = {"accuracy": result["test"]["accuracy"]}
    rows = (result.get("poker") or {}).get("rows") or {}
    for row, prefix in PREFIXES.items():
        figures |= {f"{prefix}_{metric}": (rows.get(row) or {}).get(metric) for metric in METRICS}
    probes = result.get("probes") or {}
    for row, accuracies in (probes.get("rows") or {}).items():
        prefix = PREFIXES.get(row, row)
        figures[f"{prefix}_emotion_probe"] = accuracies["emotion"]
        figures[f"{prefix}_identity_probe"] = accuracies["identity"]
    figures |= {name: probes.get(name) for name in ("emotion_chance", "identity_chance")}
    return {name: float(value) for name, value in figures.items() if value is not None}


def read_figures(folder: Path, name: str, seeds: Sequence[int]) -> dict[str, dict[int, float]]:
    """The figures of a run over seeds. Raises FileNotFoundError if a seed has not finished on the test split."""
    figures: dict[str, dict[int, float]] = {}
    for seed in seeds:
        run = folder / name / f"seed-{seed}"
        result = read_result(run) or {}
        if result.get("status") != "finished" or result.get("measured_on") != "test":
            raise FileNotFoundError(f"{run} has not finished, or was not evaluated on the test split; train it first")
        for figure, value in run_figures(result).items():
            figures.setdefault(figure, {})[seed] = value
    return figures


def over_seeds(figures: Figures, name: str) -> Summary:
    """Mean, standard deviation and interval of a figure over seeds."""
    return summarize(list(figures[name].values()))


def compare(treated: Mapping[int, float], reference: Mapping[int, float]) -> Paired:
    """Paired comparison on the same seeds."""
    return paired([treated[seed] for seed in sorted(treated)], [reference[seed] for seed in sorted(treated)])


def evaluate_aims(
    recipe: Figures, no_adversary: Figures, equal_flops: Figures, equal_epochs: Figures | None
) -> list[AimResult]:
    """All aims, in the order of the report. `equal_flops` and `equal_epochs` are MAE-ViT's figures; without the latter
    its aim is left out.
    """
    controls = {"FLOPs": equal_flops} | ({} if equal_epochs is None else {"epochs": equal_epochs})
    return [
        *(_accuracy_aim(recipe, figures, name) for name, figures in controls.items()),
        *_poker_face_aims(recipe),
        _adversary_aim(recipe, no_adversary),
        _silence_aim(recipe),
    ]


def _accuracy_aim(recipe: Figures, control: Figures, budget: str) -> AimResult:
    """Whether PF-ViT is not inferior to MAE-ViT of the same budget by more than `MARGIN`."""
    accuracy = compare(recipe["accuracy"], control["accuracy"])
    p = non_inferiority_p(accuracy.difference)
    criterion = f"difference above -{100 * MARGIN:g} points, one-sided p < {SIGNIFICANCE}"
    points = _points(recipe["accuracy"], control["accuracy"])
    name = f"accuracy of MAE-ViT at equal {budget}"
    return AimResult(name, criterion, points, p, p is not None and p < SIGNIFICANCE)


def non_inferiority_p(difference: Summary) -> float | None:
    """One-sided p of Student's test of a mean difference of at most -`MARGIN`; None if it has no standard deviation."""
    from scipy import stats

    if not difference.std:
        return None
    t = (difference.mean + MARGIN) / (difference.std / math.sqrt(difference.n))
    return float(stats.t.sf(t, difference.n - 1))


def _poker_face_aims(recipe: Figures) -> list[AimResult]:
    """Aims for generated images."""
    removed = _ratio(recipe["poker_mse_inside"], recipe["input_mse_inside"])
    outside = _ratio(recipe["poker_mse_outside"], recipe["rec_mse_outside"])
    identity = _points(recipe["poker_identity_probe"], recipe["rec_identity_probe"])
    neutral, recognised = over_seeds(recipe, "poker_neutralised_rate"), over_seeds(recipe, "rec_emotion_agreement")
    return [
        AimResult("neutral to the judge", "neutralised_rate of the poker faces at least 85 %", neutral, None,
                  neutral.mean >= 0.85),
        AimResult("not by blur", "emotion_agreement of the reconstructions at least 85 %", recognised, None,
                  recognised.mean >= 0.85),
        AimResult("expression removed", "poker face's error inside the expression region at most 0.30 of the input's",
                  removed, None, removed.mean <= 0.30),
        AimResult("rest of the face kept", "error outside the region at most 1.10 of the reconstruction's", outside,
                  None, outside.mean <= 1.10),
        AimResult("identity kept", "linear identity probe of pixels within 2 points of the reconstruction's", identity,
                  None, abs(identity.mean) <= 2),
    ]  # fmt: skip


def _silence_aim(recipe: Figures) -> AimResult:
    """Whether a linear probe reads the emotion off f_p."""
    emotion = _points(recipe["f_p_emotion_probe"], recipe["emotion_chance"])
    return AimResult("no emotion in f_p", "linear probe at most 15 points above chance", emotion, None,
                     emotion.mean <= 15)  # fmt: skip


def _adversary_aim(recipe: Figures, no_adversary: Figures) -> AimResult:
    """Whether the run without the adversary is worse in one of `ADVERSARY_FIGURES`, after Holm's correction."""
    tests = {name: compare(no_adversary[name], recipe[name]) for name in ADVERSARY_FIGURES}
    corrected = holm([1.0 if test.t_p is None else test.t_p for test in tests.values()])
    p_values = dict(zip(tests, corrected, strict=True))
    significant = [name for name, p in p_values.items() if p < SIGNIFICANCE]
    worse = [name for name in significant if tests[name].difference.mean * ADVERSARY_FIGURES[name] < 0]
    better = [name for name in significant if name not in worse]
    note = f"without it worse in {', '.join(worse)}" if worse else "without it nothing is significantly worse"
    note += f"; better in {', '.join(better)}" if better else ""
    shown = min(worse or p_values, key=lambda name: p_values[name])
    criterion = "λ_adv = 0 is significantly worse in one of the figures (p < 0.05 after Holm's correction)"
    return AimResult("adversary needed", criterion, tests[shown].difference, p_values[shown], bool(worse), note)


def _ratio(values: Mapping[int, float], reference: Mapping[int, float]) -> Summary:
    """Ratio per seed."""
    return summarize([value / reference[seed] for seed, value in values.items()])


def _points(values: Mapping[int, float], reference: Mapping[int, float]) -> Summary:
    """Difference per seed, in percentage points."""
    return summarize([100 * (value - reference[seed]) for seed, value in values.items()])
