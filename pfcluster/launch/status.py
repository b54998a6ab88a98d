"""What runs, where and how far it is: the queue, the attempts and the metrics of a plan's tasks, in one value."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pfcluster.launch import attempts
from pfcluster.launch.attempts import Attempt
from pfcluster.launch.plan import RECORD
from pfcluster.launch.slurm import client
from pfcluster.launch.slurm.client import JobInfo, SlurmError
from pfcluster.runs.folder import (
    CANCELLED_FILE,
    LOGS_DIR,
    REQUESTED_CONFIG_FILE,
    RESULT_FILE,
    last_metrics,
    log_path,
    read_progress,
    try_read_object,
)

BAD = ("failed", "lost", "timed out", "not run")
OVER = (*BAD, "finished", "cancelled")


class StatusError(ValueError):
    """A name that stands for nothing here."""


@dataclass(frozen=True)
class Line:
    """One task."""

    group: str
    label: str
    folder: Path
    state: str
    """finished, running, evaluating, queued, waiting, ending, failed, lost, timed out, cancelled, not run or not
    started.
    """
    why: str = ""
    """Why it waits, or what became of it."""
    job: str = ""
    step: int | None = None
    total: int | None = None
    loss: float | None = None
    rate: float | None = None
    """Images a second."""
    seconds_left: float | None = None
    restarts: int = 0
    failures: int = 0
    nodes: str = ""
    error: str | None = None


@dataclass(frozen=True)
class Overview:
    """A plan's tasks as they stand."""

    name: str
    folder: Path
    command: str
    lines: tuple[Line, ...]
    warning: str | None = None

    @property
    def over(self) -> bool:
        return all(line.state in OVER for line in self.lines)

    @property
    def well(self) -> bool:
        return all(line.state == "finished" for line in self.lines)


def find(name: str, root: Path = Path("runs")) -> Path:
    """The folder of a plan by its path, or its name under `root`. Raises StatusError that lists what there is."""
    for place in (Path(name), root / name):
        if (place / RECORD).is_file():
            return place
    known = [record.parent for record in records(root)]
    for place in known:
        if json.loads((place / RECORD).read_text())["name"] == name:
            return place
    names = ", ".join(str(place) for place in known) or f"nothing under {root}"
    raise StatusError(f"nothing was submitted as {name}; there is {names}")


def records(root: Path) -> list[Path]:
    """Records of all that was submitted under a folder, newest last."""
    found = [*root.glob(RECORD), *root.glob(f"*/{RECORD}"), *root.glob(f"*/*/{RECORD}")]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def overview(folder: Path) -> Overview:
    """How a plan stands, from the queue and from its folders."""
    record = json.loads((folder / RECORD).read_text())
    tasks = [
        (name, label, Path(place))
        for name, group in record["groups"].items()
        for label, place in zip(group["labels"], group["folders"], strict=True)
    ]
    jobs = {place: attempts.submitted(place).job for _, _, place in tasks}
    warning, seen = None, {}
    try:
        seen = client.states(jobs.values())
    except SlurmError as error:
        warning = f"{error}; shown is what the folders know"
    lines = [_line(name, label, place, seen.get(jobs[place]), warning is None) for name, label, place in tasks]
    lines = [_with_cause(line, record["groups"], lines) for line in lines]
    return Overview(record["name"], folder, record["command"], tuple(lines), warning)


def _line(group: str, label: str, folder: Path, seen: JobInfo | None, asked: bool) -> Line:
    known = attempts.read(folder)
    last = known[-1] if known else None
    submitted = attempts.submitted(folder)
    result = try_read_object(folder / RESULT_FILE) or {}
    alive = seen is not None and seen.alive
    state, why = _state(folder, result, last, seen, submitted.job, asked)
    own = [attempt for attempt in known if attempt.submission == submitted.submission]
    line = Line(
        group,
        label,
        folder,
        state,
        why,
        submitted.job,
        restarts=max(0, len(own) - 1),
        failures=sum(attempt.outcome == "failed" for attempt in own),
        nodes=(seen.nodes if alive and seen is not None else "") or (last.nodes if last else ""),
        error=last.error if last is not None and state in (*BAD, "queued") else None,
    )
    return _with_metrics(line, folder)


