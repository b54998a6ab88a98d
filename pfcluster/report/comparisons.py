"""What a study says, computed and put into sentences: groups against a baseline, poker faces against the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pfcluster.report.formatting import count, interval, mean_std, number, p_text, signed
from pfcluster.report.groups import RunGroup
from pfcluster.report.prediction_stats import PredictionComparison, compare_predictions, correct_over_comparisons, sample_mismatch
from pfcluster.report.errors import ReportError
from pfcluster.report.statistics import Paired, holm, paired

POKER_ROWS = ("input", "reconstruction", "poker face", "truth")


@dataclass(frozen=True)
class Measure:
    """One figure of the poker-face table."""

    key: str
    title: str
    digits: int
    better: Literal[1, -1]
    """+1 where more is nearer to the truth, -1 where less is."""


NEUTRALITY = Measure("neutral_rate", "neutral_rate", 3, 1)
CALMED = Measure("neutralised_rate", "neutral, of faces with an expression", 3, 1)
RECOGNISED = Measure("emotion_agreement", "the input's emotion recognised", 3, 1)
IDENTITY = Measure("identity_cosine", "identity kept", 3, 1)
PSNR = Measure("psnr", "PSNR (dB)", 2, 1)
SSIM = Measure("ssim", "SSIM", 3, 1)
REGION_ERROR = Measure("mse_inside", "error in the expression's region", 4, -1)
OUTSIDE_ERROR = Measure("mse_outside", "error outside it", 4, -1)
MEASURES = (NEUTRALITY, CALMED, RECOGNISED, IDENTITY, PSNR, SSIM, REGION_ERROR, OUTSIDE_ERROR)


@dataclass(frozen=True)
class Comparison:
    """A group's test accuracy, mean class accuracy (both in percentage points) and macro F1 (x 100) less the
    baseline's, on the seeds both have.
    """

    group: RunGroup
    baseline: RunGroup
    seeds: tuple[int, ...]
    accuracy: Paired | None = None
    macro_f1: Paired | None = None
    mean_class: Paired | None = None
    holm_p: float | None = None
    """p of the paired t-test on accuracy, corrected for the number of comparisons in the study."""
    why_not: str = ""
    """Why nothing was compared; empty where something was."""
    answers: PredictionComparison | None = None
    """Sample by sample; McNemar's p are corrected for every seed of every comparison in the study."""
    no_predictions: str = ""
    """Why nothing was compared sample by sample."""


def choose_baseline(groups: Sequence[RunGroup], wanted: str | None) -> RunGroup | None:
    """The group wanted by name; else the first named "scratch..." or "...scratch"; else the first. Names are sorted.

    Only groups with a test accuracy count; None where there are none. Raises ReportError for an unknown name.
    """
    candidates = [group for group in groups if group.classifies]
    if wanted is not None:
        for group in candidates:
            if wanted in (group.label, group.name):
                return group
        known = ", ".join(group.label for group in candidates) or "none"
        raise ReportError(f"the baseline {wanted!r} has no finished run with a test accuracy; groups that do: {known}")
    scratch = [group for group in candidates if "scratch" in group.name.lower()]
    return next(iter(scratch or candidates), None)


def compare(groups: Sequence[RunGroup], baseline: RunGroup | None) -> list[Comparison]:
    """Every other classification group against the baseline, with Holm's correction over them all."""
    if baseline is None:
        return []
    found = [_compare(group, baseline) for group in groups if group.classifies and group is not baseline]
    tested = [index for index, one in enumerate(found) if one.accuracy and one.accuracy.t_p is not None]
    corrected = holm([found[index].accuracy.t_p or 0.0 for index in tested])  # type: ignore[union-attr]
    for index, p in zip(tested, corrected, strict=True):
        found[index] = replace(found[index], holm_p=p)
    together = correct_over_comparisons([one.answers for one in found])
    return [replace(one, answers=answers) for one, answers in zip(found, together, strict=True)]


def _compare(group: RunGroup, baseline: RunGroup) -> Comparison:
    seeds = tuple(sorted({*group.by_seed("test", "accuracy")} & {*baseline.by_seed("test", "accuracy")}))
    why_not = ""
    if group.test_set() != baseline.test_set():
        why_not = "tested on another test set"
    elif not (group.comparable and baseline.comparable):
        why_not = "runs of one name differ in more than the seed"
    elif group.chosen_on != baseline.chosen_on:
        why_not = f"its checkpoint was chosen on {group.chosen_on}, the baseline's on {baseline.chosen_on}"
    elif not seeds:
        why_not = "no seed in common"
    else:
        why_not = sample_mismatch(group.runs, baseline.runs)
    if why_not:
        return Comparison(group, baseline, seeds, why_not=why_not)
    accuracy, macro_f1, mean_class = (
        _differences(group, baseline, metric) for metric in ("accuracy", "macro_f1", "mean_class_accuracy")
    )
    answers, no_predictions = compare_predictions(group.runs, baseline.runs)
    return Comparison(
        group, baseline, seeds, accuracy, macro_f1, mean_class, answers=answers, no_predictions=no_predictions
    )  # fmt: skip


