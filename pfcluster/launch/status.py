"""The state of plans that were started on this machine, on Ray or on SLURM, from their folders and SLURM's queue."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pfcluster.config import ConfigError
from pfcluster.config.json_files import try_read_object
from pfcluster.launch import slurm_client
from pfcluster.launch.launcher_lock import LAUNCHER_LOCK
from pfcluster.launch.local_state import task_state
from pfcluster.launch.plan_record import (
    PLAN_FILE,
    PlanRecord,
    StageRecord,
    folders_before,
    read_plan,
)
from pfcluster.launch.slurm.job_state import slurm_tasks
from pfcluster.launch.task_status import BAD, ENDED, TaskStatus
from pfcluster.runs.folder import CANCELLED_FILE, REQUESTED_CONFIG_FILE, log_path, read_config, read_progress
from pfcluster.runs.metrics_file import last_metrics
from pfcluster.system.locks import is_locked

LOG_ORDER = {"failed": 0, "lost": 0, "timed out": 0, "running": 1, "evaluating": 1}
"""Which task's log is shown first."""
DRIVER_SECONDS = 60.0
"""Time in which a sweep's driver must end: its current round may wait for SLURM's controller."""
RETRIES = "the same command with --retry-failed continues it"
RESTORE = "restore its config, or remove its folder"


class StatusError(ValueError):
    """A name for which there is no plan, task or log."""


@dataclass(frozen=True)
class Overview:
    """The tasks of a plan with their states."""

    name: str
    folder: Path
    command: str
    launcher: str
    tasks: tuple[TaskStatus, ...]
    warning: str | None = None
    at_work: bool = False
    """Whether a launcher is at work, which may start further tasks."""

    @property
    def all_ended(self) -> bool:
        return not self.at_work and all(task.state in ENDED for task in self.tasks)

    @property
    def all_finished(self) -> bool:
        return all(task.state == "finished" for task in self.tasks)


def find_plan(name: str, root: Path = Path("runs")) -> Path:
    """The folder of a plan, given its path, a folder that holds one plan, or its name under `root`.

    Raises StatusError that lists the plans.
    """
    for folder in (Path(name), root / name):
        if (folder / PLAN_FILE).is_file():
            return folder
        within = plan_folders(folder)
        if len(within) == 1:
            return within[0]
        if within:
            raise StatusError(f"{folder} holds several plans: {', '.join(map(str, within))}; name one of them")
    folders = plan_folders(root)
    for folder in folders:
        plan = read_plan(folder)
        if plan is not None and plan.name == name:
            return folder
    names = ", ".join(str(folder) for folder in folders) or f"nothing under {root}"
    raise StatusError(f"nothing was started as {name}; there is {names}")


def plan_folders(root: Path) -> list[Path]:
    """Folders of all plans under a folder, the newest last."""
    records = [*root.glob(PLAN_FILE), *root.glob(f"*/{PLAN_FILE}"), *root.glob(f"*/*/{PLAN_FILE}")]
    return [record.parent for record in sorted(records, key=lambda path: path.stat().st_mtime)]


def overview(folder: Path) -> Overview:
    """The state of a plan. Raises StatusError if the folder has none."""
    plan, at_work = _read(folder), is_locked(folder / LAUNCHER_LOCK)
    tasks: dict[Path, TaskStatus] = {}
    warnings: list[str] = []
    for launch in plan.launches:
        found, warning = _tasks(launch, launcher_alive=at_work and (launch.elsewhere or launch.at_work))
        found = [_with_config(task, launch) for task in found]
        found = [_retried(_with_reason(_with_metrics(task), launch.stages, found), launch) for task in found]
        tasks = {task.folder: task for task in found} | tasks
        warnings += [] if warning is None else [warning]
    return Overview(
        plan.name, folder, plan.command, plan.launcher, tuple(tasks.values()), next(iter(warnings), None), at_work
    )


@dataclass(frozen=True)
class Cancelled:
    """What was stopped."""

    tasks: list[str]
    """Labels of the tasks that were queued or running."""
    launcher: bool
    """Whether a launcher at work was told to end."""


def cancel(folder: Path) -> Cancelled:
    """Stop a plan: cancel queued jobs, and let runs write a checkpoint and stop.

    A sweep's driver is ended first, so that it does not take cancelled trials for failed ones. Raises StatusError for a
    plan whose launcher runs on another machine.
    """
    plan, at_work = _read(folder), is_locked(folder / LAUNCHER_LOCK)
    tasks = [task for task in overview(folder).tasks if task.state not in ENDED] if at_work else []
    if at_work:
        _end_launchers(folder, plan)
    if any(launch.launcher == "slurm" for launch in plan.launches):
        if at_work and plan.launcher == "slurm":
            _wait_for_driver(folder, plan.pid)
            tasks = []
        queued = [task for task in overview(folder).tasks if task.state not in ENDED and task.job]
        for task in queued:
            (task.folder / CANCELLED_FILE).touch()
        slurm_client.cancel(task.job for task in queued)
        tasks += [task for task in queued if task.folder not in [each.folder for each in tasks]]
    return Cancelled([task.label for task in tasks], at_work)


