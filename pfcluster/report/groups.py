"""Group runs of one name and objective that differ only in their seed; a group is a row of the report's tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pfcluster.report.errors import Notice
from pfcluster.report.prediction_stats import accuracy_interval, sample_mismatch
from pfcluster.report.resampling import BootstrapInterval
from pfcluster.report.results import Run
from pfcluster.report.statistics import Summary, summarize
from pfcluster.runs.seed_differences import config_differences, has_other_data, selection_split

MAX_FIELDS = 4
"""Number of differing config fields that a notice lists."""


@dataclass(frozen=True)
class RunGroup:
    """Runs of one name and objective, one per seed, by ascending seed."""

    label: str
    """The runs' name, followed by the objective in brackets if several objectives share the name."""
    name: str
    objective: str
    runs: tuple[Run, ...]
    comparable: bool
    """False if the runs differ in more than their seed."""

    @property
    def title(self) -> str:
        """The label, marked if the runs are not comparable."""
        return self.label if self.comparable else f"{self.label} ⚠"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.runs[0].classes

    @property
    def classifies(self) -> bool:
        """Whether any run has a test accuracy."""
        return any(run.number("test", "accuracy") is not None for run in self.runs)

    @property
    def selection_split(self) -> str:
        """The split that selected the checkpoints; "test" if it did so for any run."""
        splits = {selection_split(run) for run in self.runs}
        return "test" if "test" in splits else min(splits)

    @property
    def has_poker_faces(self) -> bool:
        """Whether any run evaluated poker faces."""
        return any((run.values.get("poker") or {}).get("rows") for run in self.runs)

    def by_seed(self, *path: str) -> dict[int, float]:
        """Seed -> the number at this path of result.json, for the runs that have it."""
        values = {run.seed: run.number(*path) for run in self.runs}
        return {seed: value for seed, value in values.items() if value is not None}

    def summary(self, *path: str, scale: float = 1.0) -> Summary | None:
        """Statistics over seeds of scale x the number at this path; None if no run has it."""
        values = [scale * value for value in self.by_seed(*path).values()]
        return summarize(values) if values else None

    @cached_property
    def bootstrap_accuracy(self) -> tuple[BootstrapInterval | None, str]:
        """Bootstrap over seeds and test samples of the test accuracy in %; or None and the reason."""
        return accuracy_interval(self.runs)

    def test_set(self) -> tuple[Any, ...]:
        """Dataset with its vote mode, classes and numbers of test samples; compared groups must agree in these."""
        return self.runs[0].dataset, self.classes, frozenset(self.by_seed("test", "n").values())


def group_runs(runs: Iterable[Run]) -> tuple[list[RunGroup], list[Notice]]:
    """Groups sorted by name, and warnings about runs of one name that cannot be averaged."""
    by_key: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        by_key.setdefault((run.name, run.objective), []).append(run)
    groups, notices = [], []
    for name, objective in sorted(by_key):
        objectives = [key[1] for key in by_key if key[0] == name]
        label = name if len(objectives) == 1 else f"{name} ({objective})"
        if len(objectives) > 1 and objective == min(objectives):
            text = f"{name} names runs of several objectives ({', '.join(sorted(objectives))}); rename one of them."
            notices.append(Notice("one name, two objectives", text))
        kept, repeated = _one_per_seed(by_key[name, objective])
        mismatch = _mismatch(kept)
        groups.append(RunGroup(label, name, objective, tuple(kept), comparable=not mismatch))
        notices += [
            *_repeated_notices(label, repeated),
            *([Notice("runs not comparable", f"{label}: {mismatch}")] if mismatch else []),
        ]
    return groups, notices


def _one_per_seed(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The first run of each seed in folder order, by ascending seed; and the remaining runs."""
    first: dict[int, Run] = {}
    repeated = []
    for run in runs:
        if first.setdefault(run.seed, run) is not run:
            repeated.append(run)
    return [first[seed] for seed in sorted(first)], repeated


def _repeated_notices(label: str, repeated: Sequence[Run]) -> list[Notice]:
    return [
        Notice("repeated seed", f"{label}: {run.relative_path} repeats seed {run.seed}; excluded from all means.")
        for run in repeated
    ]


def _mismatch(runs: Sequence[Run]) -> str:
    """Why the runs of a group cannot be averaged; empty if they can."""
    first, reasons = runs[0], []
    for run in runs[1:]:
        fields = config_differences(first, run)
        pair = f"{first.relative_path} and {run.relative_path}"
        if fields:
            reasons.append(f"{pair} differ in more than the seed: {_listed(fields)}.")
        elif has_other_data(first, run):
            reasons.append(f"{pair} were trained on different data.")
        elif selection_split(first) != selection_split(run):
            reasons.append(f"{pair} selected their checkpoints on different splits.")
        elif len({run.number("test", "n") for run in (first, run)} - {None}) > 1:
            reasons.append(f"{pair} were tested on different numbers of samples.")
        elif mismatch := sample_mismatch([first], [run]):
            reasons.append(f"{mismatch}.")
    return " ".join(reasons) + (" Their mean is not meaningful: give them different names." if reasons else "")


def _listed(fields: Mapping[str, tuple[Any, Any]]) -> str:
    values = [f"{name} is {left!r} and {right!r}" for name, (left, right) in fields.items()]
    more = f"; and {len(values) - MAX_FIELDS} more" if len(values) > MAX_FIELDS else ""
    return "; ".join(values[:MAX_FIELDS]) + more
