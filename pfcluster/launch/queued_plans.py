"""Plans in one folder whose jobs have not ended, beside the plan that is started there now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pfcluster.launch import attempts, slurm_client
from pfcluster.launch.job_record import read_job
from pfcluster.launch.plan import Plan
from pfcluster.launch.plan_record import PlanRecord, folders_before, read_plan
from pfcluster.launch.slurm_client import SlurmError


class QueuedPlans:
    """Earlier plans in a plan's folder with jobs, of other tasks, that SLURM has not ended."""

    def __init__(self, plan: Plan) -> None:
        """Where SLURM cannot be asked, tasks without a recorded end count. A sweep's folder has only its own plan."""
        record = None if plan.grows else read_plan(plan.folder)
        launches = [replace(one, also=[]) for one in record.launches if one.launcher == "slurm"] if record else []
        own = {str(task.folder.resolve()) for stage in plan.stages for task in stage.tasks}
        others = [folder for launch in launches for folder in _folders(launch) if folder not in own]
        self._jobs = _unended_jobs(dict.fromkeys(others)) if others else {}
        self.launches = [launch for launch in launches if self._jobs.keys() & set(_folders(launch))]

    def jobs_before(self, stage: str, folder: Path) -> list[str]:
        """Jobs of these plans that a task, which they have too, waits for."""
        name = str(folder.resolve())
        before = [
            each
            for launch in self.launches
            if stage in launch.stages and name in launch.stages[stage].folders
            for each in folders_before(launch.stages, stage, name)
        ]
        return [self._jobs[each] for each in dict.fromkeys(before) if each in self._jobs]


def _folders(launch: PlanRecord) -> Iterator[str]:
    for stage in launch.stages.values():
        yield from stage.folders


def _unended_jobs(folders: Sequence[str] | dict[str, None]) -> dict[str, str]:
    jobs = {folder: job for folder in folders if (job := read_job(Path(folder)).job)}
    try:
        found = slurm_client.job_states(jobs.values())
    except SlurmError:
        return {folder: job for folder, job in jobs.items() if not _has_ended(Path(folder))}
    return {folder: job for folder, job in jobs.items() if job in found and found[job].alive}


def _has_ended(folder: Path) -> bool:
    recorded = attempts.read(folder)
    return bool(recorded) and recorded[-1].outcome in ("finished", "failed", "cancelled") and not recorded[-1].next
