"""What a sweep found, in sentences, and what a reader must know before believing them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from pfcluster.report.comparisons import difference_sentence
from pfcluster.report.errors import Notice, ReportError
from pfcluster.report.formatting import mean_std, number, p_text, signed
from pfcluster.report.statistics import Paired
from pfcluster.sweep.report.data import SweepData, on_common_seeds
from pfcluster.sweep.report.importance import ENOUGH, Importances, importances
from pfcluster.sweep.report.rows import halved
from pfcluster.sweep.spec import LOWER_IS_BETTER

DIGITS = {"mse_inside": 4, "mse_outside": 4}
"""Decimals of a metric; the others have three."""
EDGE = 0.02
"""A value this near to an end of its range, in parts of the range, lies at the end."""
COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def digits(metric: str) -> int:
    """Decimals in which a metric is written."""
    return DIGITS.get(metric, 3)


def words_of(metric: str) -> str:
    """A metric's name in a sentence."""
    return metric.replace("_", " ").replace("f1", "F1")


def counted(count: int, thing: str) -> str:
    """ "three fresh seeds"."""
    words = COUNTS[count] if count < len(COUNTS) else str(count)
    return f"{words} {thing}{'' if count == 1 else 's'}"


def findings(data: SweepData) -> list[str]:
    """The sweep in sentences, the answer first."""
    sentences = [*_answer(data), *_luck(data), *_test(data), *_saved(data), *_failures(data)]
    try:
        sentences.append(_importance(importances(data)))
    except ReportError as error:
        sentences.append(f"Nothing is said of how much each parameter mattered: {error}.")
    return sentences


def _answer(data: SweepData) -> Iterator[str]:
    """Whether the winner beats the baseline."""
    metric, winner, baseline, best = data.spec.metric, data.winner, data.baseline, data.best
    if winner is None or baseline is None or winner.difference is None:
        if best is None or best.score is None:
            yield (
                "No trial but the baseline was trained whole yet."
                if not data.whole
                else ("No trial but the baseline was trained whole: there is nothing to compare.")
            )
            return
        score, reference = number(best.score, digits(metric)), data.rows[0].score
        beside = "" if reference is None or data.spec.scheduler == "pbt" else f", the baseline {number(reference, 3)}"
        yield (
            f"{best.trial.name} is the best of the search with a {metric} of {score}{beside}. "
            f"{'It is not' if not data.spec.confirm or data.whole else 'It is not yet'} confirmed on fresh seeds: what "
            "the best of many trials scored is partly luck."
        )
        return
    name, places = winner.row.trial.name, digits(metric)
    yield _against_baseline(name, winner.difference, winner.holm_p, metric, data.spec.sign)
    family = sum(other.holm_p is not None for other in data.confirmed)
    if winner.holm_p is not None and family > 1:
        yield f"Corrected for the choice among {family} confirmed trials (Holm) that is {p_text(winner.holm_p)}."
    if baseline.summary and winner.summary:
        seeds = counted(winner.difference.difference.n, "fresh seed")
        ours, theirs = mean_std(winner.summary, places), mean_std(baseline.summary, places)
        yield f"{name} scores {ours} on {seeds}, the baseline {theirs} ({words_of(metric)} on validation)."
    yield verdict(data)


def _against_baseline(name: str, test: Paired, holm_p: float | None, metric: str, better: int) -> str:
    """A trial against the baseline, with the interval, p, and what could have been told."""
    if test.t_p is None and test.difference.n > 1:
        if test.difference.mean == 0:
            return f"{name} scores the same as the baseline on every seed."
        change = signed(test.difference.mean, digits(metric))
        return f"{name} differs from the baseline by {change} on every seed alike; no test can be made of that."
    return difference_sentence(name, "the baseline", test, holm_p, digits=digits(metric), better=better)


def beats(data: SweepData) -> bool:
    """Whether the winner's interval lies on the better side of the baseline, and Holm's correction leaves it there."""
    winner = data.winner
    if winner is None or winner.difference is None or winner.holm_p is None:
        return False
    return winner.difference.sign == data.spec.sign and winner.holm_p < 0.05


def verdict(data: SweepData) -> str:
    """What to make of the winner."""
    if beats(data):
        return "As far as these seeds tell, the winner beats the baseline."
    return "As far as these seeds tell, the winner is not better than the baseline."


def _luck(data: SweepData) -> Iterator[str]:
    """Each confirmed trial's score in the search beside that on fresh seeds."""
    metric, places = data.spec.metric, digits(data.spec.metric)
    for one in data.confirmed:
        if not one.row.trial.number or one.row.score is None or one.summary is None:
            continue
        seeds = counted(one.summary.n, "fresh seed")
        luck = data.spec.sign * (one.row.score - one.summary.mean)
        spread = mean_std(one.summary, places) if one.summary.n > 1 else number(one.summary.mean, places)
        told = f"{one.row.trial.name} scored {number(one.row.score, places)} in the search and {spread} on {seeds}"
        shown = number(luck, places)
        if round(luck, places) > 0:
            yield f"{told}: {shown} of it was luck."
        else:
            yield f"{told}: nothing of it was luck."
    if data.spec.metric in LOWER_IS_BETTER and data.confirmed:
        yield f"Of {metric} less is better."


