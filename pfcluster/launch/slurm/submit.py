"""From a plan to the queue: one submitit array for each group, each after those it waits for.

Giving the same plan again attaches to what is queued or running, passes over what is finished, and submits the rest.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pfcluster.config import ConfigError
from pfcluster.config.io import load
from pfcluster.launch import attempts
from pfcluster.launch.attempts import Submitted
from pfcluster.launch.code_snapshot import snapshot
from pfcluster.launch.plan import RECORD, Plan, Stage, Task, TrainRun
from pfcluster.launch.slurm import client
from pfcluster.launch.slurm.client import JobInfo
from pfcluster.launch.slurm.script import SCRIPTS, Layout, executor_of, layout_of
from pfcluster.launch.slurm.site import Site
from pfcluster.launch.slurm.task import run_task
from pfcluster.runs.atomic_files import write_atomically
from pfcluster.runs.folder import CANCELLED_FILE, REQUESTED_CONFIG_FILE, TASK_FILE, write_requested_config
from pfcluster.runs.locks import FileLock


@dataclass(frozen=True)
class Row:
    """What became of a group: for each task `finished`, `attached` or `submitted`, and its job."""

    group: str
    layout: Layout
    after: tuple[str, ...]
    tasks: tuple[tuple[str, str, str], ...]
    """Label, what was done, job."""


def submit(plan: Plan, site: Site, *, processes: int, retries: int) -> list[Row]:
    """Hand a plan to SLURM; what was done, group by group. Raises ConfigError, SlurmError."""
    missing = [name for name in site.secrets if name not in os.environ]
    if missing:
        raise ConfigError(f"{site.source}: secrets names {missing[0]}, which is not set in this shell; export it first")
    layouts = {group.name: layout_of(group, site, processes) for group in plan.stages}
    plan.folder.mkdir(parents=True, exist_ok=True)
    with _alone(plan.folder):
        current = {task.folder: _current(task) for group in plan.stages for task in group.tasks}
        seen = client.states(known.job for known in current.values())
        waiting = {group.name: [task for task in group.tasks if not task.finished()] for group in plan.stages}
        for task in (task for tasks in waiting.values() for task in tasks):
            _check_same(task, seen.get(current[task.folder].job))
        _write_record(plan, layouts)
        code = snapshot(plan.folder)
        rows: list[Row] = []
        anew: set[str] = set()
        for group in plan.stages:
            todo = [
                task
                for task in waiting[group.name]
                if not _attached(task, seen.get(current[task.folder].job)) or anew & set(group.after)
            ]
            if todo:
                anew.add(group.name)
                own = [current[task.folder].job for task in todo]
                old = [job for job in own if job in seen and seen[job].alive]
                client.cancel(old)
                before = [task for name in group.after for task in waiting[name]]
                jobs = [attempts.submitted(task.folder).job for task in before]
                after = _dependency([], [*jobs, *old]) if group.always_run else _dependency(jobs, old)
                _hand_over(plan, group, todo, site, layouts[group.name], code, after, retries)
            rows.append(_row(group, layouts[group.name], waiting[group.name], todo))
    return rows


def _hand_over(
    plan: Plan,
    group: Stage,
    todo: Sequence[Task],
    site: Site,
    layout: Layout,
    code: Path,
    after: str,
    retries: int,
) -> None:
    """Write what the tasks need, then submit them as one array."""
    token = uuid.uuid4().hex[:12]
    scripts = plan.folder.resolve() / SCRIPTS / f"{group.name}-{token}"
    scripts.mkdir(parents=True)
    write_atomically(scripts / "folders.txt", "".join(f"{task.folder.resolve()}\n" for task in todo))
    for task in todo:
        folder = task.folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CANCELLED_FILE).unlink(missing_ok=True)
        values: dict[str, Any] = {"label": task.label, "command": plan.command, "module": None, "arguments": []}
        if isinstance(task, TrainRun):
            write_requested_config(folder, task.config)
        else:
            values |= {"module": task.module, "arguments": list(task.arguments)}
        write_atomically(folder / TASK_FILE, json.dumps(values, indent=1) + "\n")
        number = attempts.submitted(folder).submission + 1
        known = Submitted("", number, retries, str(plan.folder.resolve()), group.name, str(scripts), token=token)
        attempts.submit(folder, known)
    more: dict[str, Any] = {"comment": f"pfcluster:{token}"}
    if after:
        more["dependency"] = after
    executor = executor_of(plan, group, site, layout, code, scripts, more)
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with _outside_of_jobs():
            submitted = executor.map_array(run_task, [str(task.folder.resolve()) for task in todo])
    except (FailedJobError, FailedSubmissionError) as error:
        said = [line.removeprefix("sbatch: error: ") for line in str(error).splitlines() if "sbatch:" in line]
        raise ConfigError(f"SLURM refused {group.name}: {'; '.join(said) or error}") from error
    for task, job in zip(todo, submitted, strict=True):
        attempts.submit(task.folder, replace(attempts.submitted(task.folder), job=str(job.job_id)))


def _current(task: Task) -> Submitted:
    """The job that a task was handed to. A launcher that was killed while it submitted left a token for it."""
    known = attempts.submitted(task.folder)
    if known.job or not known.token:
        return known
    text = client.ask("squeue", "--noheader", "--array", "--states=all", "--format=%i|%k", "--me", patience=10)
    jobs = [line.split("|")[0] for line in text.splitlines() if line.endswith(f"pfcluster:{known.token}")]
    folders = (Path(known.script) / "folders.txt").read_text().splitlines()
    index = folders.index(str(task.folder.resolve()))
    found = [job for job in jobs if job.split("_")[-1] == str(index)] if len(folders) > 1 else jobs
    if found:
        known = replace(known, job=found[0])
        attempts.submit(task.folder, known)
    return known


def _dependency(before: Sequence[str], old: Sequence[str]) -> str:
    """sbatch's words for: after these ended well, and after others ended somehow: a job that still saves itself into
    the same folder, or whatever a table is made of.
    """
    kinds = {"afterok": before, "afterany": old}
    return ",".join(":".join([kind, *dict.fromkeys(jobs)]) for kind, jobs in kinds.items() if jobs)


def _attached(task: Task, seen: JobInfo | None) -> bool:
    """Whether a job is going to do the task; one that is ending does only if it is to start again."""
    if seen is None or not seen.alive or seen.hopeless:
        return False
    if seen.state != "COMPLETING":
        return True
    known = attempts.read(task.folder)
    return bool(known) and (known[-1].next or "").startswith(("requeued", "submitted"))


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Without the variables of a job that the launcher itself may run in: sbatch would take them for options."""
    prefixes = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_", "PMI")
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if "SLURM_JOB_ID" in os.environ and name.startswith(prefixes) and name not in ("SLURM_CONF", "SLURM_JOB_ID")
    }
    job = os.environ.pop("SLURM_JOB_ID", None)
    try:
        yield
    finally:
        os.environ |= hidden | ({} if job is None else {"SLURM_JOB_ID": job})


