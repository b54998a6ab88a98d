"""The tables of a sweep's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pfcluster.report.formatting import MISSING, duration, interval, mean_std, number, p_value, signed
from pfcluster.report.rendering import Table
from pfcluster.report.statistics import summarize
from pfcluster.sweep.report.data import Confirmed, SweepData, on_common_seeds
from pfcluster.sweep.report.importance import RELIABLE_TRIALS, Importances
from pfcluster.sweep.report.metrics import metric_digits, metric_title
from pfcluster.sweep.report.pareto import front, pareto_rows
from pfcluster.sweep.report.rows import Row
from pfcluster.sweep.space import Parameter
from pfcluster.sweep.spec import FINAL_METRICS

MAX_VALUES = 4
"""Number of parameters whose values fit beside the scores."""


def short_names(space: Sequence[Parameter]) -> dict[str, str]:
    """For each parameter the shortest suffix of its dotted name that no other parameter has."""
    names = {}
    for one in space:
        parts = one.name.replace(":", ".").split(".")
        others = [other.name.replace(":", ".").split(".") for other in space if other is not one]
        size = next(n for n in range(1, len(parts) + 1) if n == len(parts) or all(parts[-n:] != o[-n:] for o in others))
        names[one.name] = ".".join(parts[-size:])
    return names


def value_text(value: Any) -> str:
    """A value as written on the command line."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if value in (None, True, False) else str(value)


def trial_title(data: SweepData, row: Row) -> str:
    """A trial's name; the winner's with a star."""
    if row.trial.number == 0:
        return "baseline"
    winner = data.winner is not None and data.winner.row is row
    return f"{row.trial.name}{' ★' if winner else ''}"


def confirmation_table(data: SweepData) -> Table | None:
    """Score in the search, score on fresh seeds, difference from the baseline."""
    if not data.confirmed:
        return None
    with_values = len(data.spec.space) <= MAX_VALUES
    columns = (
        "trial", *(["values"] if with_values else []), "search", "seeds", "fresh seeds", "95 % interval", "difference",
        "its 95 % interval", "t-test p", "Holm p",
    )  # fmt: skip
    searched, fresh = _listed(data.spec.seeds), _listed(data.spec.fresh_seeds)
    note = (
        f"{metric_title(data.spec.metric)} on validation. Search: of the trial's selected checkpoint, seed {searched}. "
        f"Fresh seeds: {fresh}, not used by the search; mean ± standard deviation (n − 1), Student's t interval. "
        "Difference: from the baseline, paired by seed; two-sided paired t-test; Holm p is corrected for the number of "
        "trials compared. ★ Winner: best on fresh seeds. It is selected on these seeds, which biases its score "
        "slightly upwards; the test split is unbiased."
    )
    rows = tuple(_confirmation_row(data, one, with_values) for one in data.confirmed)
    return Table("Confirmed on fresh seeds", columns, rows, note, labels=1 + with_values)


def _confirmation_row(data: SweepData, one: Confirmed, with_values: bool) -> tuple[str, ...]:
    names, digits = short_names(data.spec.space), metric_digits(data.spec.metric)
    row, test = one.row, one.difference
    values = ", ".join(f"{names[name]} {value_text(value)}" for name, value in row.trial.values.items())
    # a population's member 0 is trained for one generation only
    search = MISSING if data.spec.scheduler == "pbt" and not row.trial.number else number(row.score, digits)
    return (
        trial_title(data, row), *([values] if with_values else []), search, str(len(one.scores)),
        mean_std(one.summary, digits), interval(one.summary, digits),
        signed(test.difference.mean if test else None, digits),
        interval(test.difference if test else None, digits, sign=True), p_value(test.t_p if test else None),
        p_value(one.holm_p),
    )  # fmt: skip


def values_table(data: SweepData) -> Table | None:
    """Values of the confirmed trials, if they are too many for the table of their scores."""
    if not data.confirmed or len(data.spec.space) <= MAX_VALUES:
        return None
    names = short_names(data.spec.space)
    rows = tuple(
        (
            trial_title(data, one.row),
            *(value_text(one.row.trial.values[parameter.name]) for parameter in data.spec.space),
        )
        for one in data.confirmed
    )
    return Table("Values of the confirmed trials", ("trial", *(names[one.name] for one in data.spec.space)), rows)


def test_table(data: SweepData) -> Table | None:
    """Winner and baseline on the test split; None if it was not measured."""
    pair = [one for one in (data.baseline, data.winner) if one is not None and one.test]
    if not pair or data.baseline is None:
        return None
    rows = []
    for metric in ("accuracy", "macro_f1", *FINAL_METRICS):
        for one in pair:
            values = one.test.get(metric)
            if not values:
                continue
            digits, summary = metric_digits(metric), summarize(list(values.values()))
            test = None if one is data.baseline else on_common_seeds(values, data.baseline.test.get(metric, {}))
            rows.append((
                metric_title(metric), trial_title(data, one.row), str(summary.n), mean_std(summary, digits),
                interval(summary, digits), signed(test.difference.mean if test else None, digits),
                interval(test.difference if test else None, digits, sign=True), p_value(test.t_p if test else None),
            ))  # fmt: skip
    columns = (
        "metric", "trial", "seeds", "mean ± std", "95 % interval", "difference", "its 95 % interval",
        "t-test p",
    )  # fmt: skip
    note = "Measured once, for the winner and the baseline only, and used for no selection. p is not corrected."
    return Table("On the test split", columns, tuple(rows), note, labels=2) if rows else None


