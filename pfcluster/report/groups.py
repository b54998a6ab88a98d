"""Runs of one name that differ only in their seed form a group: a row of the report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pfcluster.report.prediction_stats import accuracy_interval, differing_samples
from pfcluster.report.resampling import Resampled
from pfcluster.report.results import Notice, Run
from pfcluster.report.statistics import Summary, summarize

OUTPUT_FIELDS = ("output", "output_dir", "folder", "run_dir", "resume")
"""Top-level fields of a config that say where a run writes, not what it computes."""


@dataclass(frozen=True)
class Group:
    """Runs of one name and objective, one for each seed, in ascending seeds."""

    label: str
    """The runs' name; with the objective in brackets where one name stands for two objectives."""
    name: str
    objective: str
    runs: tuple[Run, ...]
    comparable: bool
    """False where the runs differ in more than their seed."""

    @property
    def title(self) -> str:
        """The label, marked where its mean is not one of comparable runs."""
        return self.label if self.comparable else f"{self.label} ⚠"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.runs[0].classes

    @property
    def classifies(self) -> bool:
        """Whether any run has a test accuracy."""
        return any(run.number("test", "accuracy") is not None for run in self.runs)

    @property
    def chosen_on(self) -> str:
        """The split that chose the checkpoints; "test" as soon as one run's was."""
        splits = {_chosen(run) for run in self.runs}
        return "test" if "test" in splits else min(splits)

    @property
    def has_poker_faces(self) -> bool:
        """Whether any run judged poker faces."""
        return any((run.values.get("poker") or {}).get("rows") for run in self.runs)

    def by_seed(self, *path: str) -> dict[int, float]:
        """Seed -> the number at this path of result.json, for the runs that have it."""
        found = {run.seed: run.number(*path) for run in self.runs}
        return {seed: value for seed, value in found.items() if value is not None}

    def summary(self, *path: str, scale: float = 1.0) -> Summary | None:
        """Mean and spread over seeds of scale x the number at this path; None where no run has it."""
        values = [scale * value for value in self.by_seed(*path).values()]
        return summarize(values) if values else None

    @cached_property
    def over_samples(self) -> tuple[Resampled | None, str]:
        """Bootstrap over seeds and test samples of the test accuracy in %; or None and why."""
        return accuracy_interval(self.runs)

    def test_set(self) -> tuple[Any, ...]:
        """What two groups must share to be compared: the dataset with the mode of its votes, its classes, the number of
        test samples.
        """
        return self.runs[0].dataset, self.classes, self.runs[0].number("test", "n")


def group_runs(runs: Iterable[Run]) -> tuple[list[Group], list[Notice]]:
    """Groups in the order of their names, and what keeps runs of one name from being compared."""
    by_key: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        by_key.setdefault((run.name, run.objective), []).append(run)
    groups, notices = [], []
    for name, objective in sorted(by_key):
        objectives = [key[1] for key in by_key if key[0] == name]
        label = name if len(objectives) == 1 else f"{name} ({objective})"
        if len(objectives) > 1 and objective == min(objectives):
            text = f"{name} names runs of several objectives ({', '.join(sorted(objectives))}); give each its own name."
            notices.append(Notice("one name, two objectives", text))
        kept, repeated = _one_per_seed(by_key[name, objective])
        mismatch = _mismatch(kept)
        groups.append(Group(label, name, objective, tuple(kept), comparable=not mismatch))
        notices += [
            *_repeated_notices(label, repeated),
            *([Notice("runs not comparable", f"{label}: {mismatch}")] if mismatch else []),
        ]
    return groups, notices


def config_differences(a: Run, b: Run) -> dict[str, tuple[Any, Any]]:
    """Fields in which two runs' configs differ beyond the seed: dotted name -> both values.

    Left aside: the seed, where the run writes, and paths that differ only by the run's own seed (the weights that
    seed 1 starts from lie in `mae-seed1`). Runs without a config are taken to agree.
    """
    if not a.config or not b.config:
        return {}
    found = {}
    for name in sorted({*a.config, *b.config}):
        left, right = a.config.get(name), b.config.get(name)
        aside = name == "seed" or name.split(".")[0] in OUTPUT_FIELDS
        if not aside and left != right and _without_seed(left, a.seed) != _without_seed(right, b.seed):
            found[name] = (left, right)
    return found


def _without_seed(value: Any, seed: int) -> Any:
    """A text with the seed, where it stands as a word of its own or after "seed" or "s", blanked."""
    return (
        re.sub(rf"(?<![A-Za-z0-9.])(seed[-_=]?|s)?0*{seed}(?![\w.])", "{seed}", value)
        if isinstance(value, str)
        else value
    )


def _one_per_seed(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The first run of each seed in the order of folders, by ascending seed; and the others."""
    first: dict[int, Run] = {}
    repeated = []
    for run in runs:
        if first.setdefault(run.seed, run) is not run:
            repeated.append(run)
    return [first[seed] for seed in sorted(first)], repeated


def _repeated_notices(label: str, repeated: Sequence[Run]) -> list[Notice]:
    return [
        Notice("repeated seed", f"{label}: {run.place} repeats seed {run.seed}; it is listed, but no mean counts it.")
        for run in repeated
    ]


def _mismatch(runs: Sequence[Run]) -> str:
    """Why the runs of a group cannot be averaged; empty where they can."""
    first, reasons = runs[0], []
    for run in runs[1:]:
        fields = config_differences(first, run)
        shown = "; ".join(f"{name} is {left!r} and {right!r}" for name, (left, right) in list(fields.items())[:4])
        more = f"; and {len(fields) - 4} more" if len(fields) > 4 else ""
        if fields:
            reasons.append(f"{first.place} and {run.place} differ in more than the seed: {shown}{more}.")
        elif _data(first) != _data(run):
            reasons.append(f"{first.place} and {run.place} were trained on different data.")
        elif _chosen(first) != _chosen(run):
            reasons.append(f"{first.place} and {run.place} chose their checkpoints on different splits.")
        elif differing_samples([first], [run]):
            reasons.append(f"{differing_samples([first], [run])}.")
    return " ".join(reasons) + (" Their mean is no result: give them different names." if reasons else "")


def _data(run: Run) -> Mapping[str, Any]:
    return run.values.get("dataset") or {}


def _chosen(run: Run) -> str:
    return str(run.values.get("chosen_on") or "validation")
