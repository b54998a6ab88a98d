"""The state of a task that was submitted to SLURM, from the queue and from its attempts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pfcluster.launch import attempts, slurm_client
from pfcluster.launch.attempts import Attempt
from pfcluster.launch.job_record import JobRecord, read_job
from pfcluster.launch.slurm_client import JobInfo, SlurmError
from pfcluster.launch.task_status import BAD, TaskStatus
from pfcluster.runs.folder import CANCELLED_FILE, is_finished, read_progress

FOLLOWED = ("requeued", "submitted")
"""Beginnings of `Attempt.next` if another attempt follows."""


def slurm_tasks(tasks: Sequence[tuple[str, str, Path]], **options: Any) -> tuple[list[TaskStatus], str | None]:
    """The states of tasks, given as stage, label and folder, and a warning if SLURM cannot be queried. `options`: those
    of `slurm_client.job_states`.
    """
    ids = {folder: read_job(folder).job for _, _, folder in tasks}
    try:
        jobs, warning = slurm_client.job_states(ids.values(), **options), None
    except SlurmError as error:
        jobs, warning = {}, f"{error}; the states are those recorded in the folders"
    queried = warning is None
    states = [slurm_task(stage, label, folder, jobs.get(ids[folder]), queried) for stage, label, folder in tasks]
    # one that was submitted again meanwhile has not ended with the job that was asked for
    return [
        replace(state, state="queued", reason="") if state.job != ids[state.folder] and state.state in BAD else state
        for state in states
    ], warning


def slurm_task(stage: str, label: str, folder: Path, job: JobInfo | None, queried: bool) -> TaskStatus:
    """The state of a task. `job` is None if SLURM has forgotten it; `queried`: whether SLURM could be queried."""
    recorded = attempts.read(folder)
    newest = recorded[-1] if recorded else None
    submission = read_job(folder)
    alive = job is not None and job.alive
    state, reason = _state(folder, newest, job, submission, queried)
    current = [attempt for attempt in recorded if attempt.submission == submission.submission]
    return TaskStatus(
        stage,
        label,
        folder,
        state,
        reason,
        submission.job,
        restarts=max(0, len(current) - 1),
        failures=sum(attempt.outcome == "failed" for attempt in current),
        nodes=(job.nodes if alive and job is not None else "") or (newest.nodes if newest else ""),
        error=newest.error if newest is not None and state in (*BAD, "queued") else None,
    )


def _state(
    folder: Path, newest: Attempt | None, job: JobInfo | None, submission: JobRecord, queried: bool
) -> tuple[str, str]:
    """State and reason. `submission`: the newest one."""
    if job is not None and job.alive:
        return _alive_state(folder, newest, job)
    if is_finished(folder) or (newest is not None and newest.outcome == "finished"):
        return "finished", ""
    if (folder / CANCELLED_FILE).exists():
        return "cancelled", ""
    if newest is None:
        if job is not None:
            return ("not run", "") if job.state == "CANCELLED" else ("lost", job.state)
        return ("not run", "") if submission.job and queried else ("not started", "")
    follows = newest.next or ""
    if job is not None and job.state == "CANCELLED":
        if newest.submission != submission.submission or follows == f"submitted again as {submission.job}":
            return "not run", ""  # it was cancelled before it began
        if follows.startswith(FOLLOWED):
            return "cancelled", ""
    if newest.outcome in ("failed", "cancelled") and (queried or not follows.startswith(FOLLOWED)):
        return newest.outcome, follows
    if job is None and not queried:
        return "unknown", ""
    if job is not None and job.state == "TIMEOUT":
        return "timed out", "it did not stop in time; the same command continues it"
    end = f"SLURM reports {job.state}" if job is not None else "SLURM has forgotten it"
    return "lost", f"{end}; the same command continues it"


def _alive_state(folder: Path, newest: Attempt | None, job: JobInfo) -> tuple[str, str]:
    """State and reason of a task whose job is queued or running."""
    if job.hopeless:
        return "not run", "a stage before it failed"
    if job.state == "PENDING":
        if job.reason == "Dependency":
            return "waiting", ""
        restarting = newest is not None and (newest.next or "").startswith(FOLLOWED)
        return "queued", f"{newest.outcome}, again" if restarting and newest is not None else job.reason
    if job.state == "COMPLETING":
        return "ending", newest.outcome if newest is not None and newest.outcome != "running" else ""
    if job.state not in ("RUNNING", "SIGNALING"):
        return "queued", job.state
    return ("evaluating" if read_progress(folder).get("stage") == "evaluate" else "running"), ""
