"""The content of result.json."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pfcluster.config import RunConfig
from pfcluster.data.types import Dataset
from pfcluster.engine.factory import BackendChoice
from pfcluster.runs import provenance
from pfcluster.runs.folder import read_result
from pfcluster.runs.run_inputs import DATA_FIELD, read_inputs
from pfcluster.training.resume import TrainState

FORMAT = 1
TEST_SELECTION_WARNING = "the checkpoint was chosen on the test split, as in the paper: the test figures are optimistic"


def training_result(
    config: RunConfig,
    folder: Path,
    dataset: Dataset,
    state: TrainState,
    choice: BackendChoice,
    *,
    status: str,
    processes: int,
) -> dict[str, Any]:
    """The fields that describe a run's training; the final evaluation adds its own."""
    best, inputs = state.best, read_inputs(folder)
    return {
        "format": FORMAT,
        "name": config.name,
        "objective": config.objective,
        "seed": config.seed,
        "status": status,
        "steps": state.step,
        "seconds": round(state.seconds, 3),
        "dataset": {
            "name": dataset.name,
            "classes": list(dataset.classes),
            "votes": dataset.votes,
            **dataset.counts(),
        },
        "inputs": None if inputs is None else {DATA_FIELD: asdict(inputs.data)["splits"], **inputs.weights},
        "selection_split": config.evaluate.selection_split,
        "best": None if best is None else {"step": best["step"], "value": best["score"]},
        "processes": processes,
        "engine": {"backend": choice.backend, "reason": choice.reason},
        "warning": TEST_SELECTION_WARNING if config.evaluate.selection_split == "test" else None,
        **provenance.read(folder),
    }


def earlier_figures(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """Figures of the training from the result of an earlier attempt, for one that has trained no step; null without."""
    earlier = read_result(folder) or {}
    return {name: earlier.get(name) for name in names}


def earlier_validation_result(folder: Path, result: dict[str, Any]) -> dict[str, Any] | None:
    """Poker-face metrics on validation, if the run measured them before it measured its test split; else None."""
    earlier = read_result(folder) if result["measured_on"] == "test" else None
    if earlier is None:
        return None
    if earlier.get("measured_on") == "validation":
        return {name: earlier.get(name) for name in ("poker", "reconstruction")}
    return earlier.get("on_validation")
