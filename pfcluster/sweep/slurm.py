"""Executes trials as jobs of a SLURM cluster: all runs that can start are submitted as one array. If the driver is
killed the jobs continue, and the same command attaches to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pfcluster.launch import attempts
from pfcluster.launch.options import Cluster
from pfcluster.launch.plan import Plan, Stage, TrainRun
from pfcluster.launch.slurm.submit import submit
from pfcluster.launch.status import overview
from pfcluster.launch.task_status import ENDED
from pfcluster.launch.worker import FAILED, FINISHED, USER_ERROR, ExitStatus

DEFAULT_MAX_PARALLEL = 64


@dataclass
class SlurmExecutor:
    """Submits runs to the queue, each with the nodes that the site file and the options request."""

    folder: Path
    plan: str
    """Name of the jobs in the queue."""
    cluster: Cluster
    command: str
    limit: int | None = None
    """Runs at the same time; None for `DEFAULT_MAX_PARALLEL`."""
    name: str = "slurm"
    poll_seconds: float = 2.0
    _runs: dict[Path, TrainRun] = field(default_factory=dict)
    """All runs that were started, by folder, the newest last."""
    _active: set[Path] = field(default_factory=set)

    @property
    def max_parallel(self) -> int:
        return self.limit or DEFAULT_MAX_PARALLEL

    def start(self, runs: Sequence[TrainRun]) -> None:
        for run in runs:
            folder = run.folder.resolve()
            self._runs.pop(folder, None)
            self._runs[folder] = run
            self._active.add(folder)
        stage = Stage("runs", tuple(self._runs.values()))
        plan = Plan(self.plan, self.folder, (stage,), self.command)
        submit(plan, self.cluster.site, processes=self.cluster.processes, retries=self.cluster.retries)

    def poll(self) -> list[tuple[TrainRun, ExitStatus]]:
        if not self._active:
            return []
        ended = []
        for task in overview(self.folder).tasks:
            folder = task.folder.resolve()
            if folder in self._active and task.state in ENDED:
                run = self._runs[folder]
                self._active.discard(folder)
                ended.append((run, self._exit_status(run, task.state, task.error or task.reason)))
        return ended

    def _exit_status(self, run: TrainRun, state: str, reason: str) -> ExitStatus:
        if run.finished():
            return ExitStatus(FINISHED)
        history = attempts.read(run.folder)
        kind = history[-1].kind if history else None
        error = (history[-1].error if history else None) or reason or f"SLURM reports {state}"
        return ExitStatus(USER_ERROR if kind == "user" else FAILED, kind or "killed", error)  # type: ignore[arg-type]

    def stop(self) -> None:
        """Cancel nothing: the jobs continue, and the same command attaches to them."""
