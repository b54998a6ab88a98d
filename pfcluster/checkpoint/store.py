"""Checkpoint folders: one per step, written to a staging folder by all ranks, renamed when complete, verified on read.

    checkpoints/step-00000500/{shard-00001-model-00001-of-00001.safetensors, ..., state.json}

`state.json` holds the training state as JSON, the shape of every tensor, the checksum of every file, and a checksum of
itself. A folder without it is incomplete and ignored. Any number of ranks, under any engine, can read a checkpoint that
another layout wrote (`checkpoint/dcp.py`); `consolidate` writes a single file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pfcluster.checkpoint import dcp
from pfcluster.checkpoint.tensor_shards import TensorShards, unsharded
from pfcluster.runs.folder import CHECKPOINT_FILE, CHECKPOINTS_DIR, checkpoint_steps, step_folder
from pfcluster.system.atomic_files import fsync, sha256, write_atomically
from pfcluster.system.os_errors import retry_transient

FORMAT = 4
StateDict = dict[str, Tensor]


class CheckpointError(ValueError):
    """A checkpoint is damaged or belongs to another model: names the file, the reason and the remedy."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder and the content of its `state.json`."""

    step: int
    path: Path
    shapes: dict[str, tuple[int, ...]]
    """Shapes of all tensors: `model/<name>`, `model_optimizer/<name>/<slot>`, `model_ema/<name>`; also
    `discriminator...`."""
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
        """Full weights of the model for evaluation: the moving average if the run keeps one. Raises CheckpointError."""
        group = "model_ema" if any(key.startswith("model_ema/") for key in self.shapes) else "model"
        return self.tensors(group)[group]


def staging_dir(folder: Path, step: int) -> Path:
    """Folder in which the checkpoint of a step is written before it is complete."""
    return folder / f".step-{step:08d}.tmp"


def commit(
    folder: Path, step: int, names: Sequence[str], shapes: dict[str, tuple[int, ...]], state: dict[str, Any]
) -> None:
    """Complete a staged checkpoint of the named files: write checksums and `state.json`, rename the folder. Raises
    OSError.
    """
    staging, final = staging_dir(folder, step), step_folder(folder, step)
    paths = [staging / name for name in names]
    files = {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in paths}
    record = {"format": FORMAT, "step": step, "files": files, "shapes": shapes, "state": state}
    write_atomically(staging / CHECKPOINT_FILE, json.dumps(record | {"sha256": _seal(record)}) + "\n")
    fsync(staging)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(staging, final)
    fsync(folder)


