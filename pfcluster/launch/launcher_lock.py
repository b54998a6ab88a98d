"""Who launches in a plan's folder: several launchers of runs at a time, on this machine or on Ray, or one driver of a
sweep, on any executor.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pfcluster.config import ConfigError
from pfcluster.launch.plan import Plan
from pfcluster.launch.plan_record import Launcher, of_this_process, read_plan, write_plan, write_record
from pfcluster.launch.queued_plans import QueuedPlans
from pfcluster.launch.training_lock import QUIET_SECONDS
from pfcluster.runs.folder import CONFIG_FILE
from pfcluster.system.locks import FileLock, exclusive_lock, owner_text

LAUNCHER_LOCK = ".launcher"
"""Locked by a launcher on this machine or on Ray while it works on the plan, and by the driver of a sweep, also on
SLURM."""
RECORD_LOCK = ".launcher-record"
"""Locked while one of several launchers rewrites the record."""


@contextmanager
def launching(plan: Plan, launcher: Launcher, layouts: Mapping[str, tuple[int, int]]) -> Iterator[None]:
    """Record a plan, and hold the launcher's lock while it runs, beside launchers of other runs in its folder. Raises
    ConfigError if the folder is a sweep's.
    """
    require_kind(plan.folder, grows=False)
    plan.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(plan.folder / LAUNCHER_LOCK) as lock:
        if _wait(lock):
            write_plan(plan, launcher, layouts, QueuedPlans(plan).launches)
            lock.acquire(shared=True)
        else:
            if not lock.acquire(shared=True, blocking=False):
                raise in_progress(plan.folder)
            with exclusive_lock(plan.folder / RECORD_LOCK):
                record = read_plan(plan.folder)
                launches = [] if record is None else [replace(one, also=[]) for one in record.launches]
                others = [one for one in launches if one.launcher != "slurm" and (one.elsewhere or one.at_work)]
                write_plan(plan, launcher, layouts, [*others, *QueuedPlans(plan).launches])
        yield


@contextmanager
def driving(folder: Path) -> Iterator[None]:
    """Hold the launcher's lock of a plan that grows while this process, and no other one, drives it. An earlier record
    of the plan then names this process. Raises ConfigError if another process drives it, or if the folder is not a
    sweep's.
    """
    require_kind(folder, grows=True)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LAUNCHER_LOCK) as lock:
        if not _wait(lock):
            raise in_progress(folder)
        record = read_plan(folder)
        if record is not None:
            write_record(folder, of_this_process(replace(record, also=[])))
        yield


def require_kind(folder: Path, *, grows: bool) -> None:
    """Raise ConfigError if a plan of the other kind was started in a folder, a sweep, which grows, or other runs, or if
    it is a run's.
    """
    if (folder / CONFIG_FILE).exists():
        raise ConfigError(f"{folder} is the folder of a run; use another --output")
    record = read_plan(folder)
    if record is not None and record.grows == (not grows):
        kind = "the sweep" if record.grows else "the runs of"
        raise ConfigError(f"{folder} holds {kind} {record.name}; use another --output")


def require_no_launcher(folder: Path) -> None:
    """Raise ConfigError if a launcher works in a folder."""
    path = folder / LAUNCHER_LOCK
    if path.exists():
        with FileLock(path) as lock:
            if not _wait(lock):
                raise in_progress(folder)


def in_progress(folder: Path) -> ConfigError:
    """The error that names the launchers at work in a folder."""
    record, shown = read_plan(folder), shlex.quote(str(folder))
    launches = [] if record is None else [one for one in record.launches if one.at_work]
    names = ", ".join(f"process {one.pid} on {one.host}" for one in launches)
    return ConfigError(
        f"{folder} is in progress{f' ({names})' if names else owner_text(folder / LAUNCHER_LOCK)}:"
        f" `pfcluster status {shown}` shows it, `pfcluster cancel {shown}` ends it"
    )


def _wait(lock: FileLock) -> bool:
    """Take a launcher's lock exclusively; False if it stays locked for longer than `pfcluster status` holds it."""
    deadline = time.monotonic() + QUIET_SECONDS
    return lock.wait(lambda: time.monotonic() > deadline)
