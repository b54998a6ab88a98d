"""Checkpoint folders: one per step, written to a staging folder by all ranks, renamed when complete, verified on read.

    checkpoints/step-00000500/{shard-00001-model-00001-of-00001.safetensors, ..., state.json}

`state.json` holds the training state as JSON, the shape of every tensor and the checksum of every file. A folder
without it is incomplete and ignored. Any number of ranks, under any engine, can read a checkpoint that another layout
wrote (`checkpoint/dcp.py`); `consolidate` writes a single file.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pfcluster.checkpoint import dcp
from pfcluster.checkpoint.tensor_shards import TensorShards, unsharded
from pfcluster.runs.atomic_files import fsync, sha256, write_atomically
from pfcluster.runs.folder import CHECKPOINT_FILE, CHECKPOINTS_DIR, checkpoint_steps, step_folder

FORMAT = 2
StateDict = dict[str, Tensor]


class CheckpointError(ValueError):
    """A checkpoint is damaged or belongs to another model: names the file, the reason and the remedy."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder and the content of its `state.json`."""

    step: int
    path: Path
    shapes: dict[str, tuple[int, ...]]
    """Of all tensors: `model/<name>`, `model_optimizer/<name>/<slot>`, `model_ema/<name>`; also `discriminator...`."""
    state: dict[str, Any]
    """Training state as given to `CheckpointManager.save`."""

    def read_into(self, tensor_shards: TensorShards) -> None:
        """Fill the shards of this rank in place. Raises CheckpointError if a tensor is missing or has another size."""
        try:
            dcp.read(tensor_shards, self.path)
        except dcp.DamageError as error:
            raise CheckpointError(f"{error}; this checkpoint belongs to another model or is damaged") from error

    def tensors(self, *groups: str) -> dict[str, StateDict]:
        """Full tensors on the CPU by group and name. Groups are `model`, `discriminator_optimizer`, ...; default all.

        Raises CheckpointError.
        """
        stored = dcp.dtypes(self.path)
        keys = [key for key in self.shapes if not groups or key.split("/", 1)[0] in groups]
        missing = [key for key in keys if key not in stored]
        if missing:
            raise CheckpointError(f"{self.path} is damaged: it has no {missing[0]}")
        tensors = {key: torch.empty(self.shapes[key], dtype=stored[key]) for key in keys}
        self.read_into({key: unsharded(tensor) for key, tensor in tensors.items() if tensor.numel()})
        by_group: dict[str, StateDict] = {}
        for key, tensor in tensors.items():
            group, name = key.split("/", 1)
            by_group.setdefault(group, {})[name] = tensor
        return by_group

    def weights(self) -> StateDict:
        """Full weights of the model for evaluation: the moving average if the run keeps one."""
        group = "model_ema" if any(key.startswith("model_ema/") for key in self.shapes) else "model"
        return self.tensors(group)[group]


def staging_dir(folder: Path, step: int) -> Path:
    """Folder in which the checkpoint of a step is written before it is complete."""
    return folder / f".step-{step:08d}.tmp"


def commit(folder: Path, step: int, shapes: dict[str, tuple[int, ...]], state: dict[str, Any]) -> None:
    """Complete a staged checkpoint: write checksums and `state.json`, rename the folder. Raises OSError."""
    staging, final = staging_dir(folder, step), step_folder(folder, step)
    files = {
        path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in staging.glob("*.safetensors")
    }
    record = {"format": FORMAT, "step": step, "files": files, "shapes": shapes, "state": state}
    write_atomically(staging / CHECKPOINT_FILE, json.dumps(record) + "\n")
    fsync(staging)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(staging, final)
    fsync(folder)


def verify(path: Path) -> Checkpoint:
    """Read `state.json` and compare all files with their checksums. Raises CheckpointError."""
    try:
        record = json.loads((path / CHECKPOINT_FILE).read_text())
        if record["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {record['format']}; this version reads format {FORMAT}")
        shapes = {key: tuple(shape) for key, shape in record["shapes"].items()}
        checkpoint, files = Checkpoint(record["step"], path, shapes, record["state"]), dict(record["files"])
    except OSError as error:
        raise CheckpointError(f"{path} is not a checkpoint: cannot read state.json ({error.strerror})") from error
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}/state.json is damaged: {error!r}") from error
    for name, expected in files.items():
        file = path / name
        if not file.is_file() or sha256(file) != expected["sha256"]:
            raise CheckpointError(f"{file} is {'damaged: wrong checksum' if file.is_file() else 'missing'}")
    extra = sorted({file.name for file in path.glob("*.safetensors")} - set(files))
    if extra:
        raise CheckpointError(f"{path / extra[0]} is not part of the checkpoint; remove it")
    return checkpoint


def latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest intact checkpoint (None if there is no checkpoint), and what is wrong with newer ones.

    Raises CheckpointError if checkpoints exist and all are damaged, because starting over would hide the loss.
    """
    problems: list[str] = []
    for step in reversed(checkpoint_steps(folder)):
        try:
            return verify(step_folder(folder, step)), problems
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError(
            f"all checkpoints in {folder} are damaged: {'; '.join(problems)}; remove them to start over"
        )
    return None, problems


def retain(folder: Path, keep: int, best: int | None) -> None:
    """Remove all checkpoints except the newest `keep` and the one of step `best`."""
    for step in checkpoint_steps(folder)[:-keep]:
        if step != best:
            shutil.rmtree(step_folder(folder, step))


def remove_incomplete(folder: Path) -> None:
    """Remove the staging folders of interrupted writes. Call only while no writer is active."""
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def find(run: Path) -> Path:
    """The checkpoint folder of a run: the best on validation, else the newest. The path of a checkpoint folder is
    returned as it is. Raises CheckpointError if there is none.
    """
    if (run / CHECKPOINT_FILE).is_file():
        return run
    folder = run / CHECKPOINTS_DIR
    steps = checkpoint_steps(folder)
    if not steps:
        raise CheckpointError(f"{run} is neither a run with checkpoints nor a checkpoint")
    newest = step_folder(folder, steps[-1])
    best = json.loads((newest / CHECKPOINT_FILE).read_text())["state"].get("best") or {}
    return step_folder(folder, best["step"]) if best.get("step") in steps else newest


def load(run: Path) -> Checkpoint:
    """The verified checkpoint of a run or checkpoint folder, as `find` selects it. Raises CheckpointError."""
    return verify(find(run))


def consolidate(run: Path, output: Path, *, everything: bool = False) -> Checkpoint:
    """Write the weights of a run or checkpoint folder to one safetensors file under the model's parameter names; with
    `everything` all tensors as `<group>/<name>`, including optimizer state. Raises CheckpointError, OSError.
    """
    checkpoint = load(run)
    if everything:
        tensors = {
            f"{group}/{name}": value for group, part in checkpoint.tensors().items() for name, value in part.items()
        }
    else:
        tensors = checkpoint.weights()
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        save_file(tensors, temporary, {"format": "pt", "step": str(checkpoint.step)})
        fsync(temporary)
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return checkpoint