def _test(data: SweepData) -> Iterator[str]:
    """The test split, which nothing was chosen on."""
    if data.winner is None or data.baseline is None:
        return
    for metric in ("accuracy", "macro_f1"):
        test = on_common_seeds(data.winner.test.get(metric, {}), data.baseline.test.get(metric, {}))
        if test is not None:
            words = _against_baseline(data.winner.row.trial.name, test, None, metric, 1)
            yield f"On the test split, which nothing was chosen on, {words_of(metric)}: {words}"


def _saved(data: SweepData) -> Iterator[str]:
    """What ASHA spared."""
    if not halved(data.spec) or data.course is None or not data.rungs:
        return
    over = [row for row in data.rows if row.state in ("whole", "stopped")]
    stopped = sum(row.state == "stopped" for row in over)
    full = data.course.total * len(data.spec.seeds) * len(over)
    if not over or not full:
        return
    trained = sum(row.trained for row in over)
    yield (
        f"ASHA stopped {stopped} of {len(over)} trials; {trained} of {full} steps were trained "
        f"(saved {number(100 * (1 - trained / full), 0)} %)."
    )


def _failures(data: SweepData) -> Iterator[str]:
    reasons = Counter(row.failed.error for row in data.rows if row.failed is not None)
    count = sum(reasons.values())
    if count:
        told = "; ".join(f"{reason} ({times})" if times > 1 else reason for reason, times in reasons.most_common())
        yield f"{count} of {len(data.rows)} trials failed: {told}."


def _importance(found: Importances) -> str:
    first = found.found[0]
    hint = f"; {found.n} trials give a hint at best" if found.n < ENOUGH else ""
    direction = ""
    if first.rho is not None and first.p is not None and first.p < 0.05:
        direction = f", {'higher' if first.rho > 0 else 'lower'} values doing better (Spearman {signed(first.rho, 2)})"
    return (
        f"{first.parameter.name} mattered most: {number(100 * first.share, 0)} % of the importance by PED-ANOVA over "
        f"{found.n} trials{direction}{hint}."
    )


def notices(data: SweepData) -> list[Notice]:
    """What must be known first."""
    return [*_unfinished(data), *_seeds(data), *_broken(data), *_edges(data), *_optimism(data)]


def _unfinished(data: SweepData) -> Iterator[Notice]:
    spec = data.spec
    if data.whole:
        return
    running = sum(row.state == "running" for row in data.rows)
    told = f"{len(data.rows)} of {data.expected} trials have been proposed, {running} of them are not over"
    if data.explored and not data.confirmed:
        told = "the search is over, the confirmation has not begun"
    elif data.explored:
        known = sum(len(one.scores) for one in data.confirmed)
        told = f"{known} of {len(data.confirmed) * len(spec.fresh_seeds)} runs on fresh seeds are done"
    yield Notice("not finished", f"{told}. The sweep's command goes on from there, and these figures may change.")


def _seeds(data: SweepData) -> Iterator[Notice]:
    spec = data.spec
    if not spec.confirm:
        yield Notice("not confirmed", "--confirm 0: all scores are those of the search, whose best is partly luck.")
    elif len(spec.fresh_seeds) < 3:
        yield Notice(
            "few fresh seeds", f"{len(spec.fresh_seeds)} of them: intervals are very wide, and a test shows little."
        )
    elif data.explored and len(data.confirmed) == 1:
        yield Notice("nothing confirmed", "no trial but the baseline was trained whole.")


def _broken(data: SweepData) -> Iterator[Notice]:
    failed = [row.trial.name for row in data.rows if row.state == "failed"]
    if failed:
        yield Notice("trials failed", f"{', '.join(failed)}: the search knows nothing of what they would have scored.")
    for one in data.confirmed:
        if one.failed is not None:
            name = one.row.trial.name if one.row.trial.number else "the baseline"
            yield Notice("a run on a fresh seed failed", f"{name}: {one.failed.error}. It is compared on fewer seeds.")
    if halved(data.spec) and data.course is not None and not data.rungs:
        yield Notice("no early stops", f"{data.course.total} steps have too few evaluations for ASHA.")


def _edges(data: SweepData) -> Iterator[Notice]:
    values = data.rows[0].trial.values
    outside = [one.name for one in data.spec.space if not one.holds(values[one.name])]
    if outside:
        yield Notice("the baseline lies outside", f"of the space in {', '.join(outside)}: the search never tried it.")
    best = data.best
    if best is None or data.spec.search in ("grid", "one-at-a-time"):
        return
    numbers = [one for one in data.spec.space if one.kind != "choice"]
    edge = [one.name for one in numbers if not EDGE < one.fraction_of(best.trial.values[one.name]) < 1 - EDGE]
    if edge:
        yield Notice("at the edge", f"{best.trial.name} has {', '.join(edge)} at an end of its range: a wider one may "
                     "hold better.")  # fmt: skip


def _optimism(data: SweepData) -> Iterator[Notice]:
    faces = data.dataset.get("validation")
    one_face = f" of {faces} faces, on which one face is {number(1 / faces, 4)}," if faces else ""
    yield Notice(
        "scores are optimistic",
        f"each is the best of its run's evaluations on validation{one_face} and the search's best is the best of "
        f"{len(data.rows)} trials besides. Fresh seeds take the second kind of luck away; the test split both.",
    )
    if len(data.confirmed) > 2:
        yield Notice(
            "chosen among confirmed",
            f"the winner is the best of {len(data.confirmed) - 1} on the fresh seeds that it is compared on, which "
            "flatters it a little; Holm's correction allows for that, and the test split is free of it.",
        )
