"""Queries and requests to SLURM through its commands. Standard library only: the end of every batch job uses this.

A job id is written as SLURM prints it: `12`, or `12_3` for a task of an array.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

UNREACHABLE = (
    "Unable to contact slurm controller",
    "Connection refused",
    "timed out",
    "Zero Bytes were transmitted",
    "in standby mode",
    "temporarily unable",
)
RETRY_SECONDS = 300.0
"""Seconds for which a command is repeated while the controller does not answer, as during its restart."""
FIELDS = ("ArrayJobId", "ArrayTaskId", "JobId", "JobState", "Restarts", "PreemptTime", "EndTime", "NodeList", "Reason")
STARTED = ("RUNNING", "SUSPENDED", "CONFIGURING", "SIGNALING", "STOPPED", "RESIZING")
"""SIGNALING replaces RUNNING for a moment while a signal is delivered."""
ALIVE = (*STARTED, "PENDING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "STAGE_OUT")
JOB_VARIABLES = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_CPU_BIND", "SBATCH_MEM_BIND", "PMI", "SUBMITIT_")
"""Prefixes of variables that describe a job to its processes; a new job must not inherit them."""
SignalCause = Literal["cancelled", "requeued", "preempted", "timed out", "warned"]


class SlurmError(ValueError):
    """A SLURM command failed: the command, its error, and what to do."""


class UnreachableError(SlurmError):
    """The controller does not answer."""


def is_unreachable(message: str) -> bool:
    """Whether a message of a SLURM command means that the controller does not answer."""
    return any(phrase in message for phrase in UNREACHABLE)


@dataclass(frozen=True)
class JobInfo:
    """A job as slurmctld or the accounting describes it."""

    job: str
    state: str
    """PENDING, RUNNING, COMPLETING, COMPLETED, FAILED, ..."""
    reason: str = ""
    """Why the job is pending, or ended."""
    nodes: str = ""
    restarts: int = 0
    preempted: bool = False
    ends: datetime | None = None
    """Time of its end by the time limit or grace time, on the controller's clock."""

    @property
    def alive(self) -> bool:
        return self.state in ALIVE

    @property
    def hopeless(self) -> bool:
        """Whether it waits for a job that failed, and never starts."""
        return self.state == "PENDING" and self.reason.startswith("DependencyNeverSatisfied")


def run_command(*arguments: str, retry_seconds: float = RETRY_SECONDS) -> str:
    """Run a SLURM command; returns its output, in English. Raises SlurmError with its error message."""
    environment = os.environ | {"LC_ALL": "C", "SLURM_TIME_FORMAT": "standard"}
    for name in ("SQUEUE_FORMAT", "SQUEUE_FORMAT2", "SACCT_FORMAT", "SQUEUE_STATES", "SQUEUE_USERS"):
        environment.pop(name, None)
    deadline = time.monotonic() + retry_seconds
    while True:
        try:
            done = subprocess.run(
                arguments, capture_output=True, text=True, env=environment, check=False, timeout=60, errors="replace"
            )
            message = " ".join(done.stderr.split()).rpartition("fatal: ")[2]
            if done.returncode == 0:
                return done.stdout
        except FileNotFoundError as error:
            raise SlurmError(f"no {arguments[0]} on this machine's PATH") from error
        except subprocess.TimeoutExpired:
            message = f"{arguments[0]} timed out"
        unreachable = is_unreachable(message)
        if not unreachable or time.monotonic() > deadline:
            kind = UnreachableError if unreachable else SlurmError
            raise kind(f"{' '.join(arguments)}: {message or 'failed without a message'}")
        time.sleep(2)