def trials_table(data: SweepData) -> Table:
    """Every trial of the search."""
    names, metric = short_names(data.spec.space), metric_title(data.spec.metric)
    population = data.spec.scheduler == "pbt"
    rows = []
    for row in data.rows:
        parent = ("–" if row.trial.parent is None else f"trial-{row.trial.parent:03d}",) if population else ()
        values = (value_text(row.trial.values[one.name]) for one in data.spec.space)
        score = number(row.score, metric_digits(data.spec.metric))
        step = str(row.step) if row.step else MISSING
        rows.append((
            trial_title(data, row), state_text(row), *parent, score, step, duration(row.seconds), *values,
        ))  # fmt: skip
    columns = ("trial", "state", *(("from",) if population else ()), metric, "step", "time")
    note = (
        f"{metric}: best evaluation on validation up to that step, of a completed trial among those that can select its"
        " checkpoint. A stopped trial has trained for fewer steps than a completed one, so their scores are not "
        "comparable. ★ Winner on fresh seeds."
    )
    if population:
        note += (
            " In a population a score is the best of the trial's own generation, and in the last generation the best "
            "of the whole lineage; time counts from the start of the lineage."
        )
    columns += tuple(names[one.name] for one in data.spec.space)
    return Table("Trials of the search", columns, tuple(rows), note, labels=3 if population else 2)


def state_text(row: Row) -> str:
    """A trial's state, with the reason."""
    if row.state == "stopped" and row.trial.stop is not None:
        return f"stopped at step {row.trial.stop.step}"
    if row.state == "failed" and row.failed is not None:
        return f"failed: {row.failed.error}"
    if row.state == "generation":
        return f"generation ended at step {row.trial.until}"
    return row.state


def importance_table(result: Importances) -> Table:
    """Importance and direction of each parameter."""
    rows = tuple(
        (
            one.parameter.name,
            one.parameter.text(),
            f"{number(100 * one.fraction, 0)} %",
            signed(one.rho, 2),
            p_value(one.p),
        )
        for one in result.parameters
    )
    caveat = f" {result.n} trials are only an indication." if result.n < RELIABLE_TRIALS else ""
    note = (
        f"{result.n} trials, by their scores at {result.budget}. Importance: PED-ANOVA (Watanabe et al. 2023, as in "
        "Optuna), the divergence of a parameter's values among the best quarter from those among all trials; the "
        "importances sum to 100 %. Direction: Spearman's rank correlation of value and score, + if higher values score "
        "better; p is not corrected for the number of parameters. A search that concentrates on good regions biases "
        f"both.{caveat}"
    )
    columns = ("parameter", "range", "PED-ANOVA", "Spearman's ρ", "p")
    return Table("Importance of the parameters", columns, rows, note, labels=2)


def pareto_table(data: SweepData) -> Table | None:
    """Accuracy and poker faces of the completed trials; None without poker faces."""
    completed, metrics = pareto_rows(data)
    if not metrics:
        return None
    fronts = {metric: {row.trial.number for row in front(completed, metric)} for metric in metrics}
    rows = []
    for row in sorted(completed, key=lambda row: (-(row.accuracy or 0), row.trial.number)):
        cells = [
            number(row.poker_face.get(metric), metric_digits(metric))
            + (" ◆" if row.trial.number in fronts[metric] else "")
            for metric in metrics
        ]
        rows.append((trial_title(data, row), number(row.accuracy, 3), *cells))
    note = (
        "On validation, completed trials only. ◆ On the Pareto front: no other trial is better in one of accuracy and "
        "this metric and at least as good in the other."
    )
    columns = ("trial", "accuracy", *map(metric_title, metrics))
    return Table("Accuracy and poker faces", columns, tuple(rows), note)


def lineage_table(data: SweepData) -> Table | None:
    """The schedule of a population's best trial."""
    if data.spec.scheduler != "pbt" or not data.lineage:
        return None
    names, rows, begin = short_names(data.spec.space), [], 0
    for trial in data.lineage:
        end = trial.until or (data.schedule.total if data.schedule else None)
        values = (value_text(trial.values[one.name]) for one in data.spec.space)
        rows.append((trial.name, f"{begin} to {'the end' if end is None else end}", *values))
        begin = end or begin
    columns = ("trial", "steps", *(names[one.name] for one in data.spec.space))
    note = "Each generation continues from the checkpoint of the one above."
    return Table("The winner's schedule", columns, tuple(rows), note)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
