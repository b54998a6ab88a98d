"""Metrics of poker faces, and sentences on their distance to the true neutral faces and on how neutral they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pfcluster.report.formatting import interval, mean_std, number, p_text, signed
from pfcluster.report.groups import RunGroup
from pfcluster.report.statistics import Paired, paired

POKER_ROWS = ("input", "reconstruction", "poker face", "truth")


@dataclass(frozen=True)
class PokerMetric:
    """One column of the poker-face table."""

    key: str
    """Name in result.json."""
    title: str
    digits: int
    better: Literal[1, -1]
    """+1 if larger is better, -1 if smaller is."""


PSNR = PokerMetric("psnr", "PSNR (dB)", 2, 1)
SSIM = PokerMetric("ssim", "SSIM", 3, 1)
MSE_INSIDE = PokerMetric("mse_inside", "MSE inside", 4, -1)
POKER_METRICS = (
    PokerMetric("neutral_rate", "neutral rate", 3, 1),
    PokerMetric("neutralised_rate", "neutralised rate", 3, 1),
    PokerMetric("emotion_agreement", "emotion agreement", 3, 1),
    PokerMetric("identity_cosine", "identity cosine", 3, 1),
    PSNR,
    SSIM,
    MSE_INSIDE,
    PokerMetric("mse_outside", "MSE outside", 4, -1),
)


def poker_sentences(group: RunGroup) -> list[str]:
    """Distance of a group's poker faces to the true neutral faces, tested over seeds, and the judge's neutral rates."""
    if not group.comparable:
        return ["The runs differ in more than their seed; their poker faces are not summarised."]
    sentences = []
    if _difference(group, MSE_INSIDE, "input"):
        sentences.append(_distance_sentence(group, MSE_INSIDE, "input"))
        if _difference(group, MSE_INSIDE, "reconstruction"):
            sentences.append(_distance_sentence(group, MSE_INSIDE, "reconstruction"))
        whole_image = [_against_input(group, metric) for metric in (PSNR, SSIM) if _difference(group, metric, "input")]
        if whole_image:
            sentences.append(f"Over the whole image, poker face against input: {'; '.join(whole_image)}.")
    else:
        sentences.append("The dataset has no true neutral faces, so no distance to them is given.")
    error = group.summary("reconstruction", "mse")
    if error is not None:
        sentences.append(f"Reconstruction MSE: {mean_std(error, 4)} (pixel range −1..1).")
    return [*sentences, *_neutral_sentences(group)]


def poker_findings(group: RunGroup) -> list[str]:
    """The `poker_sentences` that are findings of a report: distances, and how many faces are neutral."""
    sentences = poker_sentences(group)
    return sentences if not group.comparable else [*sentences[:2], *_neutralised_rate(group)]


def _difference(group: RunGroup, metric: PokerMetric, reference: str) -> Paired | None:
    """Poker face minus the reference row, paired by seed; None if no seed has both."""
    poker_face = group.by_seed("poker", "rows", "poker face", metric.key)
    other = group.by_seed("poker", "rows", reference, metric.key)
    common = sorted({*poker_face} & {*other})
    return paired([poker_face[seed] for seed in common], [other[seed] for seed in common]) if common else None


def _mean(group: RunGroup, row: str, metric: PokerMetric) -> str:
    summary = group.summary("poker", "rows", row, metric.key)
    return number(summary.mean if summary else None, metric.digits)


def _distance_sentence(group: RunGroup, metric: PokerMetric, reference: str) -> str:
    """Whether the poker faces are closer to the true neutral faces than the reference row."""
    test = _difference(group, metric, reference)
    assert test is not None
    means = f"{metric.title} {_mean(group, 'poker face', metric)} against {_mean(group, reference, metric)}"
    target = f"the true neutral face than the {reference}"
    if test.no_t_test:
        side = "closer to" if test.difference.mean * metric.better > 0 else "not closer to"
        seeds = "the single seed" if test.difference.n == 1 else f"each of {test.difference.n} seeds"
        reason = test.no_t_test[:1].upper() + test.no_t_test[1:]
        return f"The poker faces of {seeds} are {side} {target}: {means}. {reason}."
    details = (
        f"{means}; difference {signed(test.difference.mean, metric.digits)}, "
        f"95 % interval {interval(test.difference, metric.digits, sign=True)}, "
        f"{p_text(test.t_p)}, {test.difference.n} seeds"
    )
    if test.sign == 0:
        return f"The poker faces are not significantly closer to or farther from {target}: {details}."
    side = "closer to" if test.sign == metric.better else "farther from"
    return f"The poker faces are {side} {target}: {details}."


def _against_input(group: RunGroup, metric: PokerMetric) -> str:
    test = _difference(group, metric, "input")
    assert test is not None
    if test.no_t_test:
        result = "one seed" if test.difference.n == 1 else test.no_t_test
    elif test.sign == 0:
        result = "no significant difference"
    else:
        result = "closer to the truth" if test.sign == metric.better else "farther from the truth"
    return f"{metric.title} {_mean(group, 'poker face', metric)} against {_mean(group, 'input', metric)} ({result})"


def _neutral_sentences(group: RunGroup) -> list[str]:
    """Rates at which the judge classifies the images as neutral; empty if they were not measured."""
    return [*_neutral_rate(group), *_neutralised_rate(group)]


def _neutral_rate(group: RunGroup) -> list[str]:
    rates = {row: group.summary("poker", "rows", row, "neutral_rate") for row in POKER_ROWS}
    poker_face = rates.pop("poker face")
    if poker_face is None:
        return []
    others = ", ".join(f"{number(rate.mean, 3)} for {row}" for row, rate in rates.items() if rate is not None)
    against = f", against {others}" if others else ""
    return [f"The judge classifies {mean_std(poker_face, 3)} of the poker faces as neutral{against}."]


def _neutralised_rate(group: RunGroup) -> list[str]:
    rates = {row: group.summary("poker", "rows", row, "neutralised_rate") for row in POKER_ROWS}
    poker_face = rates["poker face"]
    if poker_face is None:
        return []
    others = ", ".join(f"{number(rate.mean, 3)} for {row}" for row in ("input", "truth") if (rate := rates[row]))
    against = f", against {others}" if others else ""
    agreement = group.summary("poker", "rows", "reconstruction", "emotion_agreement")
    control = "" if agreement is None else f"; emotion agreement of the reconstructions: {number(agreement.mean, 3)}"
    return [
        f"Of the poker faces of expressive inputs, {_in_tenths(poker_face.mean)} classified as neutral: "
        f"{mean_std(poker_face, 3)}{against}{control}."
    ]


def _in_tenths(rate: float) -> str:
    tenths = round(10 * rate)
    if tenths == 0:
        return "hardly any are"
    if tenths == 10:
        return "nearly all are"
    return f"{tenths} in 10 {'is' if tenths == 1 else 'are'}"
