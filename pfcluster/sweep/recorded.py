"""Records the runs of a sweep on this machine or on Ray as a plan, which `pfcluster status`, `logs` and `cancel` read.
On SLURM submitting records it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pfcluster.config import ConfigError
from pfcluster.launch.plan import Plan, Stage, TrainRun
from pfcluster.launch.plan_record import driving, read_plan, write_plan
from pfcluster.launch.worker import ExitStatus
from pfcluster.runs.folder import read_config
from pfcluster.sweep.executor import Executor


class RecordedExecutor:
    """Passes runs on to another executor, and records all that the sweep has started, earlier ones first."""

    def __init__(self, executor: Executor, launcher: Literal["local", "ray"], plan: Plan) -> None:
        """The plan has the sweep's name, folder and command, and no stages."""
        self.executor, self.launcher, self.plan = executor, launcher, plan
        self.name, self.poll_seconds = executor.name, executor.poll_seconds
        self._runs = _recorded_runs(plan.folder)

    @property
    def max_parallel(self) -> int:
        return self.executor.max_parallel

    def start(self, runs: Sequence[TrainRun]) -> None:
        self._runs |= {run.folder.resolve(): run for run in runs}
        stages = (Stage("runs", tuple(self._runs.values())),)
        write_plan(Plan(self.plan.name, self.plan.folder, stages, self.plan.command), self.launcher, {})
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


def _recorded_runs(folder: Path) -> dict[Path, TrainRun]:
    """The runs that an earlier driver of the sweep recorded, by folder; without those that have no config yet."""
    record, runs = read_plan(folder), {}
    for place in [] if record is None else [Path(each) for stage in record.stages.values() for each in stage.folders]:
        try:
            runs[place] = TrainRun(read_config(place), place)
        except ConfigError:
            continue
    return runs
