"""Checkpoints: a folder for a step, written aside and renamed, verified when read.

    checkpoints/step-00000500/{model.safetensors, model_optimizer.safetensors, state.json}

`state.json` holds the training state as JSON and the checksum of each file; a folder without it does not count.
Weights and optimizer tensors are safetensors: nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pfcluster.files import flush, sha256, write_atomically

FORMAT = 1
StateDict = dict[str, Tensor]


class CheckpointError(ValueError):
    """A checkpoint that cannot be trusted or does not fit: says which file, why, and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds: tensors by file name (without suffix) and the training state."""

    step: int
    tensors: dict[str, StateDict]
    state: dict[str, Any]


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def save(folder: Path, step: int, tensors: dict[str, StateDict], state: dict[str, Any]) -> Path:
    """Write the checkpoint of a step. Atomic: the folder appears whole under its final name, or not at all.

    Raises OSError where it cannot be written, and leaves no half of it behind.
    """
    final = step_folder(folder, step)
    aside = folder / f".{final.name}.{os.getpid()}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        files = {
            f"{name}.safetensors": _write_tensors(aside / f"{name}.safetensors", values)
            for name, values in tensors.items()
        }
        record = {"format": FORMAT, "step": step, "files": files, "state": state}
        write_atomically(aside / "state.json", json.dumps(record, indent=2) + "\n")
        flush(aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(final, ignore_errors=True)
    os.replace(aside, final)
    flush(folder)
    return final


def _write_tensors(path: Path, values: StateDict) -> dict[str, Any]:
    """Write one file to the disk; its checksum and size. Raises OSError."""
    try:
        save_file({key: value.detach().cpu().contiguous() for key, value in values.items()}, path)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error
    flush(path)
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


def load(path: Path) -> Checkpoint:
    """Read and verify the checkpoint in a folder. Raises CheckpointError."""
    try:
        record = json.loads((path / "state.json").read_text())
        step, files, state = record["step"], record["files"], record["state"]
        if record["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {record['format']}; this version reads format {FORMAT}")
    except OSError as error:
        raise CheckpointError(f"{path} is no checkpoint: cannot read state.json ({error.strerror})") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}/state.json is damaged: {error!r}") from error
    tensors = {}
    for name, expected in files.items():
        file = path / name
        if not file.is_file() or sha256(file) != expected["sha256"]:
            raise CheckpointError(f"{file} is {'damaged: wrong checksum' if file.is_file() else 'missing'}")
        try:
            tensors[file.stem] = load_file(file)
        except SafetensorError as error:
            raise CheckpointError(f"{file} is damaged: {error}") from error
    return Checkpoint(step, tensors, state)


def steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint, ascending. Unfinished folders do not count."""
    return sorted(int(path.parent.name.removeprefix("step-")) for path in folder.glob("step-*/state.json"))


def load_latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that can be trusted (None where there is none), and what is wrong with newer ones.

    Raises CheckpointError where checkpoints exist and none can be trusted: starting over would hide a loss.
    """
    problems: list[str] = []
    for step in reversed(steps(folder)):
        try:
            return load(step_folder(folder, step)), problems
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError(f"no checkpoint in {folder} can be trusted: {'; '.join(problems)}; remove them")
    return None, problems


def retain(folder: Path, keep: int, best: int | None) -> None:
    """Remove all but the newest `keep` checkpoints and the best one, and what unfinished writes left behind."""
    for step in steps(folder)[:-keep]:
        if step != best:
            shutil.rmtree(step_folder(folder, step))
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def find(run: Path) -> Path:
    """The checkpoint folder that a run folder stands for: its best on validation, else its newest.

    A checkpoint's own folder stands for itself. Raises CheckpointError.
    """
    if (run / "state.json").is_file():
        return run
    folder = run / "checkpoints"
    found = steps(folder)
    if not found:
        raise CheckpointError(f"{run} is neither a run with checkpoints nor a checkpoint")
    newest = step_folder(folder, found[-1])
    best = json.loads((newest / "state.json").read_text())["state"].get("best") or {}
    return step_folder(folder, best["step"]) if best.get("step") in found else newest