def available() -> tuple[bool, str]:
    """Whether jobs can be submitted from here, and the reason. Raises SlurmError if a cluster is configured but does
    not answer, so that a command does not silently run on this machine instead.
    """
    if shutil.which("sbatch") is None:
        return False, "no sbatch on the PATH"
    if "SLURM_JOB_ID" in os.environ:
        return False, f"inside SLURM job {os.environ['SLURM_JOB_ID']}"
    try:
        run_command("sinfo", "--noheader", "--format=%P", retry_seconds=5)
    except UnreachableError as error:
        raise SlurmError(
            f"sbatch is installed, but the controller does not answer ({error}); try again later, or run on this"
            " machine with --executor local"
        ) from error
    except SlurmError as error:
        return False, f"sbatch is installed, but no cluster answers ({error})"
    return True, "sbatch is installed and a cluster answers"


def find_job(job: str, *, retry_seconds: float = RETRY_SECONDS) -> JobInfo | None:
    """A job in slurmctld's memory, by its own id or as `array_task`; None if slurmctld has forgotten it."""
    try:
        text = run_command("scontrol", "--oneliner", "show", "job", job, retry_seconds=retry_seconds)
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    jobs = [parse_job(line) for line in text.splitlines() if line.startswith("JobId=")]
    return jobs[0] if jobs else None


def parse_job(line: str) -> JobInfo:
    """Parse a line of `scontrol --oneliner show job`."""
    values = dict(re.findall(rf"\b({'|'.join(FIELDS)})=(\S*)", line))
    array, task = values.get("ArrayJobId"), values.get("ArrayTaskId", "")
    job = f"{array}_{task}" if array and task.isdecimal() else values["JobId"]
    nodes = "" if values.get("NodeList") in (None, "(null)") else values["NodeList"]
    reason = "" if values.get("Reason") in (None, "None") else values["Reason"]
    preempted = values.get("PreemptTime", "None") not in ("None", "Unknown", "N/A", "")
    restarts = int(values.get("Restarts") or 0)
    state = values["JobState"].split(",")[0]
    return JobInfo(job, state, reason, nodes, restarts, preempted, _time(values.get("EndTime", "")))


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def signal_cause(job: JobInfo | None, restarts: int) -> SignalCause:
    """Why SLURM sent a signal to a job that had been restarted `restarts` times before.

    "cancelled": by a user; "requeued": SLURM restarts it; "preempted": SLURM ends it and does not restart it; "timed
    out": it is at its time limit; "warned": the time limit or the grace time approaches. A job that is ending has only
    the state COMPLETING in `scontrol`; its restarts, its preemption time and its reason distinguish the cases (observed
    with SLURM 22.05).
    """
    if job is None:
        return "cancelled"
    if job.restarts > restarts or job.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD"):
        return "requeued"
    if job.state in STARTED:
        return "warned"
    if job.reason == "TimeLimit":
        return "timed out"
    return "preempted" if job.preempted or job.state == "PREEMPTED" else "cancelled"


def job_states(ids: Iterable[str], *, retry_seconds: float = 10.0) -> dict[str, JobInfo]:
    """Jobs by their ids, from slurmctld, or from the accounting (if there is one) for those that it no longer lists.
    Jobs that are in neither are left out. Raises SlurmError if nothing answers.
    """
    requested = {job for job in ids if job}
    if not requested:
        return {}
    jobs = {job.job: job for job in _queued_jobs(requested, retry_seconds) if job.job in requested}
    missing = requested - set(jobs)
    if missing and shutil.which("sacct"):
        jobs |= {job.job: job for job in _accounted_jobs(missing) if job.job in missing}
    return jobs


def _queued_jobs(ids: set[str], retry_seconds: float) -> list[JobInfo]:
    """Jobs that squeue lists. It rejects a list with a job that it no longer knows only if that is the only one."""
    numbers = sorted({job.split("_")[0] for job in ids}, key=int)
    try:
        text = run_command(
            "squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(numbers)}", "--format=%i|%T|%r|%N",
            retry_seconds=retry_seconds,
        )  # fmt: skip
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return []
        raise
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 3]
    return [JobInfo(job, state, "" if reason == "None" else reason, nodes) for job, state, reason, nodes in rows]


