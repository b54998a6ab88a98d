"""Statistics of per-sample predictions: bootstrap intervals over test samples, and comparisons of groups per sample.

Legend: s seeds, n test samples. Accuracies are in %, differences in percentage points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pfcluster.report.resampling import BootstrapInterval, McNemar, bootstrap, bootstrap_difference, mcnemar
from pfcluster.report.results import Run
from pfcluster.report.statistics import holm

ALPHA = 0.05


@dataclass(frozen=True)
class PredictionComparison:
    """Per-sample comparison of two groups on their common seeds and test samples."""

    seeds: tuple[int, ...]
    difference: BootstrapInterval
    """Accuracy of the treated group minus the reference's."""
    tests: tuple[McNemar, ...]
    """One per seed."""
    holm_p: tuple[float, ...]
    """Corrected p of `tests`: over the seeds of this comparison, or over a table (`correct_over_comparisons`)."""

    @property
    def n_significant(self) -> int:
        """Number of seeds for which McNemar's corrected p is below 0.05."""
        return sum(p < ALPHA for p in self.holm_p)


def accuracy_interval(runs: Sequence[Run]) -> tuple[BootstrapInterval | None, str]:
    """Bootstrap over seeds and test samples of the accuracy; or None and the reason.

    Uses the runs with a test accuracy. All of them must have predictions, so that the interval and the mean refer to
    the same seeds.
    """
    scored = [run for run in runs if run.number("test", "accuracy") is not None]
    reason = _missing_predictions(scored) or _sample_mismatch(scored)
    if reason or not scored:
        return None, reason
    return bootstrap(100 * _correct(scored)), ""


def compare_predictions(treated: Sequence[Run], reference: Sequence[Run]) -> tuple[PredictionComparison | None, str]:
    """Compare two groups' predictions on their common seeds; or None and the reason. Does not compare configs.

    `holm_p` is corrected for the seeds of this comparison.
    """
    pairs = _pairs(treated, reference)
    if not pairs:
        return None, "no seed in common"
    treated_runs, reference_runs = [one for one, _ in pairs], [other for _, other in pairs]
    reason = _missing_predictions([*treated_runs, *reference_runs]) or _sample_mismatch(
        [*treated_runs, *reference_runs]
    )
    if reason:
        return None, reason
    left, right = _correct(treated_runs), _correct(reference_runs)
    tests = tuple(mcnemar(a, b) for a, b in zip(left, right, strict=True))
    return (
        PredictionComparison(
            seeds=tuple(run.seed for run in treated_runs),
            difference=bootstrap_difference(100 * left, 100 * right),
            tests=tests,
            holm_p=tuple(holm([test.p for test in tests])),
        ),
        "",
    )


def correct_over_comparisons(
    comparisons: Sequence[PredictionComparison | None],
) -> list[PredictionComparison | None]:
    """Holm's correction over every seed of every comparison of one table; None entries are kept."""
    corrected = iter(holm([test.p for one in comparisons if one for test in one.tests]))
    return [one and replace(one, holm_p=tuple(next(corrected) for _ in one.tests)) for one in comparisons]


def sample_mismatch(treated: Sequence[Run], reference: Sequence[Run]) -> str:
    """The first difference between the test samples of runs with predictions; empty if there is none."""
    return _sample_mismatch([run for run in (*treated, *reference) if run.predictions])


def _pairs(treated: Sequence[Run], reference: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Runs of equal seed that both have a test accuracy, by ascending seed."""
    treated_by_seed, reference_by_seed = (
        {run.seed: run for run in runs if run.number("test", "accuracy") is not None} for runs in (treated, reference)
    )
    common = sorted({*treated_by_seed} & {*reference_by_seed})
    return [(treated_by_seed[seed], reference_by_seed[seed]) for seed in common]


def _missing_predictions(runs: Sequence[Run]) -> str:
    """Runs without predictions, grouped by reason; empty if there are none."""
    names_by_reason: dict[str, list[str]] = {}
    for run in runs:
        if run.predictions is None:
            names_by_reason.setdefault(run.no_predictions, []).append(f"{run.name} seed {run.seed}")
    return "; ".join(f"{', '.join(dict.fromkeys(names))}: {reason}" for reason, names in names_by_reason.items())


def _sample_mismatch(runs: Sequence[Run]) -> str:
    for run in runs[1:]:
        first, other = runs[0].predictions, run.predictions
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
    """Correctness of every run on every sample: s n."""
    rows = [run.predictions.correct for run in runs if run.predictions]
    assert len(rows) == len(runs)
    return np.stack(rows)
