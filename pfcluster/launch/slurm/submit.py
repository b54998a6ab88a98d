"""Submits a plan: one submitit array per stage, with dependencies on the stages before it.

Submitting the same plan again attaches to what is queued or running, skips what is finished, and submits the rest.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pfcluster.config import ConfigError
from pfcluster.config.io import load
from pfcluster.launch import attempts, slurm_client
from pfcluster.launch.code_snapshot import snapshot
from pfcluster.launch.job_record import JobRecord, read_job, write_job
from pfcluster.launch.launcher_lock import require_kind, require_no_launcher
from pfcluster.launch.plan import Plan, Stage, Task, TrainRun
from pfcluster.launch.plan_record import write_plan
from pfcluster.launch.queued_plans import QueuedPlans
from pfcluster.launch.site import Site
from pfcluster.launch.slurm.script import FOLDERS_FILE, SCRIPTS_DIR, Layout, executor_of, layout_of, scripts_folder
from pfcluster.launch.slurm.task import read_task, run_task
from pfcluster.launch.slurm_client import JOB_VARIABLES, JobInfo, UnreachableError
from pfcluster.runs.folder import CANCELLED_FILE, REQUESTED_CONFIG_FILE, TASK_FILE, write_requested_config
from pfcluster.system.atomic_files import write_atomically
from pfcluster.system.locks import FileLock

SCRIPT_VARIABLES = tuple(
    f"SBATCH_{name}"
    for name in (
        "JOB_NAME",
        "TIMELIMIT",
        "SIGNAL",
        "OUTPUT",
        "ERROR",
        "OPEN_MODE",
        "ARRAY_INX",
        "REQUEUE",
        "NO_REQUEUE",
    )
)
"""Variables for options that every batch script has."""
VARIABLES_OF_OPTIONS = {
    "partition": "SBATCH_PARTITION",
    "account": "SBATCH_ACCOUNT",
    "qos": "SBATCH_QOS",
    "constraint": "SBATCH_CONSTRAINT",
    "mem": "SBATCH_MEM_PER_NODE",
}
"""Setting of a site -> variable for the same."""
Action = Literal["finished", "attached", "submitted"]


@dataclass(frozen=True)
class SubmittedTask:
    """What was done for a task."""

    label: str
    action: Action
    job: str
    """Its job; empty if the task is finished."""


@dataclass(frozen=True)
class SubmittedStage:
    """What was done for a stage."""

    name: str
    layout: Layout
    after: tuple[str, ...]
    tasks: tuple[SubmittedTask, ...]


def submit(plan: Plan, site: Site, *, processes: int, retries: int) -> list[SubmittedStage]:
    """Submit a plan to SLURM; returns what was done for each stage. Raises ConfigError, also while another launcher
    works in the folder, and SlurmError; UnreachableError while the controller does not answer: submitting again then
    attaches to what it has accepted.
    """
    require_kind(plan.folder, grows=plan.grows)
    if not plan.grows:  # else this process drives it
        require_no_launcher(plan.folder)
    missing = [name for name in site.secrets if name not in os.environ]
    if missing:
        raise ConfigError(f"{site.source}: secrets names {missing[0]}, which is not set in this shell; export it first")
    layouts = {stage.name: layout_of(stage, site, processes) for stage in plan.stages}
    plan.folder.mkdir(parents=True, exist_ok=True)
    with _submit_lock(plan.folder):
        submission = _Submission(plan, site, layouts, retries)
        for task in submission.unfinished_tasks():
            _check_same_task(task, submission.job_of(task))
        nodes = {name: (layout.nodes, layout.per_node) for name, layout in layouts.items()}
        write_plan(plan, "slurm", nodes, also=submission.queued.launches)
        submission.code = snapshot(plan.folder)
        return [submission.submit_stage(stage) for stage in plan.stages]


class _Submission:
    """The state of a plan's tasks while its stages are submitted one after the other."""

    def __init__(self, plan: Plan, site: Site, layouts: Mapping[str, Layout], retries: int) -> None:
        self.plan, self.site, self.layouts, self.retries = plan, site, layouts, retries
        self.code = Path()
        self.records = {task.folder: _current_job(task) for stage in plan.stages for task in stage.tasks}
        self.jobs = slurm_client.job_states(record.job for record in self.records.values())
        self.unfinished = {stage.name: [task for task in stage.tasks if not task.finished()] for stage in plan.stages}
        self.resubmitted: set[str] = set()
        """Stages of which tasks were submitted: what waits for them must be submitted again, too."""
        self.resubmitted_folders: set[Path] = set()
        """Folders of those tasks."""
        self.same_seed = plan.same_seed_runs()
        self.queued = QueuedPlans(plan)

    def unfinished_tasks(self) -> list[Task]:
        return [task for tasks in self.unfinished.values() for task in tasks]

    def job_of(self, task: Task) -> JobInfo | None:
        return self.jobs.get(self.records[task.folder].job)

    def submit_stage(self, stage: Stage) -> SubmittedStage:
        """Submit the unfinished tasks of a stage that no job is going to execute."""
        new = [
            task
            for task in self.unfinished[stage.name]
            if not _will_execute(task, self.job_of(task)) or self._follows_resubmitted(stage, task)
        ]
        if new:
            self.resubmitted.add(stage.name)
            self.resubmitted_folders |= {task.folder for task in new}
            previous = [self.records[task.folder].job for task in new]
            replaced = [job for job in previous if job in self.jobs and self.jobs[job].alive]
            slurm_client.cancel(replaced)
            for dependency, tasks in self._by_dependency(stage, new, replaced).items():
                _submit_array(self, stage, tasks, dependency)
        results = tuple(self._result(task, stage, new) for task in stage.tasks)
        return SubmittedStage(stage.name, self.layouts[stage.name], stage.predecessors, results)

    def _follows_resubmitted(self, stage: Stage, task: Task) -> bool:
        """Whether something that the task waits for was submitted just now."""
        same_seed = self.same_seed.get(task.folder, ())
        return bool(self.resubmitted & set(stage.after)) or any(
            before.folder in self.resubmitted_folders for before in same_seed
        )

    def _by_dependency(self, stage: Stage, tasks: Sequence[Task], replaced: Sequence[str]) -> dict[str, list[Task]]:
        """Tasks of a stage by sbatch's --dependency. Tasks that wait for a run with their own seed become one job each
        (`aftercorr` would need arrays with equal indices, which those of a repeated command have not).
        """
        common = [read_job(task.folder).job for name in stage.after for task in self.unfinished[name]]
        by_dependency: dict[str, list[Task]] = {}
        for task in tasks:
            own = [before for before in self.same_seed.get(task.folder, ()) if not before.finished()]
            jobs = [*common, *(read_job(before.folder).job for before in own)]
            jobs += self.queued.jobs_before(stage.name, task.folder)
            dependency = _dependency([], [*jobs, *replaced]) if stage.always_run else _dependency(jobs, replaced)
            by_dependency.setdefault(dependency, []).append(task)
        return by_dependency

    def _result(self, task: Task, stage: Stage, new: Sequence[Task]) -> SubmittedTask:
        if task not in self.unfinished[stage.name]:
            return SubmittedTask(task.label, "finished", "")
        return SubmittedTask(task.label, "submitted" if task in new else "attached", read_job(task.folder).job)


