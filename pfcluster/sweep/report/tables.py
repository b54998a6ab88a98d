"""The tables of a sweep's report, and the rows of its CSV files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pfcluster.report.formatting import MISSING, duration, interval, mean_std, number, p_value, signed
from pfcluster.report.rendering import Table
from pfcluster.report.statistics import summarize
from pfcluster.sweep.report.data import Confirmed, SweepData, on_common_seeds
from pfcluster.sweep.report.figures import PANELS, front
from pfcluster.sweep.report.findings import digits, words_of
from pfcluster.sweep.report.importance import ENOUGH, Importances
from pfcluster.sweep.report.rows import Row
from pfcluster.sweep.space import Parameter
from pfcluster.sweep.spec import FINAL_METRICS

FEW = 4
"""Parameters whose values have room beside the scores."""


def short_names(space: Sequence[Parameter]) -> dict[str, str]:
    """The last parts of each parameter's name that tell it from the others."""
    found = {}
    for one in space:
        parts = one.name.replace(":", ".").split(".")
        others = [other.name.replace(":", ".").split(".") for other in space if other is not one]
        size = next(n for n in range(1, len(parts) + 1) if n == len(parts) or all(parts[-n:] != o[-n:] for o in others))
        found[one.name] = ".".join(parts[-size:])
    return found


def shown(value: Any) -> str:
    """A value as it would be typed."""
    return (
        f"{value:g}" if isinstance(value, float) else str(value).lower() if value in (None, True, False) else str(value)
    )


def title_of(data: SweepData, row: Row) -> str:
    """A trial's name, with what it is."""
    if row.trial.number == 0:
        return "baseline"
    winner = data.winner is not None and data.winner.row is row
    return f"{row.trial.name}{' ★' if winner else ''}"


def confirmation_table(data: SweepData) -> Table | None:
    """Search score beside the score on fresh seeds, and the difference from the baseline."""
    if not data.confirmed:
        return None
    names, places = short_names(data.spec.space), digits(data.spec.metric)
    few, rows = len(data.spec.space) <= FEW, []
    for one in data.confirmed:
        row, test = one.row, one.difference
        values = ", ".join(f"{names[name]} {shown(value)}" for name, value in row.trial.values.items())
        search = MISSING if data.spec.scheduler == "pbt" and not row.trial.number else number(row.score, places)
        rows.append((
            title_of(data, row), *([values] if few else []), search, str(len(one.scores)),
            mean_std(one.summary, places), interval(one.summary, places),
            signed(test.difference.mean if test else None, places),
            interval(test.difference if test else None, places, sign=True), p_value(test.t_p if test else None),
            p_value(one.holm_p),
        ))  # fmt: skip
    columns = (
        "trial", *(["values"] if few else []), "search", "seeds", "fresh seeds", "95 % interval", "difference",
        "its 95 % interval", "t-test p", "Holm p",
    )  # fmt: skip
    searched, fresh = _list(data.spec.seeds), _list(data.spec.fresh_seeds)
    note = (
        f"{data.spec.metric} on validation. Search: best of the trial's evaluations, on seed {searched}. Fresh seeds: "
        f"{fresh}, which the search never saw; mean ± standard deviation (n − 1), Student's interval. Difference: from "
        "the baseline, seed by seed; paired t-test, two-sided; Holm's p corrects it for the number of trials compared. "
        "★ The winner: best on fresh seeds. Being the best of several on these very seeds flatters it a little; the "
        "test split is free of that."
    )
    return Table("Confirmed on fresh seeds", columns, tuple(rows), note, labels=1 + few)


def values_table(data: SweepData) -> Table | None:
    """Values of the confirmed trials, where they are too many for the table of their scores."""
    if not data.confirmed or len(data.spec.space) <= FEW:
        return None
    names = short_names(data.spec.space)
    rows = tuple(
        (title_of(data, one.row), *(shown(one.row.trial.values[parameter.name]) for parameter in data.spec.space))
        for one in data.confirmed
    )
    return Table("Their values", ("trial", *(names[one.name] for one in data.spec.space)), rows)


