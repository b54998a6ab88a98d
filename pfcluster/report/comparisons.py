"""Comparisons of groups with a baseline on common seeds and test samples, and sentences that state their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pfcluster.report.errors import ReportError
from pfcluster.report.formatting import count, interval, number, p_text, signed
from pfcluster.report.groups import RunGroup
from pfcluster.report.prediction_stats import (
    ALPHA,
    PredictionComparison,
    compare_predictions,
    correct_over_comparisons,
    sample_mismatch,
)
from pfcluster.report.statistics import Paired, holm_over_tests, paired


@dataclass(frozen=True)
class Comparison:
    """A group minus the baseline on common seeds: accuracies in percentage points, macro F1 x 100."""

    group: RunGroup
    baseline: RunGroup
    seeds: tuple[int, ...]
    accuracy: Paired | None = None
    macro_f1: Paired | None = None
    mean_class: Paired | None = None
    holm_p: float | None = None
    """p of the paired t-test on accuracy, corrected for the number of comparisons in the study."""
    not_compared: str = ""
    """Reason why the groups cannot be compared; empty if they can."""
    predictions: PredictionComparison | None = None
    """Per-sample comparison; McNemar's p are corrected for every seed of every comparison in the study."""
    no_predictions: str = ""
    """Reason why `predictions` is None."""


def choose_baseline(groups: Sequence[RunGroup], name: str | None) -> RunGroup | None:
    """The group with this name or label; for None the first one whose name contains "scratch", else the first one.

    Only groups with a test accuracy are considered; None if there are none. Raises ReportError for an unknown name.
    """
    candidates = [group for group in groups if group.classifies]
    if name is not None:
        for group in candidates:
            if name in (group.label, group.name):
                return group
        labels = ", ".join(group.label for group in candidates) or "none"
        raise ReportError(f"the baseline {name!r} has no finished run with a test accuracy; groups that do: {labels}")
    scratch = [group for group in candidates if "scratch" in group.name.lower()]
    return next(iter(scratch or candidates), None)


def compare(groups: Sequence[RunGroup], baseline: RunGroup | None) -> list[Comparison]:
    """Compare every other classification group with the baseline; Holm's correction covers all comparisons."""
    if baseline is None:
        return []
    return _corrected([_compare(group, baseline) for group in groups if group.classifies and group is not baseline])


def compare_with_each(group: RunGroup, baselines: Sequence[RunGroup]) -> list[Comparison]:
    """Compare one classification group with several baselines; Holm's correction covers these comparisons."""
    return _corrected([_compare(group, baseline) for baseline in baselines])


def _corrected(comparisons: list[Comparison]) -> list[Comparison]:
    p_values = holm_over_tests([one.accuracy for one in comparisons])
    predictions = correct_over_comparisons([one.predictions for one in comparisons])
    return [
        replace(one, holm_p=p, predictions=of_samples)
        for one, p, of_samples in zip(comparisons, p_values, predictions, strict=True)
    ]


def _compare(group: RunGroup, baseline: RunGroup) -> Comparison:
    seeds = _common_seeds(group, baseline)
    reason = not_comparable(group, baseline)
    if reason:
        return Comparison(group, baseline, seeds, not_compared=reason)
    predictions, no_predictions = compare_predictions(group.runs, baseline.runs)
    return Comparison(
        group,
        baseline,
        seeds,
        accuracy=_differences(group, baseline, "accuracy"),
        macro_f1=_differences(group, baseline, "macro_f1"),
        mean_class=_differences(group, baseline, "mean_class_accuracy"),
        predictions=predictions,
        no_predictions=no_predictions,
    )


def _common_seeds(group: RunGroup, baseline: RunGroup) -> tuple[int, ...]:
    return tuple(sorted({*group.by_seed("test", "accuracy")} & {*baseline.by_seed("test", "accuracy")}))


