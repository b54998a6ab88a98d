"""`plan.json` in a plan's folder: what a launcher started, for `pfcluster status` and for SLURM jobs that end.

Every launcher writes it: on this machine, on Ray and on SLURM. Standard library only.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from pfcluster.config import ConfigError
from pfcluster.config.json_files import try_read_record
from pfcluster.launch.attempts import now
from pfcluster.launch.plan import Command, Plan, Stage, TrainRun
from pfcluster.launch.training_lock import QUIET_SECONDS
from pfcluster.runs.atomic_files import write_atomically
from pfcluster.runs.locks import FileLock, owner_text

PLAN_FILE = "plan.json"
LAUNCHER_LOCK = ".launcher"
"""Locked by a launcher on this machine or on Ray while it works on the plan, and by the driver of a sweep, also on
SLURM."""
Launcher = Literal["local", "ray", "slurm"]


@dataclass(frozen=True)
class StageRecord:
    """A stage of a recorded plan. The lists hold one entry per task."""

    after: list[str]
    always_run: bool
    labels: list[str]
    folders: list[str]
    outputs: list[str | None]
    """File that a command produces, if it is known."""
    trains: bool
    """Whether the tasks are training runs."""
    nodes: int = 1
    per_node: int = 1
    same_seed: list[str] = field(default_factory=list)
    """Stages of which each task waits only for the task at its own position."""

    @property
    def predecessors(self) -> list[str]:
        """All stages that it waits for."""
        return [*self.after, *self.same_seed]


@dataclass(frozen=True)
class PlanRecord:
    """A plan as it was started last."""

    name: str
    command: str
    launcher: Launcher
    started: str
    host: str
    pid: int
    """Process of the launcher on `host`."""
    stages: dict[str, StageRecord]


def write_plan(plan: Plan, launcher: Launcher, layouts: Mapping[str, tuple[int, int]]) -> None:
    """Record a plan. `layouts`: nodes and processes per node of each stage."""
    stages = {stage.name: _stage_record(stage, layouts.get(stage.name, (1, 1))) for stage in plan.stages}
    plan.folder.mkdir(parents=True, exist_ok=True)
    _write(plan.folder, PlanRecord(plan.name, plan.command, launcher, now(), socket.gethostname(), os.getpid(), stages))


def read_plan(folder: Path) -> PlanRecord | None:
    """The plan that was started in a folder; None if there is none or its record is damaged."""
    return try_read_record(PlanRecord, folder / PLAN_FILE)


def folders_before(stages: Mapping[str, StageRecord], name: str, folder: str) -> list[str]:
    """Folders of the tasks that the task of a stage waits for."""
    stage = stages[name]
    folders = [each for before in stage.after for each in stages[before].folders]
    if stage.same_seed and folder in stage.folders:
        position = stage.folders.index(folder)
        folders += [stages[before].folders[position] for before in stage.same_seed]
    return folders


@contextmanager
def launching(plan: Plan, launcher: Launcher, layouts: Mapping[str, tuple[int, int]]) -> Iterator[None]:
    """Record a plan, and hold the launcher's lock while it runs."""
    write_plan(plan, launcher, layouts)
    with FileLock(plan.folder / LAUNCHER_LOCK) as lock:
        lock.acquire(shared=True)
        yield


@contextmanager
def driving(folder: Path) -> Iterator[None]:
    """Hold the launcher's lock of a plan that grows while this process, and no other one, drives it. An earlier record
    of the plan then names this process. Raises ConfigError if another process drives it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + QUIET_SECONDS
    with FileLock(folder / LAUNCHER_LOCK) as lock:
        if not lock.wait(lambda: time.monotonic() > deadline):
            shown = shlex.quote(str(folder))
            raise ConfigError(
                f"{folder} is in progress{owner_text(lock.path)}: `pfcluster status {shown}` shows it,"
                f" `pfcluster cancel {shown}` ends it"
            )
        record = read_plan(folder)
        if record is not None:
            _write(folder, replace(record, started=now(), host=socket.gethostname(), pid=os.getpid()))
        yield


def _write(folder: Path, record: PlanRecord) -> None:
    write_atomically(folder / PLAN_FILE, json.dumps(asdict(record), indent=1) + "\n")


def _stage_record(stage: Stage, layout: tuple[int, int]) -> StageRecord:
    produced = [task.produces if isinstance(task, Command) else None for task in stage.tasks]
    return StageRecord(
        after=list(stage.after),
        always_run=stage.always_run,
        labels=[task.label for task in stage.tasks],
        folders=[str(task.folder.resolve()) for task in stage.tasks],
        outputs=[None if path is None else str(path.resolve()) for path in produced],
        trains=isinstance(stage.tasks[0], TrainRun),
        nodes=layout[0],
        per_node=layout[1],
        same_seed=list(stage.same_seed),
    )
