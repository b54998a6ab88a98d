"""Group runs of one name and objective that differ only in their seed; a group is a row of the report's tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pfcluster.data.fingerprints import DATA_FIELD
from pfcluster.report.errors import Notice
from pfcluster.report.prediction_stats import accuracy_interval, sample_mismatch
from pfcluster.report.resampling import BootstrapInterval
from pfcluster.report.results import Run
from pfcluster.report.statistics import Summary, summarize

OUTPUT_FIELDS = ("output", "output_dir", "folder", "run_dir", "resume")
"""Top-level config fields that say where a run writes, not what it computes."""
MAX_FIELDS = 4
"""Number of differing config fields that a notice lists."""
NUMBERED = re.compile(r"((?<![A-Za-z0-9.])(?:seed[-_=]?|s)?\d+(?![\w.]))")
"""A number in a string that may be a seed."""


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
        splits = {_selection_split(run) for run in self.runs}
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
        """Dataset with its vote mode, classes and number of test samples; compared groups must agree in these."""
        return self.runs[0].dataset, self.classes, self.runs[0].number("test", "n")


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


def config_differences(a: Run, b: Run) -> dict[str, tuple[Any, Any]]:
    """Config fields in which two runs differ, apart from the seed: dotted name -> both values.

    Output folders, strings that differ only by the run's seed (e.g. initial weights in `mae-seed1`), and paths of the
    same data or weights are ignored.
    Empty if either run has no config.
    """
    if not a.config or not b.config:
        return {}
    differences = {}
    for name in sorted({*a.config, *b.config}):
        left, right = a.config.get(name), b.config.get(name)
        ignored = name == "seed" or name.split(".")[0] in OUTPUT_FIELDS
        ignored |= _inputs(a).get(name) is not None and _inputs(a).get(name) == _inputs(b).get(name)
        if not ignored and not _equal_but_for_seeds(left, right, (a.seed, b.seed)):
            differences[name] = (left, right)
    return differences


def _equal_but_for_seeds(left: Any, right: Any, seeds: tuple[int, int]) -> bool:
    """Whether two values are equal, or strings that differ only where each has its own run's seed: a number that is a
    word or follows "seed" or "s". Numbers that both strings share, as in a folder `study-1`, are no seeds.
    """
    if not (isinstance(left, str) and isinstance(right, str)):
        return bool(left == right)
    ours, theirs = (NUMBERED.split(value) for value in (left, right))
    return len(ours) == len(theirs) and all(
        one == other or (_seed_in(one), _seed_in(other)) == seeds for one, other in zip(ours, theirs, strict=True)
    )


def _seed_in(part: str) -> int | None:
    """The seed in a part of a string; None if it is none."""
    return int(part.lstrip("sed-_=")) if NUMBERED.fullmatch(part) else None


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
        elif _dataset(first) != _dataset(run) or _has_other_data(first, run):
            reasons.append(f"{pair} were trained on different data.")
        elif _selection_split(first) != _selection_split(run):
            reasons.append(f"{pair} selected their checkpoints on different splits.")
        elif mismatch := sample_mismatch([first], [run]):
            reasons.append(f"{mismatch}.")
    return " ".join(reasons) + (" Their mean is not meaningful: give them different names." if reasons else "")


def _listed(fields: Mapping[str, tuple[Any, Any]]) -> str:
    values = [f"{name} is {left!r} and {right!r}" for name, (left, right) in fields.items()]
    more = f"; and {len(values) - MAX_FIELDS} more" if len(values) > MAX_FIELDS else ""
    return "; ".join(values[:MAX_FIELDS]) + more


def _dataset(run: Run) -> Mapping[str, Any]:
    return run.values.get("dataset") or {}


def _inputs(run: Run) -> Mapping[str, Any]:
    """Fingerprints of a run's data and weights by config field."""
    return run.values.get("inputs") or {}


def _has_other_data(a: Run, b: Run) -> bool:
    """Whether two runs have recorded the fingerprints of their data, and these differ."""
    left, right = (_inputs(run).get(DATA_FIELD) for run in (a, b))
    return left is not None and right is not None and left != right


def _selection_split(run: Run) -> str:
    return str(run.values.get("selection_split") or "validation")
