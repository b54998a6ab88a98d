"""`plan.json` in a plan's folder: what a launcher started, for `pfcluster status` and for SLURM jobs that end.

Every launcher writes it: on this machine, on Ray and on SLURM. Standard library only.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from pfcluster.config.json_files import try_read_record
from pfcluster.launch.attempts import now
from pfcluster.launch.plan import Command, Plan, Stage, TrainRun
from pfcluster.system.atomic_files import write_atomically
from pfcluster.system.processes import process_started

PLAN_FILE = "plan.json"
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

    def tasks(self) -> list[tuple[str, str, str | None]]:
        """Label, folder and output of each task."""
        return list(zip(self.labels, self.folders, self.outputs, strict=True))

    def with_tasks(self, tasks: Iterable[tuple[str, str, str | None]]) -> StageRecord:
        """The stage with other tasks, given as label, folder and output."""
        rows = list(tasks)
        return replace(
            self, labels=[row[0] for row in rows], folders=[row[1] for row in rows], outputs=[row[2] for row in rows]
        )


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
    process_start: int | None = None
    """When that process started (system/processes.py); None: of a version that did not record it."""
    grows: bool | None = None
    """Whether it is a sweep's, whose tasks are added while it runs; None: of a version that did not record it."""
    also: list[PlanRecord] = field(default_factory=list)
    """Plans whose launchers worked in the folder, too, when this one started."""

    @property
    def launches(self) -> list[PlanRecord]:
        """This plan and those beside it."""
        return [self, *self.also]

    @property
    def elsewhere(self) -> bool:
        """Whether the launcher runs, or ran, on another machine."""
        return self.host != socket.gethostname()

    @property
    def at_work(self) -> bool:
        """Whether the launcher is a process of this machine."""
        started = process_started(self.pid)
        return not self.elsewhere and started is not None and self.process_start in (started, None)


def write_plan(
    plan: Plan, launcher: Launcher, layouts: Mapping[str, tuple[int, int]], also: Sequence[PlanRecord] = ()
) -> None:
    """Record a plan. `layouts`: nodes and processes per node of each stage; `also`: plans beside it. What was recorded
    of a plan that grows is kept.
    """
    stages = {stage.name: _stage_record(stage, layouts.get(stage.name, (1, 1))) for stage in plan.stages}
    earlier = read_plan(plan.folder) if plan.grows else None
    if earlier is not None:
        stages = _grown(earlier.stages, stages)
    plan.folder.mkdir(parents=True, exist_ok=True)
    record = PlanRecord(plan.name, plan.command, launcher, "", "", 0, stages, grows=plan.grows, also=list(also))
    write_record(plan.folder, of_this_process(record))


def read_plan(folder: Path) -> PlanRecord | None:
    """The plan that was started in a folder; None if there is none or its record is damaged. Tasks below the folder are
    found where it is now.
    """
    record = try_read_record(PlanRecord, folder / PLAN_FILE)
    if record is None:
        return None
    root = folder.resolve()
    try:
        return _with_paths(record, lambda path: str(root / path))
    except ValueError:  # lists of tasks that differ in their length
        return None


def folders_before(stages: Mapping[str, StageRecord], name: str, folder: str) -> list[str]:
    """Folders of the tasks that the task of a stage waits for."""
    stage = stages[name]
    folders = [each for before in stage.after if before in stages for each in stages[before].folders]
    if stage.same_seed and folder in stage.folders:
        position = stage.folders.index(folder)
        folders += [stages[before].folders[position] for before in stage.same_seed]
    return folders


def of_this_process(record: PlanRecord) -> PlanRecord:
    """The record with this process as its launcher."""
    pid = os.getpid()
    return replace(record, started=now(), host=socket.gethostname(), pid=pid, process_start=process_started(pid))


def write_record(folder: Path, record: PlanRecord) -> None:
    """Write a record into its folder; folders below its own are relative to it, so that it can be moved."""
    root = folder.resolve()

    def relative(path: str) -> str:
        return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path

    written = asdict(_with_paths(record, relative))
    write_atomically(folder / PLAN_FILE, json.dumps(written, indent=1) + "\n")


def _with_paths(record: PlanRecord, convert: Callable[[str], str]) -> PlanRecord:
    """A record with other paths. Raises ValueError if the lists of a stage differ in their length."""
    stages = {
        name: stage.with_tasks(
            (label, convert(folder), None if output is None else convert(output))
            for label, folder, output in stage.tasks()
        )
        for name, stage in record.stages.items()
    }
    return replace(record, stages=stages, also=[_with_paths(one, convert) for one in record.also])


def _grown(earlier: Mapping[str, StageRecord], newer: Mapping[str, StageRecord]) -> dict[str, StageRecord]:
    """The newer stages with the earlier ones' tasks, which keep their places."""
    grown = dict(newer)
    for name in earlier.keys() & newer.keys():
        tasks = {task[1]: task for stage in (earlier[name], newer[name]) for task in stage.tasks()}
        grown[name] = newer[name].with_tasks(tasks.values())
    return grown


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