def _check_same(task: Task, seen: JobInfo | None) -> None:
    """Refuse to attach to a job that does something else. Raises ConfigError."""
    if not isinstance(task, TrainRun) or not _attached(task, seen):
        return
    assert seen is not None
    queued = load(task.folder / REQUESTED_CONFIG_FILE)
    if queued != task.config:
        raise ConfigError(
            f"{task.folder} is queued as job {seen.job} with another config; cancel it first, or take another --output"
        )


def _row(group: Stage, layout: Layout, waiting: Sequence[Task], todo: Sequence[Task]) -> Row:
    done = []
    for task in group.tasks:
        known = attempts.submitted(task.folder).job
        what = "submitted" if task in todo else "attached" if task in waiting else "finished"
        done.append((task.label, what, known if task in waiting else ""))
    return Row(group.name, layout, group.after, tuple(done))


def _write_record(plan: Plan, layouts: Mapping[str, Layout]) -> None:
    """What `status`, and the ends of jobs, know of the plan."""
    groups = {
        group.name: {
            "after": list(group.after),
            "anyway": group.always_run,
            "folders": [str(task.folder.resolve()) for task in group.tasks],
            "labels": [task.label for task in group.tasks],
            "runs": isinstance(group.tasks[0], TrainRun),
            "nodes": layouts[group.name].nodes,
            "per_node": layouts[group.name].per_node,
        }
        for group in plan.stages
    }
    record = {"name": plan.name, "command": plan.command, "submitted": attempts.now(), "groups": groups}
    write_atomically(plan.folder / RECORD, json.dumps(record, indent=1) + "\n")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One launcher at a time: two would pay twice. Raises ConfigError."""
    with FileLock(folder / ".submitting") as lock:
        if not lock.acquire(blocking=False):
            raise ConfigError(f"another launcher is submitting {folder} at this moment; try again")
        yield