def _state(
    folder: Path, result: Mapping[str, Any], last: Attempt | None, seen: JobInfo | None, job: str, asked: bool
) -> tuple[str, str]:
    """A task's state, and why."""
    if seen is not None and seen.alive:
        return _alive(folder, last, seen)
    if result.get("status") == "finished" or (last is not None and last.outcome == "finished"):
        return "finished", ""
    if (folder / CANCELLED_FILE).exists():
        return "cancelled", ""
    if last is None:
        if seen is not None:
            return ("not run", "") if seen.state == "CANCELLED" else ("lost", seen.state)
        return ("not run", "") if job and asked else ("not started", "")
    if last.job and job and last.job != job and seen is not None and seen.state == "CANCELLED":
        return "not run", ""
    if last.outcome in ("failed", "cancelled"):
        return last.outcome, last.next or ""
    if seen is None and not asked:
        return "unknown", ""
    if seen is not None and seen.state == "TIMEOUT":
        return "timed out", "it did not stop in time; the same command goes on"
    ended = f"SLURM says {seen.state}" if seen is not None else "SLURM has forgotten it"
    return "lost", f"{ended}; the same command goes on"


def _alive(folder: Path, last: Attempt | None, seen: JobInfo) -> tuple[str, str]:
    if seen.hopeless:
        return "not run", "what it waits for ended badly"
    if seen.state == "PENDING":
        if seen.reason == "Dependency":
            return "waiting", ""
        restarting = last is not None and last.next is not None and last.next.startswith(("requeued", "submitted"))
        return "queued", f"{last.outcome}, again" if restarting and last is not None else seen.reason
    if seen.state == "COMPLETING":
        return "ending", last.outcome if last is not None and last.outcome != "running" else ""
    if seen.state not in ("RUNNING", "SIGNALING"):
        return "queued", seen.state
    stage = read_progress(folder).get("stage")
    return ("evaluating" if stage == "evaluate" else "running"), ""


def _with_metrics(line: Line, folder: Path) -> Line:
    train = last_metrics(folder, "train")
    total = read_progress(folder).get("total_steps")
    if train is None:
        return replace(line, total=total)
    rate = train.get("images_per_second")
    config = try_read_object(folder / REQUESTED_CONFIG_FILE) or {}
    left = None
    if line.state == "running" and total and rate:
        left = (total - train["step"]) * config.get("batch_size", 0) / rate
    return replace(line, step=train["step"], total=total, loss=train.get("loss"), rate=rate, seconds_left=left)


def _with_cause(line: Line, groups: Mapping[str, Any], lines: Sequence[Line]) -> Line:
    """For a task that waits, or will never run: for what."""
    if line.state not in ("waiting", "not run"):
        return line
    before = [other for other in lines if other.group in groups[line.group]["after"] and other.state != "finished"]
    names = list(dict.fromkeys(other.group for other in before))
    if line.state == "waiting":
        return replace(line, why=f"for {', '.join(names)}" if names else line.why)
    bad = [other for other in before if other.state in (*BAD, "cancelled")]
    return replace(line, why=f"{bad[0].group} {bad[0].state}" if bad else line.why)


def cancel(folder: Path) -> list[str]:
    """Take what is queued from the queue and have what runs save itself and end; the labels of these tasks."""
    found = overview(folder)
    ending = [line for line in found.lines if line.state not in OVER and line.job]
    for line in ending:
        (line.folder / CANCELLED_FILE).touch()
    client.cancel(line.job for line in ending)
    return [line.label for line in ending]


def log_of(folder: Path, rank: int, task: str | None) -> Path:
    """A rank's log of a task by its label or group; without one of what failed, else of what runs, else of the last
    that has a log. Raises StatusError.
    """
    found = overview(folder)
    lines = [line for line in found.lines if task in (None, line.label, line.group, line.folder.name)]
    if not lines:
        labels = ", ".join(line.label for line in found.lines)
        raise StatusError(f"{found.name} has no task {task!r}; there are {labels}")
    lines = [line for line in lines if log_path(line.folder, rank).exists()]
    if not lines:
        raise StatusError(f"no rank {rank} of {found.name}{f', {task},' if task else ''} has written a log yet")
    order = {"failed": 0, "lost": 0, "timed out": 0, "running": 1, "evaluating": 1}
    best = min(lines, key=lambda line: (order.get(line.state, 2), -(line.folder / LOGS_DIR).stat().st_mtime))
    return log_path(best.folder, rank)


def show_log(path: Path, lines: int, follow: bool) -> None:
    """Print the end of a log. With `follow` this process becomes `tail -F`."""
    arguments = ["tail", "-n", str(lines), *(["-F"] if follow else []), str(path)]
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execvp("tail", arguments)
