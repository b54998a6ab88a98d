"""The trackers of a run: opened on rank 0, closed when the run ends."""

from __future__ import annotations

import importlib.util
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pfcluster.config import ConfigError, RunConfig
from pfcluster.distributed.process_group import World
from pfcluster.runs.folder import TRACKERS_FILE, TRAINING_LOCK, find_runs, read_config, read_result
from pfcluster.runs.progress import warn
from pfcluster.system.extras import install_command
from pfcluster.system.locks import is_locked
from pfcluster.tracking.clients import CLIENTS, TrackedRun
from pfcluster.tracking.follower import TrackerFollower, TrackerRecords

CLOSE_SECONDS = 60.0
"""Longest wait for all trackers together when a run ends."""
INTERRUPTED_SECONDS = 10.0
"""The same after a signal or a failure: schedulers kill soon after."""


class Trackers:
    """What the trainer passes to the trackers; they read everything else from the run folder."""

    def __init__(self) -> None:
        self.status = "failed"
        """How the run ends: finished, stopped, interrupted; failed unless the trainer says so."""


@contextmanager
def open_trackers(config: RunConfig, folder: Path, world: World) -> Iterator[Trackers]:
    """Have the config's trackers follow the run folder while entered; on rank 0 only. metrics.jsonl must already have
    been truncated to the step from which the run resumes.
    """
    trackers = Trackers()
    followers = _start(config, folder) if world.is_main else []
    try:
        yield trackers
    finally:
        seconds = CLOSE_SECONDS if trackers.status in ("finished", "stopped") else INTERRUPTED_SECONDS
        deadline = time.monotonic() + min(seconds, config.engine.timeout / 2)  # the other ranks wait meanwhile
        for follower in followers:
            follower.close(trackers.status)
        for follower in followers:
            follower.join(max(0.0, deadline - time.monotonic()))


def _start(config: RunConfig, folder: Path) -> list[TrackerFollower]:
    try:
        records = TrackerRecords(folder)
    except ValueError as error:
        warn(folder, f"the trackers start new runs: {error}", True)
        (folder / TRACKERS_FILE).unlink()
        records = TrackerRecords(folder)
    run = TrackedRun(config, folder, uuid.uuid4().hex[:8])
    return [TrackerFollower(name, CLIENTS[name], run, records) for name in config.tracker]


def require_trackers(config: RunConfig) -> None:
    """Raises ConfigError if the package of a tracker is not installed: better said before a run starts."""
    for name in config.tracker:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"tracker {name} is not installed: {install_command(name)}")


def send_report(study: Path, page: Path) -> None:
    """Attach a study's report to its runs in their trackers; TensorBoard keeps no files. Failures are warnings. Runs in
    progress are left out; the others have the same status as before.
    """
    for folder in find_runs(study):
        with _failures_as_warnings(folder):
            if is_locked(folder / TRAINING_LOCK):
                continue
            status = (read_result(folder) or {}).get("status", "failed")
            config, records = read_config(folder), TrackerRecords(folder)
            for name in config.tracker:
                received = records.get(name)
                if received is None or name == "tensorboard":
                    continue
                with _failures_as_warnings(folder):  # of one tracker, the others receive it
                    tracker = CLIENTS[name]()
                    tracker.start(TrackedRun(config, folder, received.id), received.id)
                    try:
                        tracker.file(page)
                    finally:
                        tracker.finish(status)


@contextmanager
def _failures_as_warnings(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # as in the follower: a tracker ends nothing
        with suppress(OSError):  # the study may be read-only
            warn(folder, f"the report was not sent to a tracker: {type(error).__name__}: {error}", True)
