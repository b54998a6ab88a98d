"""Executes trials as jobs of a SLURM cluster: all runs that can start are submitted as one array. If the driver is
killed the jobs continue, and the same command attaches to them. It survives a controller that does not answer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pfcluster.launch import attempts
from pfcluster.launch.job_record import read_job
from pfcluster.launch.options import Cluster
from pfcluster.launch.plan import Plan, Stage, TrainRun
from pfcluster.launch.slurm.job_state import slurm_tasks
from pfcluster.launch.slurm.submit import submit
from pfcluster.launch.slurm_client import UnreachableError
from pfcluster.launch.task_status import ENDED
from pfcluster.launch.worker import FAILED, FINISHED, USER_ERROR, ExitStatus
from pfcluster.sweep.recorded import STAGE

DEFAULT_MAX_PARALLEL = 64
RETRY_SECONDS = 10.0
"""Seconds between two attempts to submit runs while the controller does not answer."""


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
    retry_failed: bool = False
    """Whether runs whose job was given up, while no driver was there, are submitted again."""
    name: str = "slurm"
    poll_seconds: float = 2.0
    _runs: dict[Path, TrainRun] = field(default_factory=dict)
    """All runs that this driver started, by folder."""
    _active: set[Path] = field(default_factory=set)
    """Folders of submitted runs that have not ended."""
    _waiting: dict[Path, TrainRun] = field(default_factory=dict)
    """Runs that are to be submitted once the controller answers."""
    _next_try: float = 0.0
    _given_up: list[TrainRun] = field(default_factory=list)
    """Runs that failed before this driver started; not reported yet."""

    @property
    def max_parallel(self) -> int:
        return self.limit or DEFAULT_MAX_PARALLEL

    def start(self, runs: Sequence[TrainRun]) -> None:
        for run in runs:
            folder = run.folder.resolve()
            self._runs[folder] = run
            if not self.retry_failed and _was_given_up(folder):
                self._given_up.append(run)
            else:
                self._waiting[folder] = run
        self._submit_waiting()

    def _submit_waiting(self) -> None:
        """Submit the runs that wait for it, and none that were submitted before. They keep waiting while the controller
        does not answer.
        """
        if not self._waiting or time.monotonic() < self._next_try:
            return
        stages = (Stage(STAGE, tuple(self._waiting.values())),)
        plan = Plan(self.plan, self.folder, stages, self.command, grows=True)
        site, processes, retries = self.cluster.site, self.cluster.processes, self.cluster.retries
        try:
            submit(plan, site, processes=processes, retries=retries)
        except UnreachableError as error:
            if not self._next_try:
                print(f"SLURM does not answer ({error}); {len(self._waiting)} runs wait for it", flush=True)
            self._next_try = time.monotonic() + RETRY_SECONDS
            return
        self._next_try = 0.0
        self._active |= self._waiting.keys()
        self._waiting.clear()

    def poll(self) -> list[tuple[TrainRun, ExitStatus]]:
        self._submit_waiting()
        tasks = [(STAGE, self._runs[folder].label, folder) for folder in sorted(self._active)]
        ended = [(run, self._exit_status(run, "failed", "")) for run in self._given_up]
        self._given_up.clear()
        for task in slurm_tasks(tasks, retry_seconds=0.0)[0] if tasks else ():
            if task.state in ENDED:
                self._active.discard(task.folder)
                run = self._runs[task.folder]
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


def _was_given_up(folder: Path) -> bool:
    """Whether the newest job of a run failed for good."""
    recorded, job = attempts.read(folder), read_job(folder)
    if not recorded or not job.job or recorded[-1].submission != job.submission:
        return False
    return attempts.is_given_up(recorded[-1])