def _accounted_jobs(ids: set[str]) -> list[JobInfo]:
    """Jobs that sacct lists; none on a site without accounting."""
    try:
        text = run_command(
            "sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(sorted(ids))}",
            "--format=JobID,State,NodeList", retry_seconds=0,
        )  # fmt: skip
    except SlurmError:
        return []
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
    return [
        JobInfo(job, state.split()[0], nodes="" if nodes == "None assigned" else nodes) for job, state, nodes in rows
    ]


def requeue(job: str, exclude: str | None = None) -> None:
    """Requeue a running or just ended job, excluding some nodes. Raises SlurmError."""
    if exclude is None:
        run_command("scontrol", "requeue", job)
        return
    run_command("scontrol", "requeuehold", job)
    try:
        run_command("scontrol", "update", f"JobId={job}", f"ExcNodeList={exclude}")
    finally:
        run_command("scontrol", "release", job)


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs; those that have ended are ignored. Raises SlurmError."""
    ids = sorted(set(jobs))
    if ids:
        try:
            run_command("scancel", *ids)
        except SlurmError as error:
            if "Invalid job id" not in str(error):
                raise


def partition(name: str | None) -> dict[str, str]:
    """Settings of a partition, or of the default one, from `scontrol show partition`. Of several, separated by commas,
    of which a job runs in the first that is free: the shortest time limit and the largest number of nodes. Raises
    SlurmError.
    """
    names = [each for each in (name or "").split(",") if each]
    if len(names) > 1:
        several = [partition(each) for each in names]
        limits = [each.get("MaxTime", "UNLIMITED") for each in several]
        shortest = min(limits, key=lambda limit: math.inf if (value := minutes(limit)) is None else value)
        largest = max((int(total) for each in several if (total := each.get("TotalNodes", "")).isdecimal()), default="")
        return {"PartitionName": ",".join(names), "MaxTime": shortest, "TotalNodes": str(largest)}
    text = run_command("scontrol", "--oneliner", "show", "partition", *([name] if name else []), retry_seconds=5)
    rows = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in text.splitlines() if line.strip()]
    chosen = [row for row in rows if name or row.get("Default") == "YES"]
    if not chosen:
        raise SlurmError(f"the cluster has no default partition: set --partition, one of {', '.join(_names(rows))}")
    return chosen[0]


def _names(rows: Iterable[Mapping[str, str]]) -> list[str]:
    return [row.get("PartitionName", "?") for row in rows]


def usable_nodes(name: str | None, exclude: Iterable[str] = ()) -> set[str]:
    """Nodes of a partition that are neither down, drained nor excluded."""
    chosen = ["--partition", name] if name else []
    text = run_command("sinfo", "--noheader", "--Node", "--format=%N %t", *chosen, retry_seconds=5)
    rows = [line.split() for line in text.splitlines()]
    unusable = ("down", "drain", "drng", "fail", "unk", "maint", "inval")
    return {row[0] for row in rows if not row[1].startswith(unusable)} - set(exclude)


def expand(nodes: str) -> list[str]:
    """Expand a host list such as `n[1-3,7]` into host names."""
    if not nodes:
        return []
    if "[" not in nodes:
        return nodes.split(",")
    return run_command("scontrol", "show", "hostnames", nodes, retry_seconds=5).split()


def minutes(text: str) -> int | None:
    """Parse a time limit of SLURM (`90`, `1:30:00`, `2-00:00:00`) into whole minutes, rounded up; None for no limit.

    Raises SlurmError.
    """
    if text.upper() in ("UNLIMITED", "INFINITE", "NONE", "NOT_SET", "N/A"):
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise SlurmError(f"--time must be minutes, H:MM:SS or D-HH:MM:SS, got {text!r}")
    days, first, second, third = (int(part) if part else 0 for part in match.groups())
    if match.group(1) is not None:
        seconds = ((days * 24 + first) * 60 + second) * 60 + third
    elif match.group(4) is not None:
        seconds = (first * 60 + second) * 60 + third
    else:
        seconds = first * 60 + second
    if seconds < 60:
        raise SlurmError(f"--time must be a minute or more, got {text!r}")
    return -(-seconds // 60)
