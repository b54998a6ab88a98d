"""The run folder: the one place that names its files and knows how they are read and written. No torch.

config.json              config of the run, written when the run claims the folder
requested_config.json    config that a launcher hands to its workers
inputs.json              data and weights that the run reads, by content; see runs/run_inputs.py
provenance.json          command, versions, commit and machine
progress.json            number of steps, and the stage that the run is in
metrics.jsonl            one line per logged training step and per evaluation; see runs/metrics_file.py
ranks.jsonl              milliseconds per rank, one line per logged training step
checkpoints/             step-00000500/...; see checkpoint/store.py
pictures/                image grids; pictures/steps/ those drawn during training
tensorboard/             event files
trackers.json            id of the run in each tracker and what it has received; see tracking/follower.py
trackers/                data of trackers that write to no server
result.json              status and final figures
predictions.safetensors  logits of the test split; see evaluate/predictions.py
early_stop.json          step at which the run ends early; see runs/early_stop.py
failure.json             the batch at which training became non-finite
damaged_samples.json     samples that could not be read, by split: key and reason
warnings.log             warnings of all attempts
profile/                 traces of --profile, snapshots of a GPU's memory
flight_recorder/         the last collectives of each rank of a run that lost one; see training/flight_recorder.py
logs/                    rank-N.log: output of a rank; exit-status-N.json: how it exited
attempts/                one file per attempt and per failed rank; see launch/attempts.py
job.json, task.json      the SLURM job that the task was submitted as, and what it executes
cancelled, .stop         markers: cancelled by the user; a running attempt is asked to stop
.training                lock held by the process that trains in the folder, whichever launcher started it; names it
.training.lease          the same on a file system without locks; see system/leases.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pfcluster.config import ConfigError, RunConfig
from pfcluster.config.io import differences, load, may_change_on_resume, to_json
from pfcluster.config.json_files import convert, read_json, read_object, try_read_object
from pfcluster.system.atomic_files import write_atomically
from pfcluster.system.redaction import redact
from pfcluster.system.walk import walk_through_links

CONFIG_FILE = "config.json"
REQUESTED_CONFIG_FILE = "requested_config.json"
PROVENANCE_FILE = "provenance.json"
PROGRESS_FILE = "progress.json"
METRICS_FILE = "metrics.jsonl"
INPUTS_FILE = "inputs.json"
RANKS_FILE = "ranks.jsonl"
RESULT_FILE = "result.json"
PREDICTIONS_FILE = "predictions.safetensors"
EARLY_STOP_FILE = "early_stop.json"
FAILURE_FILE = "failure.json"
DAMAGED_FILE = "damaged_samples.json"
WARNINGS_FILE = "warnings.log"
JOB_FILE = "job.json"
TASK_FILE = "task.json"
CANCELLED_FILE = "cancelled"
STOP_FILE = ".stop"
TRAINING_LOCK = ".training"
CHECKPOINTS_DIR = "checkpoints"
CHECKPOINT_FILE = "state.json"
PICTURES_DIR = "pictures"
GRIDS_DIR = f"{PICTURES_DIR}/steps"
TENSORBOARD_DIR = "tensorboard"
TRACKERS_FILE = "trackers.json"
TRACKERS_DIR = "trackers"
PROFILE_DIR = "profile"
FLIGHT_RECORDER_DIR = "flight_recorder"
LOGS_DIR = "logs"
ATTEMPTS_DIR = "attempts"
LOG_HEADER = "--- "
"""Begins the line that every attempt writes at its start into the logs of its ranks."""


def log_path(folder: Path, rank: int) -> Path:
    """Output of a rank."""
    return folder / LOGS_DIR / f"rank-{rank}.log"


def exit_status_path(folder: Path, rank: int) -> Path:
    """How the newest process of a rank exited; see launch/worker.py."""
    return folder / LOGS_DIR / f"exit-status-{rank}.json"


def step_folder(checkpoints: Path, step: int) -> Path:
    """Folder of the checkpoint of a step."""
    return checkpoints / f"step-{step:08d}"


def checkpoint_steps(checkpoints: Path) -> list[int]:
    """Steps that have a complete checkpoint, ascending. Other folders beside them, such as copies, are ignored."""
    folders = [path.parent for path in checkpoints.glob(f"step-*/{CHECKPOINT_FILE}")]
    numbers = [name for path in folders if (name := path.name.removeprefix("step-")).isdecimal()]
    return sorted(step for step in map(int, numbers) if step_folder(checkpoints, step) in folders)


def newest_checkpoint_step(folder: Path) -> int:
    """Step of a run's newest complete checkpoint; 0 if there is none."""
    return max(checkpoint_steps(folder / CHECKPOINTS_DIR), default=0)


def find_runs(study: Path) -> Iterator[Path]:
    """Run folders below `study`, sorted by path: folders with a result.json, and those with a config.json alone, which
    are unfinished. Run folders are not searched for further runs, hidden folders are skipped, and links are followed.
    """
    for folder, below, files in walk_through_links(study, lambda error: None):
        is_run = RESULT_FILE in files or (CONFIG_FILE in files and folder != study)
        below[:] = [] if is_run else sorted(name for name in below if not name.startswith("."))
        if is_run:
            yield folder


