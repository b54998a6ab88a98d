"""Runs' answers to their test samples: the chance of other samples, and one group against another sample by sample.

Legend: s seeds, n test samples. Every figure is in %, every difference in percentage points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfcluster.report.resampling import McNemar, Resampled, bootstrap, bootstrap_difference, mcnemar
from pfcluster.report.results import ReportError, Run, read_run
from pfcluster.report.statistics import holm

ALPHA = 0.05


@dataclass(frozen=True)
class AnswersCompared:
    """The right answers of two groups on their common seeds and test samples."""

    seeds: tuple[int, ...]
    difference: Resampled
    """Accuracy of the treated less the reference's."""
    tests: tuple[McNemar, ...]
    """Of each seed's two networks."""
    holm_p: tuple[float, ...]
    """The tests' p, corrected for all that stand in one table; `correct_together` makes them those of several."""

    @property
    def told_apart(self) -> int:
        """Seeds whose two networks McNemar's corrected test tells apart."""
        return sum(p < ALPHA for p in self.holm_p)


def accuracy_interval(runs: Sequence[Run]) -> tuple[Resampled | None, str]:
    """Bootstrap over seeds and test samples of the accuracy of the runs that have one; or None and why.

    Every such run must have its answers: an interval over fewer seeds than the mean beside it would mislead.
    """
    scored = [run for run in runs if run.number("test", "accuracy") is not None]
    why = _without_answers(scored) or _other_samples(scored)
    if why or not scored:
        return None, why
    return bootstrap(100 * _correct(scored)), ""


def compare_answers(treated: Sequence[Run], reference: Sequence[Run]) -> tuple[AnswersCompared | None, str]:
    """Two groups' answers on the seeds that both have; or None and why. Their configs are the caller's to compare.

    `holm_p` is corrected for the seeds of this comparison.
    """
    pairs = _pairs(treated, reference)
    if not pairs:
        return None, "no seed in common"
    ours, theirs = [one for one, _ in pairs], [other for _, other in pairs]
    why = _without_answers([*ours, *theirs]) or _other_samples([*ours, *theirs])
    if why:
        return None, why
    left, right = _correct(ours), _correct(theirs)
    tests = tuple(mcnemar(a, b) for a, b in zip(left, right, strict=True))
    difference = bootstrap_difference(100 * left, 100 * right)
    return AnswersCompared(tuple(run.seed for run in ours), difference, tests, tuple(holm([t.p for t in tests]))), ""


def compare_folders(treated: Sequence[Path], reference: Sequence[Path]) -> AnswersCompared:
    """`compare_answers` of runs' folders, paired by the seeds in their result.json.

    Raises ReportError where a folder holds no run, or the two sides cannot be compared.
    """
    sides = [[read_run(folder, str(folder)) for folder in folders] for folders in (treated, reference)]
    found, why = compare_answers(*sides)
    if found is None:
        raise ReportError(f"these runs cannot be compared sample by sample: {why}")
    return found


def correct_together(compared: Sequence[AnswersCompared | None]) -> list[AnswersCompared | None]:
    """Holm's correction over every seed of every comparison of one table; what is None stays so."""
    corrected = iter(holm([test.p for one in compared if one for test in one.tests]))
    return [one and AnswersCompared(one.seeds, one.difference, one.tests, tuple(next(corrected) for _ in one.tests))
            for one in compared]  # fmt: skip


def differing_samples(treated: Sequence[Run], reference: Sequence[Run]) -> str:
    """How the test samples of runs that have answers differ: empty where they do not, or no two have any."""
    return _other_samples([run for run in (*treated, *reference) if run.answers])


def _pairs(treated: Sequence[Run], reference: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Runs of one seed that both have a test accuracy, in ascending seeds."""
    ours, theirs = (
        {run.seed: run for run in runs if run.number("test", "accuracy") is not None} for runs in (treated, reference)
    )
    return [(ours[seed], theirs[seed]) for seed in sorted({*ours} & {*theirs})]


def _without_answers(runs: Sequence[Run]) -> str:
    """Which runs lack their answers, and why, each reason once."""
    places: dict[str, list[str]] = {}
    for run in runs:
        if run.answers is None:
            places.setdefault(run.no_answers, []).append(f"{run.name} seed {run.seed}")
    return "; ".join(f"{', '.join(dict.fromkeys(names))}: {reason}" for reason, names in places.items())


def _other_samples(runs: Sequence[Run]) -> str:
    """The first difference between the test samples of runs with answers; empty where there is none."""
    for run in runs[1:]:
        first, other = runs[0].answers, run.answers
        assert first is not None
        assert other is not None
        names = f"{runs[0].name} seed {runs[0].seed} and {run.name} seed {run.seed}"
        if first.samples != other.samples or len(first.labels) != len(other.labels):
            return f"{names} were tested on different samples"
        if first.classes != other.classes:
            return f"{names} were tested on different classes"
        if not np.array_equal(first.labels, other.labels):
            return f"{names} were tested on different labels of the same samples"
    return ""


def _correct(runs: Sequence[Run]) -> NDArray[np.bool_]:
    """Whether each run has each sample right: s n."""
    found = [run.answers.correct for run in runs if run.answers]
    assert len(found) == len(runs)
    return np.stack(found)
