"""Submits a failed task as a new job, and updates or cancels the jobs that wait for it. Standard library only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from pfcluster.launch import attempts
from pfcluster.launch.job_record import JobRecord, read_job, write_job
from pfcluster.launch.plan_record import StageRecord, read_plan
from pfcluster.launch.slurm import client
from pfcluster.launch.slurm.client import SlurmError

INHERITED = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "PMI", "SUBMITIT_")
"""Prefixes of variables of this job that a new job must not inherit."""


def resubmit(folder: Path, exclude: str | None) -> str:
    """Submit the task as a new job that starts after this one; returns its id. Raises SlurmError, OSError."""
    record = read_job(folder)
    this_job, task = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}" if task else this_job
    scripts = Path(record.scripts)
    script = scripts / f"{name.split('_')[0]}_submission.sh"
    options = ["--parsable", f"--dependency=afterany:{this_job}", *([f"--array={task}"] if task else [])]
    options += [f"--exclude={exclude}"] if exclude else []
    environment = {
        key: value for key, value in os.environ.items() if key == "SLURM_CONF" or not key.startswith(INHERITED)
    }
    done = subprocess.run(
        ["sbatch", *options, str(script)], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode:
        raise SlurmError(f"sbatch: {done.stderr.strip()}")
    number = done.stdout.strip().split(";")[0]
    job = f"{number}_{task}" if task else number
    shutil.copy(scripts / f"{name}_submitted.pkl", scripts / f"{job}_submitted.pkl")
    shutil.copy(script, scripts / f"{number}_submission.sh")
    write_job(folder, replace(record, job=job, resubmissions=record.resubmissions + 1))
    for waiting in waiting_folders(record):
        _update_dependency(waiting)
    return job


def cancel_waiting(folder: Path) -> list[str]:
    """Cancel the jobs that wait for this task and therefore never run; returns the names of their stages."""
    jobs, stages = [], []
    for waiting in waiting_folders(read_job(folder), transitive=True):
        record = read_job(waiting)
        if record.job:
            jobs.append(record.job)
            stages.append(record.stage)
    try:
        client.cancel(jobs)
    except SlurmError as error:
        print(f"warning: {error}", file=sys.stderr)
    return list(dict.fromkeys(stages))


def waiting_folders(record: JobRecord, *, transitive: bool = False) -> list[Path]:
    """Folders of the tasks whose stages wait for the task's stage. `transitive`: all that can never run without it,
    including what waits for those, but no stages that always run.
    """
    stages = _stages(record)
    names = {record.stage}
    waiting: dict[str, list[str]] = {}
    while True:
        new = {name: stage for name, stage in stages.items() if names & set(stage.after)}
        new = {name: stage for name, stage in new.items() if not (transitive and stage.always_run)}
        if new.keys() <= waiting.keys():
            return [Path(folder) for folders in waiting.values() for folder in folders]
        waiting |= {name: stage.folders for name, stage in new.items()}
        names = names | set(waiting) if transitive else set()


def _stages(record: JobRecord) -> dict[str, StageRecord]:
    plan = read_plan(Path(record.plan_folder))
    return {} if plan is None else plan.stages


def _update_dependency(folder: Path) -> None:
    """Let a waiting job depend on the current jobs of the tasks before it."""
    record = read_job(folder)
    stages = _stages(record)
    if not record.job or record.stage not in stages:
        return
    stage = stages[record.stage]
    before = [Path(path) for name in stage.after for path in stages[name].folders]
    jobs = [read_job(path).job for path in before if not finished(path)]
    dependency = ":".join(["afterany" if stage.always_run else "afterok", *(job for job in jobs if job)])
    try:
        client.run_command("scontrol", "update", f"JobId={record.job}", f"Dependency={dependency}", retry_seconds=30)
    except SlurmError as error:
        print(f"warning: {folder}: {error}", file=sys.stderr)


def finished(folder: Path) -> bool:
    """Whether a task's last attempt finished."""
    recorded = attempts.read(folder)
    return bool(recorded) and recorded[-1].outcome == "finished"