def _differences(group: RunGroup, baseline: RunGroup, metric: str) -> Paired | None:
    ours, theirs = group.by_seed("test", metric), baseline.by_seed("test", metric)
    common = sorted({*ours} & {*theirs})
    return paired([100 * ours[s] for s in common], [100 * theirs[s] for s in common]) if common else None


def comparison_sentence(comparison: Comparison) -> str:
    """Whether a group does better than the baseline, and how sure that is."""
    name, base, test = comparison.group.label, comparison.baseline.label, comparison.accuracy
    if test is None:
        return f"{name} cannot be compared with {base}: {comparison.why_not}."
    doubt, more = _over_samples(comparison.answers, test) if comparison.answers else ("", "")
    return (
        difference_sentence(name, base, test, comparison.holm_p, digits=2, unit=" points", doubt=doubt)
        + f" {more}".rstrip()
    )


def _over_samples(answers: PredictionComparison, test: Paired) -> tuple[str, str]:
    """What the chance of test samples leaves of a difference over seeds: a doubt of it, or a sentence beside it.

    A claim needs both intervals. McNemar's test alone makes none: it speaks of two networks, not of their recipes.
    """
    found, samples = answers.difference, f"{count(answers.difference.samples)} test samples"
    spread = f"95 % interval {interval(found, 2, sign=True)}"
    if test.sign is None:
        return "", (
            f"On {samples} its interval is {interval(found, 2, sign=True)} (95 %, over samples only) and McNemar's "
            f"{p_text(answers.tests[0].p)}: that speaks of these two networks, not of how they were trained."
        )
    if test.sign == 0:
        few = ", which without the seeds' own makes no finding" if found.sign else ""
        return "", f"Over seeds and {samples}: {spread}{few}."
    if found.sign == test.sign:
        return "", f"It holds for other test samples, too: over seeds and {samples}, {spread}."
    return f"; over seeds and {samples}, {spread}, so other samples may say otherwise", ""


def difference_sentence(
    name: str,
    base: str,
    test: Paired,
    holm_p: float | None,
    *,
    digits: int,
    unit: str = "",
    better: int = 1,
    doubt: str = "",
) -> str:
    """Whether a setting does better than another on the same seeds.

    better: +1 where more is better, else -1. doubt: what else speaks against the claim, if one is made.
    """
    change = f"{signed(test.difference.mean, digits)}{unit}"
    if test.sign is None:
        return (
            f"{name} scores {change} against {base} on the one seed they share; "
            "one seed cannot tell an effect from chance."
        )
    seeds = f"{test.difference.n} seeds"
    spread = f"95 % interval {interval(test.difference, digits, sign=True)}, {p_text(test.t_p)}"
    if test.sign == 0:
        return (
            f"No difference between {name} and {base} can be told: {change} over {seeds} ({spread}). "
            f"At this spread only {number(test.resolvable, digits)}{unit} or more would stand out."
        )
    side, correction = "better" if test.sign == better else "worse", _correction(test.t_p, holm_p) + doubt
    claim = f"scores {side}" if correction else f"is {side}"
    return f"{name} {claim} than {base}: {change} over {seeds} ({spread}){correction}."


def _correction(uncorrected: float | None, holm_p: float | None) -> str:
    """What is left of a finding after Holm's correction; empty where it changes nothing that matters."""
    if uncorrected is None or holm_p is None or uncorrected >= 0.05 or holm_p < 0.05:
        return ""
    return f"; corrected for the number of comparisons {p_text(holm_p)}, so this may still be chance"


def poker_difference(group: RunGroup, measure: Measure, reference: str) -> Paired | None:
    """Poker face less the reference row, seed by seed; None where no seed has both."""
    ours = group.by_seed("poker", "rows", "poker face", measure.key)
    theirs = group.by_seed("poker", "rows", reference, measure.key)
    common = sorted({*ours} & {*theirs})
    return paired([ours[seed] for seed in common], [theirs[seed] for seed in common]) if common else None