def test_table(data: SweepData) -> Table | None:
    """Winner and baseline on the test split; None where it was not measured."""
    pair = [one for one in (data.baseline, data.winner) if one is not None and one.test]
    if not pair or data.baseline is None:
        return None
    rows = []
    for metric in ("accuracy", "macro_f1", *FINAL_METRICS):
        for one in pair:
            values = one.test.get(metric)
            if not values:
                continue
            places, summary = digits(metric), summarize(list(values.values()))
            test = None if one is data.baseline else on_common_seeds(values, data.baseline.test.get(metric, {}))
            rows.append((
                words_of(metric), title_of(data, one.row), str(summary.n), mean_std(summary, places),
                interval(summary, places), signed(test.difference.mean if test else None, places),
                interval(test.difference if test else None, places, sign=True), p_value(test.t_p if test else None),
            ))  # fmt: skip
    columns = (
        "figure", "trial", "seeds", "mean ± std", "95 % interval", "difference", "its 95 % interval",
        "t-test p",
    )  # fmt: skip
    note = "Measured once, for the winner and the baseline alone. Nothing was chosen on it; p is not corrected."
    return Table("On the test split", columns, tuple(rows), note, labels=2) if rows else None


def trials_table(data: SweepData) -> Table:
    """Every trial of the search."""
    names, places = short_names(data.spec.space), digits(data.spec.metric)
    population = data.spec.scheduler == "pbt"
    rows = []
    for row in data.rows:
        parent = ("–" if row.trial.parent is None else f"trial-{row.trial.parent:03d}",) if population else ()
        values = (shown(row.trial.values[one.name]) for one in data.spec.space)
        step = str(row.step) if row.step else MISSING
        rows.append((
            title_of(data, row), state_words(row), *parent, number(row.score, places), step, duration(row.seconds),
            *values,
        ))  # fmt: skip
    columns = ("trial", "state", *(("from",) if population else ()), data.spec.metric, "step", "time")
    note = (
        f"{data.spec.metric}: the best evaluation on validation up to that step. A stopped trial's is that of fewer "
        "steps than a whole one's: the two do not compare. ★ The winner on fresh seeds."
    )
    if population:
        note += (
            " In a population a score is the best of the trial's own generation, in the last one of its whole line; "
            "time counts from the beginning of the line."
        )
    columns += tuple(names[one.name] for one in data.spec.space)
    return Table("Trials of the search", columns, tuple(rows), note, labels=3 if population else 2)


def state_words(row: Row) -> str:
    """How a trial stands, with the reason."""
    if row.state == "stopped" and row.trial.stop is not None:
        return f"stopped at step {row.trial.stop.step}"
    if row.state == "failed" and row.failed is not None:
        return f"failed: {row.failed.error}"
    if row.state == "generation":
        return f"generation ended at step {row.trial.until}"
    return row.state


def importance_table(found: Importances) -> Table:
    """Importance and direction of each parameter."""
    rows = tuple(
        (
            one.parameter.name,
            one.parameter.text(),
            f"{number(100 * one.share, 0)} %",
            signed(one.rho, 2),
            p_value(one.p),
        )
        for one in found.found
    )
    few = f" With {found.n} trials this is a hint at best." if found.n < ENOUGH else ""
    note = (
        f"{found.n} trials, by their scores at {found.budget}. Importance: PED-ANOVA (Watanabe et al. 2023, as in "
        "Optuna), how far a parameter's values among the best quarter depart from those among all; the shares sum to "
        "100 %. Direction: Spearman's rank correlation of value and score, + where more of the parameter does better, "
        "its p not corrected for the number of parameters. A search that looks where it did well distorts both."
        f"{few}"
    )
    return Table("What mattered", ("parameter", "range", "PED-ANOVA", "Spearman's ρ", "p"), rows, note, labels=2)


