"""Which SLURM job a task was submitted as: `job.json` in the task's folder. Standard library only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pfcluster.config.json_files import read_record
from pfcluster.runs.folder import JOB_FILE
from pfcluster.system.atomic_files import write_atomically


@dataclass(frozen=True)
class JobRecord:
    """The newest submission of a task."""

    job: str
    """SLURM's job id, `12` or `12_3` for a task of an array; empty if there is none yet."""
    submission: int = 0
    """Number of the submission, from 1."""
    retries: int = 2
    """Failures that are retried."""
    plan_folder: str = ""
    """Folder of the plan that the task belongs to."""
    stage: str = ""
    scripts: str = ""
    """Folder of submitit's files."""
    token: str = ""
    """Written into the job's comment, so that a job whose id could not be recorded can be identified."""
    resubmissions: int = 0
    """How many times it was submitted again because SLURM refused to requeue it."""


def read_job(folder: Path) -> JobRecord:
    """The job of a task; one with an empty id if the task was never submitted. Raises JsonFileError: a damaged record
    may belong to a job that runs.
    """
    try:
        return read_record(JobRecord, folder / JOB_FILE)
    except FileNotFoundError:
        return JobRecord("")


def write_job(folder: Path, record: JobRecord) -> None:
    """Record the job of a task."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / JOB_FILE, json.dumps(asdict(record), indent=1) + "\n")
