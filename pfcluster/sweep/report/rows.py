"""The rows of a sweep's report: a trial of the search, read from its runs' results and curves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pfcluster.sweep.spec import FINAL_METRICS, Spec
from pfcluster.sweep.state import SweepState
from pfcluster.sweep.trials import Failed, Trial, TrialRun, curve, read_failed, result_of

State = Literal["whole", "stopped", "generation", "failed", "running"]
Points = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Row:
    """A trial of the search. Figures are means over the search's seeds."""

    trial: Trial
    state: State
    """"generation": a member of a population that came to the end of its generation."""
    score: float | None
    step: int
    """Last evaluation of all seeds that counts, in optimizer steps."""
    trained: int
    """Optimizer steps trained, summed over seeds; also those after a stop, while it was not known yet."""
    seconds: float | None
    """Training time, summed over seeds. A member of a population counts from the beginning of its line."""
    failed: Failed | None
    curve: Points
    """(step, metric on validation), up to where the trial was stopped."""
    first_rung: float | None
    """Score at the first rung of ASHA: the one budget that all trials have."""
    accuracy: float | None
    """On validation, with the checkpoint that was chosen: what its poker faces come from."""
    poker: Mapping[str, Mapping[str, float]]
    """Kind of image -> figure -> value, on validation."""

    @property
    def face(self) -> Mapping[str, float]:
        """Figures of the poker faces."""
        return self.poker.get("poker face", {})


def halved(spec: Spec) -> bool:
    """Whether ASHA stops trials: not for a figure that is known only at their end."""
    return spec.scheduler == "asha" and spec.metric not in FINAL_METRICS


def read_row(state: SweepState, trial: Trial, *, known: bool) -> Row:
    """A trial, from its runs. known: the size of the data is, so that the rungs are."""
    spec = state.spec
    folders = [state.runs.folder_of(trial, seed) for seed in spec.seeds]
    results = [result_of(folder) for folder in folders]
    failed = failure_of([leg for seed in spec.seeds for leg in state.runs.search_runs(trial, seed)])
    until = None if trial.stop is None else trial.stop.step
    curves = [[point for point in curve(one, _drawn(spec)) if until is None or point[0] <= until] for one in folders]
    score = state.score(trial, spec.seeds)
    state = _state(trial, results, [points[-1][0] if points else 0 for points in curves], failed)
    rungs = state.rungs(trial)[:1] if known and halved(spec) else []
    seconds = [float(result["seconds"]) for result in results if result and result.get("seconds") is not None]
    on_validation = [one for one in results if one and one.get("measured_on") != "test"]
    accuracy = [one["validation"]["accuracy"] for one in on_validation if "accuracy" in (one.get("validation") or {})]
    return Row(
        trial=trial,
        state=state,
        score=None if state in ("failed", "running") or score is None else spec.sign * score,
        step=min((points[-1][0] if points else 0 for points in curves), default=0),
        trained=sum(_trained(result, folder, _drawn(spec)) for result, folder in zip(results, folders, strict=True)),
        seconds=sum(seconds) if seconds else None,
        failed=failed if state == "failed" else None,
        curve=_mean_curve(curves),
        first_rung=next((_at(curves, step) for step in rungs), None) if state != "failed" else None,
        accuracy=fmean(accuracy) if accuracy and state == "whole" else None,
        poker=_poker(on_validation) if state == "whole" else {},
    )


def _drawn(spec: Spec) -> str:
    """The metric whose curves are drawn: one that is known only at the end has none."""
    return "accuracy" if spec.metric in FINAL_METRICS else spec.metric


def _state(trial: Trial, results: list[dict[str, Any] | None], reached: list[int], failed: Failed | None) -> State:
    if trial.stop is not None:
        return "stopped"
    if failed is not None:
        return "failed"
    ended = all(result is not None and result["status"] in ("finished", "stopped") for result in results)
    if trial.until is not None:
        return "generation" if ended or min(reached) >= trial.until else "running"
    return "whole" if all(result is not None and result["status"] == "finished" for result in results) else "running"


def failure_of(legs: list[TrialRun]) -> Failed | None:
    """Why the first of some runs that failed did."""
    return next((found for leg in legs if (found := read_failed(leg.run.folder)) is not None), None)


def _trained(result: Mapping[str, Any] | None, folder: Path, metric: str) -> int:
    """Steps of a run: its result's, else those up to its last evaluation."""
    if result is not None and result.get("steps") is not None:
        return int(result["steps"])
    points = curve(folder, metric)
    return points[-1][0] if points else 0


def _mean_curve(curves: list[list[tuple[int, float]]]) -> Points:
    """Mean over seeds at the steps that all of them have."""
    values = [dict(points) for points in curves]
    common = sorted(set.intersection(*(set(one) for one in values))) if values else []
    return tuple((step, fmean(one[step] for one in values)) for step in common)


def _at(curves: list[list[tuple[int, float]]], step: int) -> float | None:
    """Mean over seeds of the best up to a step; None where a seed has not passed it."""
    if not all(points and points[-1][0] >= step for points in curves):
        return None
    return fmean(max(value for at, value in points if at <= step) for points in curves)


def _poker(results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Figures of each kind of image, means over seeds; without those that no run has."""
    found: dict[str, dict[str, list[float]]] = {}
    for result in results:
        for row, figures in ((result.get("poker") or {}).get("rows") or {}).items():
            for name, value in figures.items():
                if value is not None:
                    found.setdefault(row, {}).setdefault(name, []).append(float(value))
    return {row: {name: fmean(values) for name, values in one.items()} for row, one in found.items()}