def enclosing_run(path: Path) -> Path | None:
    """The run folder that is `path` or contains it, e.g. of a checkpoint's folder; None if there is none."""
    return next((folder for folder in (path, *path.parents) if (folder / CONFIG_FILE).is_file()), None)


def read_config(folder: Path) -> RunConfig:
    """A run's config. Raises ConfigError if it is missing or invalid."""
    return load(folder / CONFIG_FILE)


def write_config(folder: Path, config: RunConfig) -> None:
    """Record the config of a run."""
    write_atomically(folder / CONFIG_FILE, to_json(config))


def write_requested_config(folder: Path, config: RunConfig) -> Path:
    """Write the config that workers are to train, creating the folder; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / REQUESTED_CONFIG_FILE
    write_atomically(path, to_json(config))
    return path


def changes_on_resume(
    folder: Path, config: RunConfig, is_moved: Callable[[str, Any, Any], bool] = lambda name, old, new: False
) -> dict[str, tuple[Any, Any]]:
    """Fields that differ between the run recorded in a folder and a config that is to resume it: (old, new) by dotted
    name. Raises ConfigError if any of them may not change on resume, as the folder then belongs to another run.

    `is_moved`: whether the two values of a field are paths of the same content, which may change.
    """
    changed = differences(read_config(folder), config) if (folder / CONFIG_FILE).exists() else {}
    others = {
        name: (old, new)
        for name, (old, new) in changed.items()
        if not may_change_on_resume(name) and not is_moved(name, old, new)
    }
    if others:
        name, (old, new) = next(iter(others.items()))
        raise ConfigError(
            f"{folder} belongs to another config: {name} is {old!r} there and {new!r} here"
            f" ({len(others)} differences); use another folder, or remove that one"
        )
    return changed


def read_result(folder: Path) -> dict[str, Any] | None:
    """Content of result.json; None if there is no such file. Raises JsonFileError if it is damaged."""
    try:
        return read_object(folder / RESULT_FILE)
    except FileNotFoundError:
        return None


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Write result.json."""
    write_atomically(folder / RESULT_FILE, json.dumps(result, indent=2) + "\n")


def is_finished(folder: Path) -> bool:
    """Whether result.json says that the run finished; False if it is missing or damaged."""
    result = try_read_object(folder / RESULT_FILE)
    return result is not None and result.get("status") == "finished"


def write_failure(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write failure.json; returns its path."""
    path = folder / FAILURE_FILE
    write_atomically(path, json.dumps(record, indent=2) + "\n")
    return path


def write_damaged(folder: Path, damaged: Mapping[str, Mapping[str, str]]) -> None:
    """Write damaged_samples.json: split -> key -> reason."""
    write_atomically(folder / DAMAGED_FILE, json.dumps(damaged, indent=1) + "\n")


def read_damaged(folder: Path) -> dict[str, dict[str, str]]:
    """The damaged samples of earlier attempts; empty if there are none. Raises JsonFileError."""
    try:
        return dict(convert(dict[str, dict[str, str]], read_json(folder / DAMAGED_FILE), str(folder / DAMAGED_FILE)))
    except FileNotFoundError:
        return {}


def read_progress(folder: Path) -> dict[str, Any]:
    """`total_steps` and `stage`; empty before the run has reported them, and if the file is damaged."""
    values = try_read_object(folder / PROGRESS_FILE) or {}
    valid = type(values.get("total_steps")) is int and isinstance(values.get("stage"), str)
    return values if valid else {}


def write_progress(folder: Path, total_steps: int, stage: str) -> None:
    """Report the number of steps and the stage ("train", "evaluate")."""
    write_atomically(folder / PROGRESS_FILE, json.dumps({"total_steps": total_steps, "stage": stage}) + "\n")


def remove_exit_statuses(folder: Path) -> None:
    """Remove those of earlier attempts, which may have had more ranks."""
    for path in (folder / LOGS_DIR).glob("exit-status-*.json"):
        path.unlink(missing_ok=True)


def append_warning(folder: Path, message: str) -> None:
    """Append a line to warnings.log, without secrets: messages of other packages may have them."""
    with open(folder / WARNINGS_FILE, "a", encoding="utf-8") as file:
        file.write(redact(message) + "\n")


def logged_error(folder: Path) -> str | None:
    """The last `error: ...` line of the newest attempt, without the prefix; of the lowest rank that has one."""
    size: int | None = None
    """Number of ranks of the newest attempt; earlier ones may have had more, whose logs remain."""
    ranks = [path.stem.removeprefix("rank-") for path in (folder / LOGS_DIR).glob("rank-*.log")]
    for rank in sorted(int(rank) for rank in ranks if rank.isdecimal()):
        if size is not None and rank >= size:
            break
        lines = log_path(folder, rank).read_text(encoding="utf-8", errors="replace").splitlines()
        starts = [number for number, line in enumerate(lines) if line.startswith(LOG_HEADER)]
        if starts and (header := re.search(r" rank \d+ of (\d+) on ", lines[starts[-1]])):
            size = size or int(header.group(1))
        lines = lines[starts[-1] if starts else 0 :]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if errors:
            return errors[-1]
    return None
