"""The paper's figures and claims against ours: what may be said, and no more."""

from __future__ import annotations

from dataclasses import dataclass

from pfcluster.experiments.paper import CLAIMS, Claim
from pfcluster.experiments.results import Found
from pfcluster.report.groups import Group
from pfcluster.report.prediction_stats import AnswersCompared, compare_answers, correct_together
from pfcluster.report.statistics import Paired, Summary, holm, paired

HOLDS, LEANS, OPEN, AGAINST, NOT_RUN = "holds", "points that way", "undecided", "the opposite", "not run"
LEVEL = 0.05


def verdict(theirs: float | None, ours: Summary | None) -> str:
    """Whether our 95 % interval holds the paper's figure: within, or ours lie above or below it. A dash where the paper
    states none, or one seed has no interval.
    """
    if ours is None:
        return NOT_RUN
    if theirs is None or ours.low is None or ours.high is None:
        return "–"
    return "above" if ours.low > theirs else "below" if ours.high < theirs else "within"


def accuracy(group: Group | None) -> Summary | None:
    """Test accuracy in %."""
    return None if group is None else group.summary("test", "accuracy", scale=100)


def difference(treated: Group | None, reference: Group | None, *path: str) -> Paired | None:
    """Test accuracies' difference in points over common seeds, or of another figure; None where there is none."""
    path = path or ("test", "accuracy")
    if treated is None or reference is None:
        return None
    ours, theirs = treated.by_seed(*path), reference.by_seed(*path)
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    return paired([100 * ours[seed] for seed in seeds], [100 * theirs[seed] for seed in seeds])


def answers(treated: Group | None, reference: Group | None) -> AnswersCompared | None:
    """Two groups' answers to the same test faces, seed by seed; None where either has none, or other faces."""
    if treated is None or reference is None:
        return None
    return compare_answers(treated.runs, reference.runs)[0]


@dataclass(frozen=True)
class Judged:
    """A claim on one dataset."""

    dataset: str
    claim: Claim
    paired: Paired | None
    p: float | None
    """Holm's correction over all claims on all datasets."""
    verdict: str
    answers: AnswersCompared | None
    """Bootstrap of the difference over seeds and faces, and McNemar's tests, corrected over all claims."""


def judge(found: Found) -> list[Judged]:
    """Every claim on every dataset whose cells were asked for: it holds where Holm's p is below 0.05; it points that
    way, or the opposite way, where only the claim's own interval leaves out 0; else it is undecided.
    """
    open_cases = [
        (dataset, claim, difference(found.group(dataset, claim.better), found.group(dataset, claim.worse)))
        for claim in CLAIMS
        for dataset in found.record.datasets
        if found.planned(dataset, claim.better) and found.planned(dataset, claim.worse)
    ]
    tested = [pair.t_p for _, _, pair in open_cases if pair is not None and pair.t_p is not None]
    corrected = iter(holm(tested))
    judged = []
    compared = correct_together(
        [
            answers(found.group(dataset, claim.better), found.group(dataset, claim.worse))
            for dataset, claim, _ in open_cases
        ]
    )
    for (dataset, claim, pair), both in zip(open_cases, compared, strict=True):
        p = next(corrected) if pair is not None and pair.t_p is not None else None
        judged.append(Judged(dataset, claim, pair, p, _word(pair, p), both))
    return judged


def _word(pair: Paired | None, p: float | None) -> str:
    if pair is None:
        return NOT_RUN
    if pair.sign is None:
        return "one seed: no test"
    if pair.sign == 0:
        return OPEN
    sure = p is not None and p < LEVEL
    if pair.sign > 0:
        return HOLDS if sure else LEANS
    return AGAINST if sure else f"{AGAINST}, not after correction"
