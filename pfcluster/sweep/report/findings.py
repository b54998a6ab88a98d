"""The results of a sweep in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from pfcluster.report.comparisons import difference_sentence
from pfcluster.report.errors import ReportError
from pfcluster.report.formatting import mean_std, number, p_text, signed
from pfcluster.sweep.report.data import SweepData, on_common_seeds
from pfcluster.sweep.report.importance import RELIABLE_TRIALS, Importances, importances
from pfcluster.sweep.report.metrics import metric_digits, metric_title
from pfcluster.sweep.spec import LOWER_IS_BETTER

COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def counted(count: int, thing: str) -> str:
    """ "three fresh seeds"."""
    word = COUNTS[count] if count < len(COUNTS) else str(count)
    return f"{word} {thing}{'' if count == 1 else 's'}"


def findings(data: SweepData) -> list[str]:
    """The sweep in sentences, the main result first."""
    sentences = [*_result(data), *_overestimates(data), *_test_split(data), *_saved_steps(data), *_failures(data)]
    try:
        sentences.append(_importance(importances(data)))
    except ReportError as error:
        sentences.append(f"The importance of the parameters is not computed: {error}.")
    return sentences


def _result(data: SweepData) -> Iterator[str]:
    """Whether the winner is better than the baseline."""
    winner, baseline = data.winner, data.baseline
    if winner is None or baseline is None or winner.difference is None:
        yield _unconfirmed_result(data)
        return
    name, metric, digits = winner.row.trial.name, data.spec.metric, metric_digits(data.spec.metric)
    yield difference_sentence(
        name, "the baseline", winner.difference, winner.holm_p, digits=digits, better=data.spec.sign
    )
    family = sum(other.holm_p is not None for other in data.confirmed)
    if winner.holm_p is not None and family > 1:
        yield f"Corrected for the comparison of {family} confirmed trials (Holm): {p_text(winner.holm_p)}."
    if baseline.summary and winner.summary:
        seeds = counted(winner.difference.difference.n, "fresh seed")
        scores = f"{name} scores {mean_std(winner.summary, digits)} on {seeds}"
        reference = f"the baseline {mean_std(baseline.summary, digits)}"
        yield f"{scores}, {reference} ({metric_title(metric)} on validation)."
    yield conclusion(data)


def _unconfirmed_result(data: SweepData) -> str:
    metric, best = data.spec.metric, data.best
    if best is None or best.score is None:
        alone = "" if data.rows[0].score is None else " except the baseline"
        if data.complete:
            return f"No trial{alone} was completed: there is nothing to compare."
        return f"No trial{alone} is completed yet."
    score, reference = number(best.score, metric_digits(metric)), data.rows[0].score
    baseline = ""
    if reference is not None and data.spec.scheduler != "pbt":
        baseline = f", the baseline {number(reference, metric_digits(metric))}"
    status = "It is not confirmed" if not data.spec.confirm or data.complete else "It is not yet confirmed"
    return (
        f"{best.trial.name} is the best of the search with {metric_title(metric)} {score}{baseline}. {status} on fresh "
        "seeds, and the best score of many trials overestimates the trial."
    )


def beats_baseline(data: SweepData) -> bool:
    """Whether the interval of the winner's difference excludes 0 on the better side, also after Holm's correction."""
    winner = data.winner
    if winner is None or winner.difference is None or winner.holm_p is None:
        return False
    return winner.difference.sign == data.spec.sign and winner.holm_p < 0.05


def conclusion(data: SweepData) -> str:
    """The conclusion about the winner."""
    if beats_baseline(data):
        return "On fresh seeds the winner is significantly better than the baseline."
    return "On fresh seeds the winner is not significantly better than the baseline."


def _overestimates(data: SweepData) -> Iterator[str]:
    """Each confirmed trial's score in the search compared with its mean on fresh seeds."""
    metric, digits = data.spec.metric, metric_digits(data.spec.metric)
    for one in data.confirmed:
        if not one.row.trial.number or one.row.score is None or one.summary is None:
            continue
        seeds = counted(one.summary.n, "fresh seed")
        excess = data.spec.sign * (one.row.score - one.summary.mean)
        fresh = mean_std(one.summary, digits) if one.summary.n > 1 else number(one.summary.mean, digits)
        scores = f"{one.row.trial.name} scored {number(one.row.score, digits)} in the search and {fresh} on {seeds}"
        if round(excess, digits) > 0:
            yield f"{scores}: the search overestimated it by {number(excess, digits)}."
        else:
            yield f"{scores}: the search did not overestimate it."
    if metric in LOWER_IS_BETTER and data.confirmed:
        yield f"Lower {metric_title(metric)} is better."


def _test_split(data: SweepData) -> Iterator[str]:
    """Winner and baseline on the test split."""
    if data.winner is None or data.baseline is None:
        return
    for metric in ("accuracy", "macro_f1"):
        test = on_common_seeds(data.winner.test.get(metric, {}), data.baseline.test.get(metric, {}))
        if test is not None:
            name = data.winner.row.trial.name
            sentence = difference_sentence(name, "the baseline", test, None, digits=metric_digits(metric))
            yield f"On the test split, which was not used for any selection, {metric_title(metric)}: {sentence}"


def _saved_steps(data: SweepData) -> Iterator[str]:
    """What ASHA saved."""
    if data.first_rung is None:
        return
    ended = [row for row in data.rows if row.state in ("completed", "stopped")]
    stopped = sum(row.state == "stopped" for row in ended)
    full = sum(row.planned or 0 for row in ended)
    if not ended or not full:
        return
    trained = sum(row.trained for row in ended)
    yield (
        f"ASHA stopped {stopped} of {len(ended)} trials; {trained} of {full} steps were trained "
        f"(saved {number(100 * (1 - trained / full), 0)} %)."
    )


def _failures(data: SweepData) -> Iterator[str]:
    reasons = Counter(row.failed.error for row in data.rows if row.failed is not None)
    count = sum(reasons.values())
    if count:
        text = "; ".join(f"{reason} ({times})" if times > 1 else reason for reason, times in reasons.most_common())
        yield f"{count} of {len(data.rows)} trials failed: {text}."


def _importance(result: Importances) -> str:
    first = result.parameters[0]
    hint = f"; {result.n} trials are only an indication" if result.n < RELIABLE_TRIALS else ""
    direction = ""
    if first.rho is not None and first.p is not None and first.p < 0.05:
        direction = f", {'higher' if first.rho > 0 else 'lower'} values being better (Spearman {signed(first.rho, 2)})"
    return (
        f"{first.parameter.name} is the most important parameter: {number(100 * first.fraction, 0)} % of the "
        f"importance by PED-ANOVA over {result.n} trials{direction}{hint}."
    )