def not_comparable(group: RunGroup, baseline: RunGroup) -> str:
    """Reason why two groups cannot be compared; empty if they can."""
    if group.test_set() != baseline.test_set():
        return "evaluated on a different test set"
    if not (group.comparable and baseline.comparable):
        return "runs of one name differ in more than the seed"
    if group.selection_split != baseline.selection_split:
        return f"its checkpoint was selected on {group.selection_split}, the baseline's on {baseline.selection_split}"
    if not _common_seeds(group, baseline):
        return "no seed in common"
    return sample_mismatch(group.runs, baseline.runs)


def _differences(group: RunGroup, baseline: RunGroup, metric: str) -> Paired | None:
    treated, reference = group.by_seed("test", metric), baseline.by_seed("test", metric)
    common = sorted({*treated} & {*reference})
    return paired([100 * treated[s] for s in common], [100 * reference[s] for s in common]) if common else None


def comparison_sentence(comparison: Comparison) -> str:
    """Result of the comparison with the baseline, with intervals over seeds and over seeds and samples."""
    name, base, test = comparison.group.label, comparison.baseline.label, comparison.accuracy
    if test is None:
        return f"{name} cannot be compared with {base}: {comparison.not_compared}."
    caveat, addition = _sample_evidence(comparison.predictions, test) if comparison.predictions else ("", "")
    sentence = difference_sentence(name, base, test, comparison.holm_p, digits=2, unit=" points", caveat=caveat)
    return f"{sentence} {addition}".rstrip()


def _sample_evidence(predictions: PredictionComparison, test: Paired) -> tuple[str, str]:
    """How the interval over seeds and samples affects a difference over seeds: a caveat, or an additional sentence.

    A difference is stated as one only if both intervals exclude 0. McNemar's test compares two trained networks, not
    two training methods, and is therefore reported for single seeds only.
    """
    difference = predictions.difference
    samples = f"{count(difference.samples)} test samples"
    bounds = f"95 % interval {interval(difference, 2, sign=True)}"
    if test.difference.n == 1:
        return "", (
            f"On {samples} the {bounds} (over samples only), McNemar's {p_text(predictions.tests[0].p)}; "
            "this compares two trained networks, not two training methods."
        )
    if not test.sign:
        reason = "the interval over seeds contains 0" if test.sign == 0 else "there is no interval over seeds"
        note = f", not conclusive because {reason}" if difference.sign else ""
        return "", f"Over seeds and {samples}: {bounds}{note}."
    if difference.sign == test.sign:
        return "", f"The interval over seeds and {samples} also excludes 0: {bounds}."
    return f"; over seeds and {samples}, {bounds}, so the difference may not hold on other samples", ""


def difference_sentence(
    name: str,
    base: str,
    test: Paired,
    holm_p: float | None,
    *,
    digits: int,
    unit: str = "",
    better: int = 1,
    caveat: str = "",
) -> str:
    """Result of a paired test: whether `name` is better or worse than `base`.

    better: +1 if larger is better, else -1. caveat: appended to a significant difference.
    """
    change = f"{signed(test.difference.mean, digits)}{unit}"
    if test.no_t_test:
        common = "the one common seed" if test.difference.n == 1 else f"each of {test.difference.n} seeds"
        return f"{name} scores {change} against {base} on {common}; {test.no_t_test}."
    seeds = f"{test.difference.n} seeds"
    bounds = f"95 % interval {interval(test.difference, digits, sign=True)}, {p_text(test.t_p)}"
    if test.sign == 0:
        return (
            f"No significant difference between {name} and {base}: {change} over {seeds} ({bounds}). "
            f"Smallest detectable difference at this variance: {number(test.min_detectable, digits)}{unit}."
        )
    side, caveats = "better" if test.sign == better else "worse", _holm_caveat(test.t_p, holm_p) + caveat
    verb = f"scores {side}" if caveats else f"is {side}"
    return f"{name} {verb} than {base}: {change} over {seeds} ({bounds}){caveats}."


def _holm_caveat(uncorrected: float | None, holm_p: float | None) -> str:
    """A caveat if a difference is significant only before Holm's correction; else empty."""
    if uncorrected is None or holm_p is None or uncorrected >= ALPHA or holm_p < ALPHA:
        return ""
    return f"; not significant after correction for the number of comparisons ({p_text(holm_p)})"
