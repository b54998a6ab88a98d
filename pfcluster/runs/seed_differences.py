"""Whether runs differ only in their seed, so that their figures may be averaged: config, data, selection. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

from pfcluster.config.io import may_change_on_resume
from pfcluster.runs.run_inputs import DATA_FIELD

OUTPUT_FIELDS = ("output", "output_dir", "folder", "run_dir", "resume")
"""Top-level config fields that say where a run writes, not what it computes."""
FINAL_SPLIT = "evaluate.final_split"
NUMBERED = re.compile(r"((?<![A-Za-z0-9.])(?:seed[-_=]?|s)?\d+(?![\w.]))")
"""A number in a string that may be a seed."""


class RunRecord(Protocol):
    """What a run folder records of a run."""

    @property
    def values(self) -> Mapping[str, Any]:
        """Content of result.json."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Config values by dotted field name; empty if they are not recorded."""

    @property
    def seed(self) -> int:
        """The run's seed."""


def config_differences(a: RunRecord, b: RunRecord) -> dict[str, tuple[Any, Any]]:
    """Config fields in which two runs differ, apart from the seed: dotted name -> both values.

    Output folders, fields that may change on resume (but not the split of the final evaluation), strings that differ
    only by the run's seed (e.g. initial weights in `mae-seed1`), and paths of the same data or weights are ignored.
    Empty if either run has no config.
    """
    if not a.config or not b.config:
        return {}
    differences = {}
    for name in sorted({*a.config, *b.config}):
        left, right = a.config.get(name), b.config.get(name)
        ignored = name == "seed" or name.split(".")[0] in OUTPUT_FIELDS
        ignored |= may_change_on_resume(name) and name != FINAL_SPLIT
        ignored |= _inputs(a).get(name) is not None and _inputs(a).get(name) == _inputs(b).get(name)
        if not ignored and not _equal_but_for_seeds(left, right, (a.seed, b.seed)):
            differences[name] = (left, right)
    return differences


def _equal_but_for_seeds(left: Any, right: Any, seeds: tuple[int, int]) -> bool:
    """Whether two values are equal, or strings that differ only where each has its own run's seed: a number that is a
    word or follows "seed" or "s". Numbers that both strings share, as in a folder `study-1`, are not seeds.
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


def has_other_data(a: RunRecord, b: RunRecord) -> bool:
    """Whether two runs were trained on datasets of other names, classes or sizes, or have recorded other fingerprints
    of their data.
    """
    left, right = (_inputs(run).get(DATA_FIELD) for run in (a, b))
    return _dataset(a) != _dataset(b) or (left is not None and right is not None and left != right)


def selection_split(run: RunRecord) -> str:
    """The split that selected a run's checkpoint."""
    return str(run.values.get("selection_split") or "validation")


def _dataset(run: RunRecord) -> Mapping[str, Any]:
    return run.values.get("dataset") or {}


def _inputs(run: RunRecord) -> Mapping[str, Any]:
    """Fingerprints of a run's data and weights by config field."""
    return run.values.get("inputs") or {}
