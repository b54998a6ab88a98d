"""What SLURM knows of jobs, and what may be asked of it. Standard library only: the end of every batch job runs this.

A job is named as SLURM prints it: `12`, or `12_3` for a task of an array.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

UNREACHABLE = ("Unable to contact slurm controller", "Connection refused", "timed out", "Zero Bytes were transmitted")
PATIENCE = 300.0
"""Seconds that a question is repeated while the controller does not answer: it may be restarting."""
FIELDS = ("ArrayJobId", "ArrayTaskId", "JobId", "JobState", "Restarts", "PreemptTime", "EndTime", "NodeList", "Reason")
ENDED_WELL = "COMPLETED"
UNDER_WAY = ("RUNNING", "SUSPENDED", "CONFIGURING", "SIGNALING", "STOPPED", "RESIZING")
"""SIGNALING stands in RUNNING's place for a moment while a signal is on its way."""
ALIVE = (*UNDER_WAY, "PENDING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "STAGE_OUT")
StopDecision = Literal["cancelled", "requeued", "preempted", "warned"]


class SlurmError(ValueError):
    """SLURM refused something: what was asked, what it said, what to do."""


@dataclass(frozen=True)
class JobInfo:
    """A job as slurmctld or the accounting sees it."""

    job: str
    state: str
    """PENDING, RUNNING, COMPLETING, COMPLETED, FAILED, ..."""
    reason: str = ""
    """Why it waits."""
    nodes: str = ""
    restarts: int = 0
    preempted: bool = False
    ends: datetime | None = None
    """When it will be killed, on the controller's clock."""
    left: str = ""
    """Time left to its limit, as SLURM prints it."""

    @property
    def alive(self) -> bool:
        return self.state in ALIVE

    @property
    def hopeless(self) -> bool:
        """Waits for a job that ended badly."""
        return self.state == "PENDING" and self.reason.startswith("DependencyNeverSatisfied")


def ask(*arguments: str, patience: float = PATIENCE) -> str:
    """The output of a SLURM command, in the language of its manual. Raises SlurmError with what it said."""
    environment = os.environ | {"LC_ALL": "C", "SLURM_TIME_FORMAT": "standard"}
    for name in ("SQUEUE_FORMAT", "SQUEUE_FORMAT2", "SACCT_FORMAT", "SQUEUE_STATES", "SQUEUE_USERS"):
        environment.pop(name, None)
    deadline = time.monotonic() + patience
    while True:
        try:
            done = subprocess.run(
                arguments, capture_output=True, text=True, env=environment, check=False, timeout=60, errors="replace"
            )
            said = " ".join(done.stderr.split()).rpartition("fatal: ")[2]
            if done.returncode == 0:
                return done.stdout
        except FileNotFoundError as error:
            raise SlurmError(f"no {arguments[0]} on this machine's PATH") from error
        except subprocess.TimeoutExpired:
            said = f"{arguments[0]} timed out"
        if not any(words in said for words in UNREACHABLE) or time.monotonic() > deadline:
            raise SlurmError(f"{' '.join(arguments)}: {said or 'failed without a word'}")
        time.sleep(2)


def available() -> tuple[bool, str]:
    """Whether jobs can be handed to a SLURM from here, and why or why not. Raises SlurmError where one is configured
    and does not answer: to run on this machine instead would be a surprise.
    """
    if shutil.which("sbatch") is None:
        return False, "no sbatch on the PATH"
    if "SLURM_JOB_ID" in os.environ:
        return False, f"inside SLURM job {os.environ['SLURM_JOB_ID']}"
    try:
        ask("sinfo", "--noheader", "--format=%P", patience=5)
    except SlurmError as error:
        if any(words in str(error) for words in UNREACHABLE):
            raise SlurmError(
                f"sbatch is here, but the controller does not answer ({error}); try later, or run on this machine with"
                " --executor local"
            ) from error
        return False, f"sbatch is here, but no cluster behind it ({error})"
    return True, "sbatch is here and a cluster answers"


def look(job: str, *, patience: float = PATIENCE) -> JobInfo | None:
    """One job in slurmctld's memory, by its own number or as `array_task`; None where it is forgotten."""
    try:
        text = ask("scontrol", "--oneliner", "show", "job", job, patience=patience)
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    found = [read_job(line) for line in text.splitlines() if line.startswith("JobId=")]
    return found[0] if found else None


def read_job(line: str) -> JobInfo:
    """A line of `scontrol --oneliner show job`."""
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


def verdict(seen: JobInfo | None, restarts: int) -> StopDecision:
    """What a signal means to a job that has been restarted so often: SLURM cancelled it (a person did), puts it back
    into the queue by itself, ends it for good although nobody cancelled it, or only warned it (time limit, grace time).

    A job that is being ended has no state but COMPLETING in `scontrol`; its count of restarts and its time of
    preemption tell the cases apart (seen with SLURM 22.05).
    """
    if seen is None:
        return "cancelled"
    if seen.restarts > restarts or seen.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD"):
        return "requeued"
    if seen.state in UNDER_WAY:
        return "warned"
    return "preempted" if seen.preempted or seen.state == "PREEMPTED" else "cancelled"


def states(jobs: Iterable[str], *, patience: float = 10.0) -> dict[str, JobInfo]:
    """All that is known of these jobs: slurmctld first, then the accounting where there is one. Forgotten jobs are left
    out. Raises SlurmError where nothing answers.
    """
    wanted = {job for job in jobs if job}
    if not wanted:
        return {}
    found = {seen.job: seen for seen in _queue(wanted, patience) if seen.job in wanted}
    missing = wanted - set(found)
    if missing and shutil.which("sacct"):
        found |= {seen.job: seen for seen in _accounted(missing) if seen.job in missing}
    return found


def _queue(wanted: set[str], patience: float) -> list[JobInfo]:
    """squeue's view. It refuses a list with one forgotten job only where it is the only one: it then has no line."""
    numbers = sorted({job.split("_")[0] for job in wanted}, key=int)
    layout = "%i|%T|%r|%N|%L"
    try:
        text = ask(
            "squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(numbers)}", f"--format={layout}",
            patience=patience,
        )  # fmt: skip
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return []
        raise
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 4]
    return [
        JobInfo(job, state, "" if reason == "None" else reason, nodes, left=left)
        for job, state, reason, nodes, left in rows
    ]


