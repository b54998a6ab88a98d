"""Claiming a run folder, and saving and loading checkpoints of all engines of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfcluster.checkpoint import store
from pfcluster.checkpoint.manager import CheckpointManager
from pfcluster.checkpoint.tensor_shards import TensorShards
from pfcluster.config import RunConfig
from pfcluster.data.fingerprints import check_inputs, require_fitting_start, run_inputs
from pfcluster.distributed.process_group import World
from pfcluster.engine.base import Engine
from pfcluster.engine.optimizer import Plateau
from pfcluster.models.pretrained import describe
from pfcluster.runs import provenance
from pfcluster.runs.folder import CONFIG_FILE, read_result, write_config
from pfcluster.runs.progress import warn
from pfcluster.runs.run_inputs import read_inputs, write_inputs
from pfcluster.training.objective import Objective


@dataclass
class TrainState:
    """Progress of a run apart from its weights; saved as JSON in every checkpoint."""

    step: int = 0
    """Number of finished steps."""
    seconds: float = 0.0
    """Training time so far, over all attempts."""
    best: dict[str, float] | None = None
    """Step and score of the best evaluation so far; higher scores are better."""
    plateaus: dict[str, Plateau] = field(default_factory=dict)
    """State of the plateau schedule by the name of the engine; empty before the first evaluation."""


def claim_folder(config: RunConfig, folder: Path, command: str | None) -> dict[str, Any] | None:
    """Write config and provenance into the run folder; -> the result if the run has already finished.

    Raises ConfigError if the folder belongs to another config, or to other data or weights in the same place.
    """
    result = read_result(folder)
    finished = result is not None and result["status"] == "finished" and not _test_is_missing(config, result)
    changes = check_inputs(folder, config, finished=finished)
    if finished:
        return result
    folder.mkdir(parents=True, exist_ok=True)
    _record_inputs(config, folder)
    for name, (old, new) in changes.items():
        warn(folder, f"{name} was {old!r} and is {new!r} from here on", True)
    write_config(folder, config)
    provenance.write(folder, command)
    return None


def _record_inputs(config: RunConfig, folder: Path) -> None:
    """Write inputs.json at the first start, and say how weights from elsewhere are read. Raises WeightsError."""
    if (folder / CONFIG_FILE).exists() and read_inputs(folder) is not None:
        return
    require_fitting_start(config)
    note = None if config.model.init is None else describe(config.model.init, config.model.init_normalisation)
    notes = () if note is None else (note,)
    write_inputs(folder, run_inputs(config, notes, lambda problem: warn(folder, problem, True)))
    if note is not None:
        warn(folder, note, True)


def _test_is_missing(config: RunConfig, result: dict[str, Any]) -> bool:
    """Whether a finished run was evaluated on validation only, and the config now asks for the test split."""
    return config.evaluate.final_split == "test" and result.get("measured_on") == "validation"


def save_checkpoint(
    manager: CheckpointManager,
    engines: Mapping[str, Engine],
    objective: Objective,
    state: TrainState,
    *,
    world: World,
    backend: str,
) -> None:
    """Write a checkpoint of the current step from all ranks. A collective."""
    tensor_shards: TensorShards = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, engine in engines.items():
        tensor_shards |= engine.tensor_shards(name)
        shapes |= engine.saved_shapes(name)
    values = {
        "seconds": state.seconds,
        "best": state.best,
        "plateaus": {name: vars(plateau) for name, plateau in state.plateaus.items()},
        "objective": objective.state(),
        "world_size": world.size,
        "backend": backend,
    }
    best_step = None if state.best is None else int(state.best["step"])
    manager.save(state.step, tensor_shards, shapes, values, best_step)


def load_checkpoint(
    manager: CheckpointManager, engines: Mapping[str, Engine], objective: Objective, *, folder: Path, world: World
) -> TrainState:
    """Load the newest undamaged checkpoint into engines and objective: rank 0 selects it, each rank reads its shards.

    Returns a new state if there is none. A collective.
    """

    def newest() -> tuple[store.Checkpoint | None, list[str]]:
        checkpoint, problems = store.latest(manager.folder)
        if checkpoint is not None and problems:
            store.set_aside_newer(manager.folder, checkpoint.step)
        return checkpoint, problems

    checkpoint, problems = world.from_main(newest)
    for problem in problems:
        warn(folder, f"skipped a damaged checkpoint: {problem}; it is now called step-N.damaged", world.is_main)
    if checkpoint is None:
        return TrainState()
    for name, engine in engines.items():
        checkpoint.read_into(engine.tensor_shards(name, loading=True))
        engine.sync_after_load()
    values = checkpoint.state
    objective.load_state(values["objective"])
    plateaus = {name: Plateau(**plateau) for name, plateau in values["plateaus"].items()}
    return TrainState(checkpoint.step, values["seconds"], values["best"], plateaus)
