"""The paper's results and claims compared with ours."""

from __future__ import annotations

from dataclasses import dataclass

from pfcluster.experiments.paper import CLAIMS, Claim
from pfcluster.experiments.results import Results
from pfcluster.report.comparisons import not_comparable
from pfcluster.report.formatting import MISSING
from pfcluster.report.groups import RunGroup
from pfcluster.report.prediction_stats import (
    ALPHA,
    PredictionComparison,
    compare_predictions,
    correct_over_comparisons,
)
from pfcluster.report.statistics import Paired, Summary, holm_over_tests, paired

SUPPORTED, CONTRADICTED = "supported", "contradicted"
INCONCLUSIVE, NOT_RUN = "inconclusive", "not run"
UNCORRECTED = "only before correction"


def compare_interval(theirs: float | None, ours: Summary | None) -> str:
    """Whether our 95 % interval contains the paper's value, or is above or below it. A dash if the paper states no
    value, or if there is no interval because there is one seed or all values are equal.
    """
    if ours is None:
        return NOT_RUN
    if theirs is None or ours.low is None or ours.high is None:
        return MISSING
    return "above" if ours.low > theirs else "below" if ours.high < theirs else "contains"


def accuracy(group: RunGroup | None) -> Summary | None:
    """Test accuracy in %."""
    return None if group is None else group.summary("test", "accuracy", scale=100)


def accuracy_difference(treated: RunGroup | None, reference: RunGroup | None) -> Paired | None:
    """Difference of the test accuracies in percentage points over common seeds; None if there are none, or the groups
    cannot be compared.
    """
    if treated is None or reference is None or not_comparable(treated, reference):
        return None
    left, right = treated.by_seed("test", "accuracy"), reference.by_seed("test", "accuracy")
    seeds = sorted(left.keys() & right.keys())
    return paired([100 * left[seed] for seed in seeds], [100 * right[seed] for seed in seeds]) if seeds else None


def prediction_difference(treated: RunGroup | None, reference: RunGroup | None) -> PredictionComparison | None:
    """Per-sample comparison of two groups; None if predictions are missing or the groups cannot be compared."""
    if treated is None or reference is None or not_comparable(treated, reference):
        return None
    return compare_predictions(treated.runs, reference.runs)[0]


@dataclass(frozen=True)
class ClaimResult:
    """A claim tested on one dataset."""

    dataset: str
    claim: Claim
    difference: Paired | None
    holm_p: float | None
    """p of the paired t-test, corrected over all claims on all datasets."""
    outcome: str
    predictions: PredictionComparison | None
    """Bootstrap of the difference over seeds and samples, and McNemar's tests, corrected over all claims."""


def check_claims(results: Results) -> list[ClaimResult]:
    """Test every claim on every dataset with both of its cells planned.

    A claim is supported if the difference is positive with a corrected p below 0.05; "supported only before
    correction" if only the interval of its own test excludes 0; likewise contradicted for a negative difference; else
    inconclusive. Without a t-test, as for one seed or equal differences, the outcome is the reason; so it is for
    groups that cannot be compared.
    """
    cases = [
        (dataset, claim, results.group(dataset, claim.better), results.group(dataset, claim.worse))
        for claim in CLAIMS
        for dataset in results.record.datasets
        if results.is_planned(dataset, claim.better) and results.is_planned(dataset, claim.worse)
    ]
    differences = [accuracy_difference(better, worse) for _, _, better, worse in cases]
    p_values = holm_over_tests(differences)
    predictions = correct_over_comparisons([prediction_difference(better, worse) for _, _, better, worse in cases])
    claim_results = []
    for case, difference, holm_p, comparison in zip(cases, differences, p_values, predictions, strict=True):
        dataset, claim, better, worse = case
        reason = not_comparable(better, worse) if better is not None and worse is not None else ""
        outcome = f"not compared: {reason}" if reason else _outcome(difference, holm_p)
        claim_results.append(ClaimResult(dataset, claim, difference, holm_p, outcome, comparison))
    return claim_results


def _outcome(difference: Paired | None, holm_p: float | None) -> str:
    if difference is None:
        return NOT_RUN
    if difference.sign is None:
        return "one seed: no test" if difference.difference.n == 1 else difference.no_t_test
    if difference.sign == 0:
        return INCONCLUSIVE
    outcome = SUPPORTED if difference.sign > 0 else CONTRADICTED
    return outcome if holm_p is not None and holm_p < ALPHA else f"{outcome} {UNCORRECTED}"