def _end_launchers(folder: Path, plan: PlanRecord) -> None:
    """Tell the launchers of this machine to end. Raises StatusError if others are, or may be, at work."""
    launches = [one for one in plan.launches if one.grows or one.launcher != "slurm"]  # others have left jobs only
    elsewhere = sorted({launch.host for launch in launches if launch.elsewhere})
    here = [launch.pid for launch in launches if launch.at_work]
    for process in here:
        with suppress(ProcessLookupError):  # it has ended since
            os.kill(process, signal.SIGTERM)
    if elsewhere:
        raise StatusError(f"{folder} was started on {' and '.join(elsewhere)}: cancel it there")
    if not here:
        raise StatusError(f"{folder} is in progress, but {PLAN_FILE} does not name the process; end it yourself")


def _wait_for_driver(folder: Path, process: int) -> None:
    """Wait until the driver of a sweep on SLURM has ended. Raises StatusError if it does not."""
    deadline = time.monotonic() + DRIVER_SECONDS
    while is_locked(folder / LAUNCHER_LOCK):
        if time.monotonic() > deadline:
            raise StatusError(f"the driver of {folder}, process {process}, does not end; end it, then cancel again")
        time.sleep(0.2)


def log_of(folder: Path, rank: int, name: str | None) -> Path:
    """A rank's log of a task, given its label or stage; without a name of a failed task, else of a running one, else
    the newest. Raises StatusError.
    """
    plan = overview(folder)
    tasks = [task for task in plan.tasks if name in (None, task.label, task.stage, task.folder.name)]
    if not tasks:
        labels = ", ".join(task.label for task in plan.tasks)
        raise StatusError(f"{plan.name} has no task {name!r}; there are {labels}")
    tasks = [task for task in tasks if log_path(task.folder, rank).exists()]
    if not tasks:
        raise StatusError(f"no rank {rank} of {plan.name}{f', {name},' if name else ''} has written a log yet")
    logs = [(LOG_ORDER.get(task.state, 2), -log_path(task.folder, rank).stat().st_mtime, task) for task in tasks]
    return log_path(min(logs, key=lambda each: each[:2])[2].folder, rank)


def show_log(path: Path, lines: int, follow: bool) -> None:
    """Print the end of a log, replacing this process by `tail`; with `follow` by `tail -F`."""
    arguments = ["tail", "-n", str(lines), *(["-F"] if follow else []), str(path)]
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execvp("tail", arguments)


def _read(folder: Path) -> PlanRecord:
    plan = read_plan(folder)
    if plan is None:
        raise StatusError(f"{folder} holds no readable {PLAN_FILE}")
    return plan


def _tasks(plan: PlanRecord, *, launcher_alive: bool) -> tuple[list[TaskStatus], str | None]:
    """The states of a plan's tasks, and a warning if SLURM cannot be queried."""
    tasks = [
        (name, label, Path(place), output, stage.trains)
        for name, stage in plan.stages.items()
        for label, place, output in stage.tasks()
    ]
    if plan.launcher == "slurm":
        return slurm_tasks([task[:3] for task in tasks])
    return [
        task_state(stage, label, folder, output, trains=trains, launcher_alive=launcher_alive)
        for stage, label, folder, output, trains in tasks
    ], None


def _with_config(task: TaskStatus, plan: PlanRecord) -> TaskStatus:
    """A finished training run whose config cannot be read counts as failed: no report and no launcher accepts it."""
    if task.state != "finished" or not plan.stages[task.stage].trains:
        return task
    try:
        read_config(task.folder)
    except ConfigError as error:
        return replace(task, state="failed", reason=RESTORE, error=str(error))
    return task


def _with_metrics(task: TaskStatus) -> TaskStatus:
    train = last_metrics(task.folder, "train")
    total = read_progress(task.folder).get("total_steps")
    if train is None:
        return replace(task, total_steps=total)
    rate, seconds = train.get("images_per_second"), None
    if task.state == "running" and total and rate:
        batch_size = (try_read_object(task.folder / REQUESTED_CONFIG_FILE) or {}).get("batch_size")
        if isinstance(batch_size, int):
            seconds = (total - train["step"]) * batch_size / rate
    return replace(
        task,
        step=train["step"],
        total_steps=total,
        loss=train.get("loss"),
        images_per_second=rate,
        seconds_left=seconds,
    )


def _retried(task: TaskStatus, plan: PlanRecord) -> TaskStatus:
    """Add to a failed trial how it is trained again: a sweep continues without it."""
    retried = plan.grows and task.state == "failed" and task.reason != RESTORE
    return replace(task, reason=RETRIES) if retried else task


def _with_reason(task: TaskStatus, stages: Mapping[str, StageRecord], tasks: Sequence[TaskStatus]) -> TaskStatus:
    """Add to a task that waits, or that never runs, the stages that it waits for."""
    if task.state not in ("waiting", "not run"):
        return task
    awaited = set(folders_before(stages, task.stage, str(task.folder)))
    before = [other for other in tasks if str(other.folder) in awaited and other.state != "finished"]
    if task.state == "waiting":
        names = dict.fromkeys(other.stage for other in before)
        return replace(task, reason=f"for {', '.join(names)}" if names else task.reason)
    failed = [other for other in before if other.state in (*BAD, "cancelled")]
    return replace(task, reason=f"{failed[0].stage} {failed[0].state}" if failed else task.reason)