def poker_sentences(group: RunGroup) -> list[str]:
    """Whether a group's poker faces come nearer to the truth, computed over its seeds; what the judge says of them."""
    if not group.comparable:
        return ["Its runs differ in more than their seed, so nothing is said of their poker faces together."]
    sentences = []
    known = [measure for measure in (REGION_ERROR, PSNR, SSIM) if poker_difference(group, measure, "input")]
    if known:
        sentences.append(_nearer(group, known[0], "input", "than the input does"))
        if poker_difference(group, known[0], "reconstruction"):
            sentences.append(_nearer(group, known[0], "reconstruction", "than the network's own reconstruction does"))
        whole_image = [_against_input(group, measure) for measure in known[1:] if measure is not REGION_ERROR]
        if whole_image:
            sentences.append(f"Over the whole image, poker face against input: {'; '.join(whole_image)}.")
    else:
        sentences.append("The true neutral faces of this data are not known, so no distance to them can be given.")
    error = group.summary("reconstruction", "mse")
    if error is not None:
        sentences.append(f"Reconstructions miss their input by a mean squared error of {mean_std(error, 4)} (−1..1).")
    return [*sentences, *_judged(group)]


def _nearer(group: RunGroup, measure: Measure, reference: str, than: str) -> str:
    test = poker_difference(group, measure, reference)
    assert test is not None
    claim = f"come nearer to the true neutral face {than}"
    ours = group.summary("poker", "rows", "poker face", measure.key)
    theirs = group.summary("poker", "rows", reference, measure.key)
    assert ours is not None
    assert theirs is not None
    figures = f"{measure.title} {number(ours.mean, measure.digits)} against {number(theirs.mean, measure.digits)}"
    if test.sign is None:
        side = "nearer" if test.difference.mean * measure.better > 0 else "no nearer"
        place = f"lie {side} to the true neutral face {than}"
        return f"In the one seed there is, the poker faces {place}: {figures}. One seed proves nothing."
    details = (
        f"{figures}; difference {signed(test.difference.mean, measure.digits)}, "
        f"95 % interval {interval(test.difference, measure.digits, sign=True)}, "
        f"{p_text(test.t_p)}, {test.difference.n} seeds"
    )
    if test.sign == 0:
        return f"Whether the poker faces {claim} cannot be told: {details}."
    if test.sign == measure.better:
        return f"The poker faces {claim}: {details}."
    return f"The poker faces do not {claim}; they lie farther from it: {details}."


def _against_input(group: RunGroup, measure: Measure) -> str:
    test = poker_difference(group, measure, "input")
    assert test is not None
    side = {None: "one seed", 0: "no difference can be told"}.get(test.sign)
    side = side or ("nearer to the truth" if test.sign == measure.better else "farther from the truth")
    means = [group.summary("poker", "rows", row, measure.key) for row in ("poker face", "input")]
    rows = [number(summary.mean if summary else None, measure.digits) for summary in means]
    return f"{measure.title} {rows[0]} against {rows[1]} ({side})"


def _judged(group: RunGroup) -> list[str]:
    found = {row: group.summary("poker", "rows", row, "neutral_rate") for row in POKER_ROWS}
    ours = found.pop("poker face")
    others = [f"{number(value.mean, 3)} for {row}" for row, value in found.items() if value is not None]
    if ours is None:
        return []
    beside = f", beside {', '.join(others)}" if others else ""
    return [f"Neutrality in the judge's eyes: {mean_std(ours, 3)} for the poker faces{beside}.", *_calmed(group)]


def _calmed(group: RunGroup) -> list[str]:
    """How far the poker faces of expressive photos are from calm, in words; nothing where it was not measured."""
    found = {row: group.summary("poker", "rows", row, "neutralised_rate") for row in POKER_ROWS}
    ours, clear = found["poker face"], group.summary("poker", "rows", "reconstruction", "emotion_agreement")
    if ours is None:
        return []
    tenths = round(10 * ours.mean)
    far = (
        "hardly any is calm"
        if tenths == 0
        else "nearly all are calm"
        if tenths == 10
        else f"{tenths} in 10 {'is' if tenths == 1 else 'are'} calm"
    )
    beside = [f"{number(value.mean, 3)} for {row}" for row in ("input", "truth") if (value := found[row]) is not None]
    words = f", beside {', '.join(beside)}" if beside else ""
    blur = "" if clear is None else f"; it names the emotion of {number(clear.mean, 3)} of the reconstructions"
    return [f"Of faces with an expression {far}: the judge calls {mean_std(ours, 3)} neutral{words}{blur}."]