def pareto_table(data: SweepData) -> Table | None:
    """Accuracy and poker faces of the whole trials; None where there are no poker faces."""
    whole = [row for row in data.rows if row.accuracy is not None and row.face]
    panels = [panel for panel in PANELS if any(panel.key in row.face for row in whole)]
    if not panels:
        return None
    fronts = {panel.key: {row.trial.number for row in front(whole, panel)} for panel in panels}
    rows = []
    for row in sorted(whole, key=lambda row: (-(row.accuracy or 0), row.trial.number)):
        cells = [
            number(row.face.get(panel.key), panel.digits) + (" ◆" if row.trial.number in fronts[panel.key] else "")
            for panel in panels
        ]
        rows.append((title_of(data, row), number(row.accuracy, 3), *cells))
    note = (
        "On validation, whole trials only. ◆ On the front: no other trial is better in both, accuracy and this figure."
    )
    columns = ("trial", "accuracy", *(panel.title for panel in panels))
    return Table("Accuracy and poker faces", columns, tuple(rows), note)


def lineage_table(data: SweepData) -> Table | None:
    """The schedule of a population's best trial."""
    if data.spec.scheduler != "pbt" or not data.lineage:
        return None
    names, rows, begin = short_names(data.spec.space), [], 0
    for trial in data.lineage:
        end = trial.until or (data.course.total if data.course else None)
        values = (shown(trial.values[one.name]) for one in data.spec.space)
        rows.append((trial.name, f"{begin} to {'the end' if end is None else end}", *values))
        begin = end or begin
    columns = ("trial", "steps", *(names[one.name] for one in data.spec.space))
    return Table("The winner's schedule", columns, tuple(rows), "Each goes on from the checkpoint of the one above.")


def trial_rows(data: SweepData) -> list[Mapping[str, object]]:
    """trials.csv: a row for each trial, full precision; seconds and steps summed over seeds."""
    return [_trial_row(row) for row in data.rows]


def _trial_row(row: Row) -> dict[str, object]:
    trial, stop = row.trial, row.trial.stop
    found: dict[str, object] = {"trial": trial.number, "state": row.state, "score": row.score, "step": row.step}
    found |= {"first_rung": row.first_rung, "steps_trained": row.trained, "seconds": row.seconds}
    found |= {"parent": trial.parent, "until": trial.until, "stop_step": stop.step if stop else None}
    found |= {"reason": row.failed.error if row.failed else stop.reason if stop else None, **trial.values}
    found |= {"validation.accuracy": row.accuracy}
    return found | {f"poker.{name}": row.face.get(name) for name in FINAL_METRICS}


def confirmed_rows(data: SweepData) -> list[Mapping[str, object]]:
    """confirmed.csv: a row for each trial trained again, full precision; seeds as columns."""
    return [_confirmed_row(data, one) for one in data.confirmed]


def _confirmed_row(data: SweepData, one: Confirmed) -> dict[str, object]:
    summary, test = one.summary, one.difference
    found: dict[str, object] = {
        "trial": one.row.trial.number, "baseline": not one.row.trial.number, "winner": one is data.winner,
        "search_score": one.row.score,
    }  # fmt: skip
    for name in ("n", "mean", "std", "low", "high"):
        found[name] = getattr(summary, name) if summary else None
    for name in ("n", "mean", "std", "low", "high"):
        found[f"difference.{name}"] = getattr(test.difference, name) if test else None
    found |= {"difference.t_p": test.t_p if test else None, "difference.holm_p": one.holm_p}
    found |= {f"seed-{seed}": one.scores.get(seed) for seed in data.spec.fresh_seeds}
    for name, values in one.test.items():
        found |= {f"test.{name}.seed-{seed}": value for seed, value in values.items()}
    return found | dict(one.row.trial.values)


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
