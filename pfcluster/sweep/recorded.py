"""Records the runs of a sweep on this machine or on Ray as a plan, which `pfcluster status`, `logs` and `cancel` read.
On SLURM submitting records it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

from pfcluster.launch.launcher_lock import driving
from pfcluster.launch.plan import Plan, Stage, TrainRun
from pfcluster.launch.plan_record import write_plan
from pfcluster.launch.worker import ExitStatus
from pfcluster.sweep.executor import Executor

STAGE = "runs"
"""Name of the stage that holds all runs of a sweep."""


class RecordedExecutor:
    """Passes runs on to another executor, and records all that the sweep has started, earlier ones first."""

    def __init__(self, executor: Executor, launcher: Literal["local", "ray"], plan: Plan) -> None:
        """The plan has the sweep's name, folder and command, and no stages. It grows."""
        self.executor, self.launcher, self.plan = executor, launcher, plan
        self.name, self.poll_seconds = executor.name, executor.poll_seconds

    @property
    def max_parallel(self) -> int:
        return self.executor.max_parallel

    def start(self, runs: Sequence[TrainRun]) -> None:
        if runs:
            write_plan(replace(self.plan, stages=(Stage(STAGE, tuple(runs)),)), self.launcher, {})
        self.executor.start(runs)

    def poll(self) -> list[tuple[TrainRun, ExitStatus]]:
        return self.executor.poll()

    def stop(self) -> None:
        self.executor.stop()


@contextmanager
def recorded(executor: Executor, launcher: Literal["local", "ray"], plan: Plan) -> Iterator[Executor]:
    """The executor, whose runs are recorded, and whose launcher counts as alive."""
    with driving(plan.folder):
        yield RecordedExecutor(executor, launcher, plan)
