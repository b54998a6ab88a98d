"""Checkpoints: a folder for a step, written by all ranks aside, renamed when whole, verified when read.

    checkpoints/step-00000500/{shard-00001-model-00001-of-00001.safetensors, ..., state.json}

`state.json` holds the training state as JSON, every tensor's shape and each file's checksum; a folder without it does
not count. Any number of ranks under any engine reads what any other wrote (`checkpoint/dcp.py`); `consolidate` makes
one file.
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
from pfcluster.checkpoint.tensor_shards import TensorShards, whole_shard
from pfcluster.runs.atomic_files import fsync, sha256, write_atomically
from pfcluster.runs.folder import CHECKPOINT_FILE, CHECKPOINTS_DIR, checkpoint_steps, step_folder

FORMAT = 2
StateDict = dict[str, Tensor]


class CheckpointError(ValueError):
    """A checkpoint that cannot be trusted or does not fit: says which file, why, and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What `state.json` says of a checkpoint."""

    step: int
    path: Path
    shapes: dict[str, tuple[int, ...]]
    """Of all tensors, `model/<name>`, `model_optimizer/<name>/<slot>`, `model_ema/<name>`, and the discriminator's."""
    state: dict[str, Any]

    def read_into(self, tensor_shards: TensorShards) -> None:
        """Fill views of what a rank holds. Raises CheckpointError where they are not all there."""
        try:
            dcp.read(tensor_shards, self.path)
        except dcp.DamageError as error:
            raise CheckpointError(f"{error}; this checkpoint belongs to another model or is damaged") from error

    def tensors(self, *groups: str) -> dict[str, StateDict]:
        """Whole tensors on the CPU by group (`model`, `discriminator_optimizer`, ...; none given: all) and name."""
        kinds = dcp.dtypes(self.path)
        wanted = [key for key in self.shapes if not groups or key.split("/", 1)[0] in groups]
        missing = [key for key in wanted if key not in kinds]
        if missing:
            raise CheckpointError(f"{self.path} is damaged: it has no {missing[0]}")
        whole = {key: torch.empty(self.shapes[key], dtype=kinds[key]) for key in wanted}
        self.read_into({key: whole_shard(value) for key, value in whole.items() if value.numel()})
        found: dict[str, StateDict] = {}
        for key, value in whole.items():
            group, name = key.split("/", 1)
            found.setdefault(group, {})[name] = value
        return found

    def weights(self) -> StateDict:
        """The model's whole weights as they are evaluated: their moving average where one is kept."""
        group = "model_ema" if any(key.startswith("model_ema/") for key in self.shapes) else "model"
        return self.tensors(group)[group]


def aside(folder: Path, step: int) -> Path:
    """Where a checkpoint is written before it counts."""
    return folder / f".step-{step:08d}.tmp"


def commit(folder: Path, step: int, shapes: dict[str, tuple[int, ...]], state: dict[str, Any]) -> None:
    """Make the checkpoint that lies aside count: checksums, `state.json`, its final name. Raises OSError."""
    written, final = aside(folder, step), step_folder(folder, step)
    files = {
        path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in written.glob("*.safetensors")
    }
    record = {"format": FORMAT, "step": step, "files": files, "shapes": shapes, "state": state}
    write_atomically(written / CHECKPOINT_FILE, json.dumps(record) + "\n")
    fsync(written)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(written, final)
    fsync(folder)


def verify(path: Path) -> Checkpoint:
    """Read a checkpoint's record and compare its files with their checksums. Raises CheckpointError."""
    try:
        record = json.loads((path / CHECKPOINT_FILE).read_text())
        if record["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {record['format']}; this version reads format {FORMAT}")
        shapes = {key: tuple(shape) for key, shape in record["shapes"].items()}
        found, files = Checkpoint(record["step"], path, shapes, record["state"]), dict(record["files"])
    except OSError as error:
        raise CheckpointError(f"{path} is no checkpoint: cannot read state.json ({error.strerror})") from error
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}/state.json is damaged: {error!r}") from error
    for name, expected in files.items():
        file = path / name
        if not file.is_file() or sha256(file) != expected["sha256"]:
            raise CheckpointError(f"{file} is {'damaged: wrong checksum' if file.is_file() else 'missing'}")
    extra = sorted({file.name for file in path.glob("*.safetensors")} - set(files))
    if extra:
        raise CheckpointError(f"{path / extra[0]} does not belong there")
    return found


def latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that can be trusted (None where there is none), and what is wrong with newer ones.

    Raises CheckpointError where checkpoints exist and none can be trusted: starting over would hide a loss.
    """
    problems: list[str] = []
    for step in reversed(checkpoint_steps(folder)):
        try:
            return verify(step_folder(folder, step)), problems
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError(f"no checkpoint in {folder} can be trusted: {'; '.join(problems)}; remove them")
    return None, problems


def retain(folder: Path, keep: int, best: int | None) -> None:
    """Remove all but the newest `keep` checkpoints and the best one."""
    for step in checkpoint_steps(folder)[:-keep]:
        if step != best:
            shutil.rmtree(step_folder(folder, step))


def sweep(folder: Path) -> None:
    """Remove what unfinished writes left behind. Nobody may be writing."""
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def find(run: Path) -> Path:
    """The checkpoint folder that a run folder stands for: its best on validation, else its newest.

    A checkpoint's own folder stands for itself. Raises CheckpointError.
    """
    if (run / CHECKPOINT_FILE).is_file():
        return run
    folder = run / CHECKPOINTS_DIR
    found = checkpoint_steps(folder)
    if not found:
        raise CheckpointError(f"{run} is neither a run with checkpoints nor a checkpoint")
    newest = step_folder(folder, found[-1])
    best = json.loads((newest / CHECKPOINT_FILE).read_text())["state"].get("best") or {}
    return step_folder(folder, best["step"]) if best.get("step") in found else newest


def load(run: Path) -> Checkpoint:
    """The verified checkpoint that a run's or checkpoint's folder stands for. Raises CheckpointError."""
    return verify(find(run))


def consolidate(run: Path, output: Path, *, everything: bool = False) -> Checkpoint:
    """Write the weights of a run's or checkpoint's folder as one safetensors file, by the model's own names; with
    `everything` all tensors by `<group>/<name>`, optimizers' too. Raises CheckpointError, OSError.
    """
    record = load(run)
    if everything:
        values = {
            f"{group}/{name}": value for group, tensors in record.tensors().items() for name, value in tensors.items()
        }
    else:
        values = record.weights()
    output.parent.mkdir(parents=True, exist_ok=True)
    written = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        save_file(values, written, {"format": "pt", "step": str(record.step)})
        fsync(written)
        os.replace(written, output)
    finally:
        written.unlink(missing_ok=True)
    return record
