"""Submits a failed task as a new job, and updates or cancels the jobs that wait for it. Standard library only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pfcluster.launch import attempts, slurm_client
from pfcluster.launch.job_record import JobRecord, read_job, write_job
from pfcluster.launch.plan_record import StageRecord, folders_before, read_plan
from pfcluster.launch.slurm_client import JOB_VARIABLES, SlurmError

SBATCH_SECONDS = 120
"""Time in which sbatch must answer."""


def this_job() -> str:
    """The id of the job that this process runs in."""
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}" if task else os.environ["SLURM_JOB_ID"]


def resubmit(folder: Path, exclude: str | None) -> str:
    """Submit the task as a new job that starts after this one; returns its id. Raises SlurmError, OSError."""
    record = read_job(folder)
    name, task = this_job(), os.environ.get("SLURM_ARRAY_TASK_ID")
    scripts = Path(record.scripts)
    script = scripts / f"{name.split('_')[0]}_submission.sh"
    after = f"--dependency=afterany:{os.environ['SLURM_JOB_ID']}"
    options = ["--parsable", after, *([f"--array={task}"] if task else [])]
    options += [f"--exclude={exclude}"] if exclude else []
    environment = {
        key: value for key, value in os.environ.items() if key == "SLURM_CONF" or not key.startswith(JOB_VARIABLES)
    }
    command = ["sbatch", *options, str(script)]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=SBATCH_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"sbatch did not answer in {SBATCH_SECONDS} s") from error
    if done.returncode:
        raise SlurmError(f"sbatch: {done.stderr.strip()}")
    number = done.stdout.strip().split(";")[0]
    job = f"{number}_{task}" if task else number
    shutil.copy(scripts / f"{name}_submitted.pkl", scripts / f"{job}_submitted.pkl")
    shutil.copy(script, scripts / f"{number}_submission.sh")
    write_job(folder, replace(record, job=job, resubmissions=record.resubmissions + 1))
    for waiting in waiting_folders(folder, record):
        _update_dependency(waiting)
    return job


def cancel_waiting(folder: Path) -> list[str]:
    """Cancel the jobs that wait for this task and therefore never run; returns the names of their stages, or their
    labels where only some of a stage wait for it.
    """
    record = read_job(folder)
    jobs, names = [], []
    for stages in _plans(folder, record):
        for name, folders in _waiting(folder, record, stages, transitive=True).items():
            stage = stages[name]
            submitted = [each for each in folders if read_job(Path(each)).job]
            jobs += [read_job(Path(each)).job for each in submitted]
            if submitted and len(folders) == len(stage.folders):
                names.append(name)
            else:
                names += [stage.labels[stage.folders.index(each)] for each in submitted]
    try:
        slurm_client.cancel(jobs)
    except SlurmError as error:
        print(f"warning: {error}", file=sys.stderr)
    return list(dict.fromkeys(names))


def waiting_folders(folder: Path, record: JobRecord, *, transitive: bool = False) -> list[Path]:
    """Folders of the tasks that wait for the task of a folder. `transitive`: all that can never run without it,
    including what waits for those, but no stages that always run.
    """
    plans = [_waiting(folder, record, stages, transitive=transitive) for stages in _plans(folder, record)]
    return [Path(each) for each in dict.fromkeys(each for plan in plans for some in plan.values() for each in some)]


def _waiting(
    folder: Path, record: JobRecord, stages: Mapping[str, StageRecord], *, transitive: bool
) -> dict[str, list[str]]:
    """`waiting_folders` of one plan, by stage."""
    blocked = {record.stage: {str(folder)}}
    waiting: dict[str, list[str]] = {}
    for name, stage in stages.items():  # in an order in which they can run
        if transitive and stage.always_run:
            continue
        if any(before in blocked for before in stage.after):
            waiting[name] = stage.folders
        else:
            rows = zip(stage.folders, *(stages[before].folders for before in stage.same_seed), strict=True)
            awaited = [blocked.get(before, set()) for before in stage.same_seed]
            own = [own for own, *before in rows if any(one in some for one, some in zip(before, awaited, strict=True))]
            waiting |= {name: own} if own else {}
        if transitive and name in waiting:
            blocked[name] = set(waiting[name])
    return waiting


def _plans(folder: Path, record: JobRecord) -> list[dict[str, StageRecord]]:
    """The stages of each plan in the folder of a task's plan that holds the task."""
    plan = read_plan(Path(record.plan_folder))
    return [
        launch.stages
        for launch in ([] if plan is None else plan.launches)
        if record.stage in launch.stages and str(folder) in launch.stages[record.stage].folders
    ]


def _update_dependency(folder: Path) -> None:
    """Let a waiting job depend on the current jobs of the tasks before it."""
    record = read_job(folder)
    plans = _plans(folder, record)
    if not record.job or not plans:
        return
    before = [path for stages in plans for path in folders_before(stages, record.stage, str(folder))]
    jobs = [read_job(Path(path)).job for path in dict.fromkeys(before) if not finished(Path(path))]
    dependency = ":".join(
        ["afterany" if plans[0][record.stage].always_run else "afterok", *(job for job in jobs if job)]
    )
    try:
        slurm_client.run_command(
            "scontrol", "update", f"JobId={record.job}", f"Dependency={dependency}", retry_seconds=30
        )
    except SlurmError as error:
        print(f"warning: {folder}: {error}", file=sys.stderr)


def finished(folder: Path) -> bool:
    """Whether a task's last attempt finished."""
    recorded = attempts.read(folder)
    return bool(recorded) and recorded[-1].outcome == "finished"
