"""The trials of a sweep's search as rows of its report, read from the results and curves of their runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pfcluster.runs.folder import TRAINING_LOCK
from pfcluster.sweep.spec import FINAL_METRICS, Spec
from pfcluster.sweep.state import SweepState
from pfcluster.sweep.trials import Failed, Trial, curve, first_failure, result_of
from pfcluster.system.locks import is_locked
from pfcluster.training.schedule import adversarial_start

State = Literal["completed", "stopped", "generation", "failed", "running", "unfinished"]
OPEN_STATES = ("running", "unfinished")
"""States of trials that the sweep's command continues."""
Points = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Row:
    """A trial of the search. Values are means over the search's seeds."""

    trial: Trial
    state: State
    """"generation": a member of a population that reached the end of its generation."""
    score: float | None
    step: int
    """Last evaluation of all seeds up to the trial's stop, in optimizer steps."""
    trained: int
    """Optimizer steps trained, summed over seeds, including those after a stop that was decided later."""
    planned: int | None
    """Optimizer steps of complete runs, summed over seeds; None before the size of the data is known."""
    seconds: float | None
    """Training time, summed over seeds. For a member of a population since the start of its lineage."""
    failed: Failed | None
    curve: Points
    """(step, metric on validation), up to the trial's stop."""
    first_rung: float | None
    """Score at ASHA's first rung, the budget that all trials which have it have in common."""
    first_rung_step: int | None
    """Its step; None if the trial does not have it."""
    accuracy: float | None
    """On validation, of the selected checkpoint, which also generates the poker faces."""
    poker: Mapping[str, Mapping[str, float]]
    """Kind of image -> metric -> value, on validation."""

    @property
    def poker_face(self) -> Mapping[str, float]:
        """Metrics of the poker faces."""
        return self.poker.get("poker face", {})


def read_row(state: SweepState, trial: Trial, *, first_rung: int | None, has_schedule: bool) -> Row:
    """Read a trial's runs. first_rung: number of ASHA's first rung; None if no trial has one. has_schedule: the size of
    the data is known.
    """
    spec = state.spec
    folders = [state.runs.folder_of(trial, seed) for seed in spec.seeds]
    results = [result_of(folder) for folder in folders]
    failed = first_failure([one for seed in spec.seeds for one in state.runs.search_runs(trial, seed)])
    until = None if trial.stop is None else trial.stop.step
    metric = curve_metric(spec)
    curves = [[point for point in curve(folder, metric) if until is None or point[0] <= until] for folder in folders]
    start = adversarial_start(state.runs.run_of(trial, spec.seeds[0]).config)
    counted = [[point for point in points if point[0] > start] for points in curves]
    reached = [points[-1][0] if points else 0 for points in curves]
    trial_state = _state(trial, results, reached, failed)
    if trial_state == "unfinished" and any(is_locked(folder / TRAINING_LOCK) for folder in folders):
        trial_state = "running"
    closed = trial_state not in ("failed", *OPEN_STATES)
    score = state.score(trial, spec.seeds) if closed else None
    rung = None if first_rung is None else state.rungs(trial)[first_rung]
    totals = [state.schedule_of(state.runs.run_of(trial, seed)).total for seed in spec.seeds] if has_schedule else []
    seconds = [float(result["seconds"]) for result in results if result and result.get("seconds") is not None]
    on_validation = [one for one in results if one and one.get("measured_on") != "test"]
    accuracy = [one["validation"]["accuracy"] for one in on_validation if "accuracy" in (one.get("validation") or {})]
    completed = trial_state == "completed"
    return Row(
        trial=trial,
        state=trial_state,
        score=None if score is None else spec.sign * score,
        step=min(reached, default=0),
        trained=sum(_trained_steps(*one, metric) for one in zip(results, folders, strict=True)),
        seconds=sum(seconds) if seconds else None,
        failed=failed if trial_state == "failed" else None,
        curve=_mean_curve(curves),
        planned=sum(totals) if totals else None,
        first_rung=None if rung is None or trial_state == "failed" else _best_until(counted, rung),
        first_rung_step=rung,
        accuracy=fmean(accuracy) if accuracy and completed else None,
        poker=_poker_metrics(on_validation) if completed else {},
    )


def curve_metric(spec: Spec) -> str:
    """The metric whose curves are drawn: accuracy if the sweep's own is measured only at the end."""
    return "accuracy" if spec.metric in FINAL_METRICS else spec.metric


def _state(trial: Trial, results: list[dict[str, Any] | None], reached: list[int], failed: Failed | None) -> State:
    if trial.stop is not None:
        return "stopped"
    if failed is not None:
        return "failed"
    statuses = {None if result is None else result["status"] for result in results}
    if trial.until is not None:
        return "generation" if statuses <= {"finished", "stopped"} or min(reached) >= trial.until else "unfinished"
    return "completed" if statuses <= {"finished"} else "unfinished"


def _trained_steps(result: Mapping[str, Any] | None, folder: Path, metric: str) -> int:
    """Steps of a run: from its result, else up to its last evaluation."""
    if result is not None and result.get("steps") is not None:
        return int(result["steps"])
    points = curve(folder, metric)
    return points[-1][0] if points else 0


def _mean_curve(curves: list[list[tuple[int, float]]]) -> Points:
    """Mean over seeds at the steps that all of them have."""
    values = [dict(points) for points in curves]
    common = sorted(set.intersection(*(set(one) for one in values))) if values else []
    return tuple((step, fmean(one[step] for one in values)) for step in common)


def _best_until(curves: list[list[tuple[int, float]]], step: int) -> float | None:
    """Mean over seeds of the best value up to a step; None if a seed has not reached it."""
    if not all(points and points[-1][0] >= step for points in curves):
        return None
    return fmean(max(value for at, value in points if at <= step) for points in curves)


def _poker_metrics(results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Metrics of each kind of image, means over the seeds that have them."""
    values: dict[str, dict[str, list[float]]] = {}
    for result in results:
        for kind, metrics in ((result.get("poker") or {}).get("rows") or {}).items():
            for name, value in metrics.items():
                if value is not None:
                    values.setdefault(kind, {}).setdefault(name, []).append(float(value))
    return {kind: {name: fmean(each) for name, each in metrics.items()} for kind, metrics in values.items()}
