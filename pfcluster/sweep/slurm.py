"""Trials as jobs of a SLURM cluster: what can run now is submitted as one array. The driver waits beside the queue; if
it is killed the jobs go on, and the same command attaches to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pfcluster.launch import attempts
from pfcluster.launch.options import Cluster
from pfcluster.launch.plan import Plan, Stage, TrainRun
from pfcluster.launch.slurm.submit import submit
from pfcluster.launch.status import OVER, overview
from pfcluster.launch.worker import FAILED, FINISHED, USER_ERROR, ExitStatus

MANY = 64


@dataclass
class SlurmExecutor:
    """Runs jobs through the queue, each on as many nodes as the site says."""

    folder: Path
    plan: str
    """What the jobs are called."""
    cluster: Cluster
    command: str
    wanted: int | None = None
    """Runs at one time."""
    name: str = "slurm"
    poll_seconds: float = 2.0
    _jobs: dict[Path, TrainRun] = field(default_factory=dict)
    _flying: set[Path] = field(default_factory=set)

    @property
    def at_once(self) -> int:
        return self.wanted or MANY

    def start(self, jobs: Sequence[TrainRun]) -> None:
        for job in jobs:
            place = job.folder.resolve()
            self._jobs.pop(place, None)
            self._jobs[place] = job
            self._flying.add(place)
        group = Stage("runs", tuple(self._jobs.values()))
        plan = Plan(self.plan, self.folder, (group,), self.command)
        submit(plan, self.cluster.site, processes=self.cluster.processes, retries=self.cluster.retries)

    def poll(self) -> list[tuple[TrainRun, ExitStatus]]:
        if not self._flying:
            return []
        ended = []
        for line in overview(self.folder).lines:
            place = line.folder.resolve()
            if place in self._flying and line.state in OVER:
                job = self._jobs[place]
                self._flying.discard(place)
                ended.append((job, self._ending(job, line.state, line.error or line.why)))
        return ended

    def _ending(self, job: TrainRun, state: str, words: str) -> ExitStatus:
        if job.finished():
            return ExitStatus(FINISHED)
        known = attempts.read(job.folder)
        last = known[-1] if known else None
        kind = last.kind if last is not None else None
        error = (last.error if last is not None else None) or words or f"SLURM says {state}"
        return ExitStatus(USER_ERROR if kind == "user" else FAILED, kind or "killed", error)  # type: ignore[arg-type]

    def stop(self) -> None:
        """Nothing is cancelled: the jobs go on, and the same command finds them."""
