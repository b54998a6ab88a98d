"""The rows of a sweep's CSV files, with full precision."""

from __future__ import annotations

from collections.abc import Mapping

from pfcluster.sweep.report.data import Confirmed, SweepData
from pfcluster.sweep.report.rows import Row
from pfcluster.sweep.spec import FINAL_METRICS


def trial_rows(data: SweepData) -> list[Mapping[str, object]]:
    """trials.csv: one row for each trial; seconds and steps are summed over seeds."""
    return [_trial_row(row) for row in data.rows]


def _trial_row(row: Row) -> dict[str, object]:
    trial, stop = row.trial, row.trial.stop
    cells: dict[str, object] = {"trial": trial.number, "state": row.state, "score": row.score, "step": row.step}
    cells |= {"first_rung": row.first_rung, "steps_trained": row.trained, "seconds": row.seconds}
    cells |= {"parent": trial.parent, "until": trial.until, "stop_step": stop.step if stop else None}
    cells |= {"reason": row.failed.error if row.failed else stop.reason if stop else None, **trial.values}
    cells |= {"validation.accuracy": row.accuracy}
    return cells | {f"poker.{name}": row.poker_face.get(name) for name in FINAL_METRICS}


def confirmed_rows(data: SweepData) -> list[Mapping[str, object]]:
    """confirmed.csv: one row for each trial trained again; one column for each seed."""
    return [_confirmed_row(data, one) for one in data.confirmed]


def _confirmed_row(data: SweepData, one: Confirmed) -> dict[str, object]:
    summary, test = one.summary, one.difference
    cells: dict[str, object] = {
        "trial": one.row.trial.number, "baseline": not one.row.trial.number, "winner": one is data.winner,
        "search_score": one.row.score,
    }  # fmt: skip
    for name in ("n", "mean", "std", "low", "high"):
        cells[name] = getattr(summary, name) if summary else None
    for name in ("n", "mean", "std", "low", "high"):
        cells[f"difference.{name}"] = getattr(test.difference, name) if test else None
    cells |= {"difference.t_p": test.t_p if test else None, "difference.holm_p": one.holm_p}
    cells |= {f"seed-{seed}": one.scores.get(seed) for seed in data.spec.fresh_seeds}
    for name, values in one.test.items():
        cells |= {f"test.{name}.seed-{seed}": value for seed, value in values.items()}
    return cells | dict(one.row.trial.values)