def _seal(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record without its own seal, independent of the order and spacing of its fields."""
    values = json.loads(json.dumps({name: value for name, value in record.items() if name != "sha256"}))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def verify(path: Path) -> Checkpoint:
    """Read `state.json` and compare it and all files with their checksums. Raises CheckpointError for damage, OSError
    for a file that cannot be opened.
    """
    checkpoint, files = _read_record(path)
    for name, expected in files.items():
        file = path / name
        if not file.is_file() or _checksum(file) != expected:
            raise CheckpointError(f"{file} is {'damaged: wrong checksum' if file.is_file() else 'missing'}")
    extra = sorted({file.name for file in path.glob("*.safetensors")} - set(files))
    if extra:
        raise CheckpointError(f"{path / extra[0]} is not part of the checkpoint; remove it")
    return checkpoint


def _read_record(path: Path) -> tuple[Checkpoint, dict[str, str]]:
    """The content of `state.json`, and the checksum of every file. Raises CheckpointError, OSError."""
    file = path / CHECKPOINT_FILE
    try:
        record = json.loads(_read(file))
        if record["format"] != FORMAT:
            raise CheckpointError(
                f"{path} has format {record['format']!r}; this version reads format {FORMAT}: train the run again, or"
                " use the version of pfcluster that wrote it"
            )
        if record["sha256"] != _seal(record):
            raise CheckpointError(f"{file} is damaged: wrong checksum")
        shapes = {key: tuple(shape) for key, shape in record["shapes"].items()}
        files = {name: expected["sha256"] for name, expected in record["files"].items()}
        is_number = path.name.removeprefix("step-").isdecimal()  # a copy may be called step-00000500.bak
        if is_number and step_folder(path.parent, record["step"]) != path:
            raise CheckpointError(f"{file} is that of step {record['step']}: it was copied from another folder")
        return Checkpoint(record["step"], path, shapes, dict(record["state"])), files
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(f"{path} is not a checkpoint: it has no {CHECKPOINT_FILE}") from error
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: {error!r}") from error


def _read(file: Path) -> bytes:
    """Raises CheckpointError if the medium is defective, OSError if the file cannot be opened."""
    try:
        return retry_transient(file.read_bytes)
    except OSError as error:
        raise _unreadable(file, error) from error


def _checksum(file: Path) -> str:
    """Raises as `_read`."""
    try:
        return retry_transient(lambda: sha256(file))
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> Exception:
    """The exception for a read error: EIO after several attempts means a damaged file, other errors may be
    temporary."""
    if error.errno == errno.EIO:
        return CheckpointError(f"{file} is damaged: {error.strerror} (EIO)")
    return error


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
            f"all checkpoints in {folder} are damaged: {'; '.join(problems)}; restore one from a backup, or"
            " move them away to start over"
        )
    return None, problems


def retain(folder: Path, keep: int, best: int | None) -> None:
    """Remove all checkpoints except the newest `keep` and the one of step `best`."""
    for step in checkpoint_steps(folder)[:-keep]:
        if step != best:
            removed = folder / f".step-{step:08d}.removed.tmp"  # `remove_incomplete` removes what is left of it
            shutil.rmtree(removed, ignore_errors=True)
            os.replace(step_folder(folder, step), removed)
            shutil.rmtree(removed, ignore_errors=True)  # a file that is open elsewhere on NFS stays for a while


def set_aside_newer(folder: Path, step: int) -> None:
    """Rename the checkpoints newer than a step to `step-N.damaged`. Call where `latest` found them damaged, so that
    `retain` does not count them among the newest. Raises OSError.
    """
    for newer in checkpoint_steps(folder):
        if newer > step:
            path = step_folder(folder, newer)
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)


def remove_incomplete(folder: Path) -> None:
    """Remove the staging folders of interrupted writes and removals. Call only while no writer is active."""
    for path in folder.glob(".step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def find(run: Path) -> Path:
    """The checkpoint folder of a run: the best on validation, else the newest. The path of a checkpoint folder is
    returned as it is. Raises CheckpointError if there is none, OSError.
    """
    return _candidates(run, lambda problem: None)[0]


def load(run: Path, warn: Callable[[str], None] | None = None) -> Checkpoint:
    """The verified checkpoint of a run or checkpoint folder, as `find` selects it. If the best one is damaged, the
    newest intact one, with a message to `warn`, by default stderr. Raises CheckpointError if there is none, OSError.
    """
    warn = warn or _print_warning
    problems: list[str] = []
    for path in _candidates(run, warn):
        try:
            checkpoint = verify(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            warn(f"{problems[0]}; the checkpoint of step {checkpoint.step} is used instead")
        return checkpoint
    raise CheckpointError("; ".join(problems))


def _candidates(run: Path, warn: Callable[[str], None]) -> list[Path]:
    """Checkpoint folders of a run in order of preference: the best, then the newest first. Never empty."""
    if (run / CHECKPOINT_FILE).is_file():
        return [run]
    folder = run / CHECKPOINTS_DIR
    newest_first = [step_folder(folder, step) for step in reversed(checkpoint_steps(folder))]
    if not newest_first:
        raise CheckpointError(f"{run} is neither a run with checkpoints nor a checkpoint")
    for path in newest_first:
        try:
            best = _read_record(path)[0].state.get("best")
            preferred = path if best is None else step_folder(folder, int(best["step"]))
        except (CheckpointError, KeyError, TypeError, ValueError) as error:
            problem = error if isinstance(error, CheckpointError) else f"{path / CHECKPOINT_FILE} is damaged: {error!r}"
            warn(f"{problem}; an older checkpoint says which one is the best")
            continue
        return sorted(newest_first, key=lambda other: other != preferred)  # stable: the others stay as they are
    return newest_first


def _print_warning(problem: str) -> None:
    print(f"warning: {problem}", file=sys.stderr, flush=True)


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