def _accounted(wanted: set[str]) -> list[JobInfo]:
    """sacct's view, where the site has accounting."""
    try:
        text = ask(
            "sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(sorted(wanted))}",
            "--format=JobID,State,NodeList", patience=0,
        )  # fmt: skip
    except SlurmError:
        return []
    rows = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
    return [
        JobInfo(job, state.split()[0], nodes="" if nodes == "None assigned" else nodes) for job, state, nodes in rows
    ]


def requeue(job: str, exclude: str | None = None) -> None:
    """Put a running or just ended job back into the queue, away from some nodes. Raises SlurmError."""
    if exclude is None:
        ask("scontrol", "requeue", job)
        return
    ask("scontrol", "requeuehold", job)
    try:
        ask("scontrol", "update", f"JobId={job}", f"ExcNodeList={exclude}")
    finally:
        ask("scontrol", "release", job)


def cancel(jobs: Iterable[str]) -> None:
    """End jobs; those that ended already are passed over. Raises SlurmError."""
    wanted = sorted(set(jobs))
    if wanted:
        try:
            ask("scancel", *wanted)
        except SlurmError as error:
            if "Invalid job id" not in str(error):
                raise


def partition(name: str | None) -> dict[str, str]:
    """What `scontrol show partition` says of a partition; of the default one for None. Raises SlurmError."""
    text = ask("scontrol", "--oneliner", "show", "partition", *([name] if name else []), patience=5)
    rows = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in text.splitlines() if line.strip()]
    chosen = [row for row in rows if name or row.get("Default") == "YES"]
    if not chosen:
        raise SlurmError(f"the cluster has no default partition: give --partition, one of {', '.join(_names(rows))}")
    return chosen[0]


def _names(rows: Iterable[Mapping[str, str]]) -> list[str]:
    return [row.get("PartitionName", "?") for row in rows]


def usable_nodes(name: str | None, exclude: Iterable[str] = ()) -> set[str]:
    """Nodes of a partition that are not down or drained, but for some."""
    chosen = ["--partition", name] if name else []
    text = ask("sinfo", "--noheader", "--Node", "--format=%N %t", *chosen, patience=5)
    rows = [line.split() for line in text.splitlines()]
    broken = ("down", "drain", "drng", "fail", "unk", "maint", "inval")
    return {row[0] for row in rows if not row[1].startswith(broken)} - set(exclude)


def expand(nodes: str) -> list[str]:
    """`n[1-3,7]` -> its host names."""
    if not nodes:
        return []
    if "[" not in nodes:
        return nodes.split(",")
    return ask("scontrol", "show", "hostnames", nodes, patience=5).split()


def minutes(text: str) -> int | None:
    """SLURM's ways to write a time (`90`, `1:30:00`, `2-00:00:00`) in whole minutes, rounded up; None for no limit.

    Raises SlurmError.
    """
    if text.upper() in ("UNLIMITED", "INFINITE", "NONE", "NOT_SET", "N/A"):
        return None
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if found is None:
        raise SlurmError(f"--time must be minutes, H:MM:SS or D-HH:MM:SS, got {text!r}")
    days, first, second, third = (int(part) if part else 0 for part in found.groups())
    if found.group(1) is not None:
        seconds = ((days * 24 + first) * 60 + second) * 60 + third
    elif found.group(4) is not None:
        seconds = (first * 60 + second) * 60 + third
    else:
        seconds = first * 60 + second
    if seconds < 60:
        raise SlurmError(f"--time must be a minute or more, got {text!r}")
    return -(-seconds // 60)
