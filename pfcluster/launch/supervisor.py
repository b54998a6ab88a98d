"""Trains the runs of a wave, several at a time: their order, stop requests and failures. A backend starts and stops
them: processes of this machine (launch/local.py) or tasks of Ray (launch/ray/run.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console

from pfcluster.distributed.signals import StopRequest
from pfcluster.launch.errors import LaunchError
from pfcluster.launch.plan import TrainRun
from pfcluster.launch.run_queue import RunQueue
from pfcluster.launch.waves import OnFailure
from pfcluster.launch.worker import FINISHED, INTERRUPTED


@dataclass(frozen=True)
class EndedRun:
    """How a run ended."""

    run: TrainRun
    code: int
    failure: LaunchError | None = None
    """The error of a run that failed; None if it finished or was interrupted."""


class Backend(Protocol):
    """Starts and stops runs, and displays those in progress."""

    console: Console

    @property
    def display(self) -> AbstractContextManager[object]:
        """Entered while runs are in progress."""

    def start(self, run: TrainRun) -> None:
        """Start a run."""

    def poll(self) -> list[EndedRun]:
        """Wait a moment and update the display; returns the runs that have ended since the last call."""

    def request_stop(self) -> None:
        """Ask the runs in progress to write a checkpoint and stop."""

    def show_failure(self, failure: LaunchError) -> None:
        """Display the failure of a run after which the others go on."""


def train_runs(
    backend: Backend,
    runs: Sequence[TrainRun],
    before: Mapping[Path, Sequence[TrainRun]],
    *,
    max_parallel: int,
    on_failure: OnFailure | None,
) -> bool:
    """Train all runs, at most `max_parallel` at a time and each after those that `before` names; True once all have
    ended, False if a signal stopped them with checkpoints.

    Raises the first LaunchError if there is no `on_failure`, after the other runs were stopped.
    """
    queue = RunQueue(_unfinished(runs, backend.console), before)
    return _Supervisor(backend, queue, max_parallel, on_failure).train()


class _Supervisor:
    """Trains the runs of a queue."""

    def __init__(self, backend: Backend, queue: RunQueue, max_parallel: int, on_failure: OnFailure | None) -> None:
        self.backend, self.queue = backend, queue
        self.max_parallel, self.on_failure = max_parallel, on_failure
        self.in_progress = 0
        """Runs that have started and not ended."""
        self.stop = StopRequest()
        self.failure: LaunchError | None = None
        """The first failure, where there is no `on_failure`: the other runs are then stopped."""

    @property
    def stopping(self) -> bool:
        """Whether no further run may start."""
        return self.stop.requested or self.failure is not None

    def train(self) -> bool:
        """As `train_runs`."""
        with self.stop, self.backend.display:
            stop_sent = False
            while self.in_progress or (self.queue and not self.stopping):
                self._start_ready()
                for ended in self.backend.poll():
                    self._handle_end(ended)
                if self.stopping and not stop_sent:
                    stop_sent = True
                    self.backend.request_stop()
        if self.failure is not None:
            raise self.failure
        if self.stop.requested:
            self.backend.console.print("stopped; the same command continues from the checkpoints")
        return not self.stop.requested

    def _start_ready(self) -> None:
        while self.in_progress < self.max_parallel and not self.stopping:
            run = self.queue.next()
            if run is None:
                return
            self.backend.start(run)
            self.in_progress += 1

    def _handle_end(self, ended: EndedRun) -> None:
        self.in_progress -= 1
        if ended.code == FINISHED:
            self.queue.finished(ended.run)
            return
        self.queue.drop_after(ended.run)
        if ended.code == INTERRUPTED and self.stopping:
            return
        failure = ended.failure or _stopped_alone(ended.run)
        if self.on_failure is None:
            self.failure = self.failure or failure
        else:
            self.on_failure(ended.run, failure)
            self.backend.show_failure(failure)


def _unfinished(runs: Sequence[TrainRun], console: Console) -> list[TrainRun]:
    """The runs that have not finished; prints a line for each of the others."""
    remaining = [run for run in runs if not run.finished()]
    for run in runs:
        if run not in remaining:
            console.print(f"{run.label}: finished already in {run.folder}", soft_wrap=True)
    return remaining


def _stopped_alone(run: TrainRun) -> LaunchError:
    """The error of a run stopped by a signal that its launcher did not get; runs that wait for it must not start."""
    return LaunchError(f"{run.label} was stopped by a signal to its own process; the same command continues it", 1)