def _submit_array(submission: _Submission, stage: Stage, tasks: Sequence[Task], dependency: str) -> None:
    """Write the files that the tasks need, then submit them as one array. Raises ConfigError if sbatch refuses,
    UnreachableError if the controller does not answer.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    plan, token = submission.plan, uuid.uuid4().hex[:12]
    (plan.folder / SCRIPTS_DIR).mkdir(parents=True, exist_ok=True)
    scripts = scripts_folder(plan, stage, f"-{token}", create=True)
    scripts.mkdir()
    write_atomically(scripts / FOLDERS_FILE, "".join(f"{task.folder.resolve()}\n" for task in tasks))
    for task in tasks:
        _write_task(task, plan.command)
        previous = read_job(task.folder)
        number = previous.submission + (previous.job != "" or not previous.submission)  # one never accepted is repeated
        plan_folder = str(plan.folder.resolve())
        record = JobRecord("", number, submission.retries, plan_folder, stage.name, str(scripts), token=token)
        write_job(task.folder, record)
    more: dict[str, Any] = {"comment": f"pfcluster:{token}"}
    if dependency:
        more["dependency"] = dependency
    layout = submission.layouts[stage.name]
    executor = executor_of(plan, stage, submission.site, layout, submission.code, scripts, more)
    try:
        with _without_variables(submission.site.for_run(stage.name)):
            jobs = executor.map_array(run_task, [str(task.folder.resolve()) for task in tasks])
    except (FailedJobError, FailedSubmissionError) as error:
        if slurm_client.is_unreachable(str(error)):
            raise UnreachableError(f"sbatch: {' '.join(str(error).split())[-200:]}") from error
        lines = [line.removeprefix("sbatch: error: ") for line in str(error).splitlines() if "sbatch:" in line]
        raise ConfigError(f"SLURM refused {stage.name}: {'; '.join(lines) or error}") from error
    finally:
        make_private(scripts)
    for task, job in zip(tasks, jobs, strict=True):
        write_job(task.folder, replace(read_job(task.folder), job=str(job.job_id)))


def make_private(scripts: Path) -> None:
    """Let only the user read the batch scripts, which hold the environment of the jobs. The umask is not changed: SLURM
    would pass it on to the jobs, and other users could not read the runs.
    """
    for path in scripts.glob("*.sh"):
        path.chmod(0o600)


def _write_task(task: Task, command: str) -> None:
    """Write what a task executes into its folder."""
    task.folder.mkdir(parents=True, exist_ok=True)
    (task.folder / CANCELLED_FILE).unlink(missing_ok=True)
    values: dict[str, Any] = {"label": task.label, "command": command, "module": None, "arguments": []}
    if isinstance(task, TrainRun):
        write_requested_config(task.folder, task.config)
    else:
        values |= {"module": task.module, "arguments": list(task.arguments)}
    write_atomically(task.folder / TASK_FILE, json.dumps(values, indent=1) + "\n")


def _current_job(task: Task) -> JobRecord:
    """The job record of a task. If a launcher was killed during its submission, the job is identified by its token."""
    record = read_job(task.folder)
    if record.job or not record.token:
        return record
    text = slurm_client.run_command(
        "squeue", "--noheader", "--array", "--states=all", "--format=%i|%k", "--me", retry_seconds=10
    )
    jobs = [line.split("|")[0] for line in text.splitlines() if line.endswith(f"pfcluster:{record.token}")]
    if not jobs:  # it was refused
        return record
    folders = (Path(record.scripts) / FOLDERS_FILE).read_text(encoding="utf-8").splitlines()
    if len(folders) > 1:
        index = str(folders.index(str(task.folder.resolve())))
        jobs = [job for job in jobs if job.split("_")[-1] == index]
    if jobs:
        record = replace(record, job=jobs[0])
        write_job(task.folder, record)
    return record


def _dependency(succeeded: Sequence[str], ended: Sequence[str]) -> str:
    """The value of sbatch's --dependency: after some jobs have succeeded and others have ended. The latter are jobs
    that still write a checkpoint into the same folder, and everything that a stage that always runs waits for.
    """
    kinds = {"afterok": succeeded, "afterany": ended}
    return ",".join(":".join([kind, *dict.fromkeys(jobs)]) for kind, jobs in kinds.items() if jobs)


def _will_execute(task: Task, job: JobInfo | None) -> bool:
    """Whether a job is going to execute the task. One that is ending does so only if it starts again."""
    if job is None or not job.alive or job.hopeless:
        return False
    if job.state != "COMPLETING":
        return True
    recorded = attempts.read(task.folder)
    return bool(recorded) and (recorded[-1].next or "").startswith(("requeued", "submitted"))


def _check_same_task(task: Task, job: JobInfo | None) -> None:
    """Raises ConfigError if the job of a task was submitted with another config or command."""
    if job is None or not _will_execute(task, job):
        return
    if isinstance(task, TrainRun):
        differs = "config" if load(task.folder / REQUESTED_CONFIG_FILE) != task.config else None
    else:
        submitted = read_task(task.folder)
        differs = "command" if (submitted.module, submitted.arguments) != (task.module, task.arguments) else None
    if differs:
        name = "--output" if isinstance(task, TrainRun) else "--output or --job-name"
        raise ConfigError(
            f"{task.folder} is queued as job {job.job} with another {differs}; cancel it first, or use another {name}"
        )


@contextmanager
def _without_variables(site: Site) -> Iterator[None]:
    """Hide variables that sbatch would read as options: those of a job in which the launcher itself runs, and the
    user's variables for options of the batch script, over which they would take precedence.
    """
    of_job = JOB_VARIABLES if "SLURM_JOB_ID" in os.environ else ()
    given = [name for option, name in VARIABLES_OF_OPTIONS.items() if getattr(site, option) is not None]
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if (name.startswith(of_job) and name != "SLURM_CONF") or name in (*SCRIPT_VARIABLES, *given)
    }
    try:
        yield
    finally:
        os.environ |= hidden


@contextmanager
def _submit_lock(folder: Path) -> Iterator[None]:
    """Allow one submission of a plan at a time, so that nothing is submitted twice. Raises ConfigError."""
    with FileLock(folder / ".submitting") as lock:
        if not lock.acquire(blocking=False):
            raise ConfigError(f"another launcher is submitting {folder}; try again in a moment")
        yield
