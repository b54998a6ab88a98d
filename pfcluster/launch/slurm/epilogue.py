"""The last line of every batch script: decides what follows once the ranks have ended.

    python -m pfcluster.launch.slurm.epilogue FOLDERS --status N

Finished: nothing follows. Ended by a time limit or a preemption: requeued, without counting as a failure. Failed:
requeued, without the node on which it began, unless `attempts.reason_to_give_up` says otherwise; then the stages that
wait for it are cancelled. Cancelled: nothing follows. Standard library only, because it runs outside of a container.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

from pfcluster.launch import attempts, slurm_client
from pfcluster.launch.attempts import Attempt
from pfcluster.launch.job_record import read_job
from pfcluster.launch.slurm.diagnosis import explain
from pfcluster.launch.slurm.resubmit import cancel_waiting, resubmit, this_job
from pfcluster.launch.slurm_client import SlurmError
from pfcluster.runs.folder import CANCELLED_FILE

NODE_FAILURES = ("killed", "storage", "device", "lost rank", "submission")
"""Kinds of failure after which the node is excluded."""


def main() -> int:
    """Returns the exit code of the job: 0 if its task finished, else 1."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", type=Path, help="file with the folders of the array's tasks, one per line")
    parser.add_argument("--status", type=int, required=True, help="exit status of srun")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # SLURM sends it to end the job; the epilogue must complete
    folders = options.folders.read_text(encoding="utf-8").splitlines()
    folder = Path(folders[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))])
    job, restart = os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    attempt = conclude(folder, job, restart, options.status)
    print(f"{attempts.now()} {attempt.outcome}{f', {attempt.next}' if attempt.next else ''}", flush=True)
    return 0 if attempt.outcome == "finished" else 1


def conclude(folder: Path, job: str, restart: int, status: int) -> Attempt:
    """Record how the attempt ended, and requeue or give up."""
    recorded = attempts.read(folder)
    if recorded and (recorded[-1].job, recorded[-1].restart) == (job, restart):
        attempt = recorded[-1]
    else:  # srun did not start rank 0
        attempt = attempts.begin(folder, job, restart, os.environ.get("SLURM_JOB_NODELIST", ""))
    if attempt.outcome == "finished":
        return attempt
    cause = _signal_cause(folder, job, restart)
    if cause == "cancelled":
        return attempts.end(folder, attempt, "cancelled")
    if cause == "requeued":  # by SLURM after a preemption, or by a user
        return attempts.end(folder, attempt, "preempted", next="requeued by SLURM")
    if cause == "timed out":
        return _run_again(folder, attempts.end(folder, attempt, "time limit"), job)
    if attempt.outcome == "stopped":
        time_limit = attempt.signal == "SIGUSR2" and not _is_preempted(job)
        return _run_again(folder, attempts.end(folder, attempt, "time limit" if time_limit else "preempted"), job)
    if cause == "preempted" or (cause == "warned" and _is_preempted(job)):  # before the ranks handled signals
        return _run_again(folder, attempts.end(folder, attempt, "preempted"), job)
    return _handle_failure(folder, attempt, job, status)


def _signal_cause(folder: Path, job: str, restart: int) -> slurm_client.SignalCause:
    if (folder / CANCELLED_FILE).exists():
        return "cancelled"
    try:
        return slurm_client.signal_cause(slurm_client.find_job(job), restart)
    except SlurmError:
        return "warned"  # unknown: what the ranks recorded decides


def _is_preempted(job: str) -> bool:
    try:
        info = slurm_client.find_job(job)
    except SlurmError:
        return False
    return info is not None and info.preempted


def _handle_failure(folder: Path, attempt: Attempt, job: str, status: int) -> Attempt:
    """Record why the attempt failed, and requeue or give up."""
    attempt = attempts.end(folder, attempt, "failed", **explain(folder, attempt, job, status))
    reason = attempts.reason_to_give_up(attempts.read(folder), read_job(folder).retries)
    if reason is None:
        return _run_again(folder, attempt, job, node=attempt.node if attempt.kind in NODE_FAILURES else None)
    stages = cancel_waiting(folder)
    cancelled = f"; {', '.join(stages)} will not run" if stages else ""
    attempt = replace(attempt, next=f"given up: {reason}{cancelled}")
    attempts.write(folder, attempt)
    return attempt


def _run_again(folder: Path, attempt: Attempt, job: str, node: str | None = None) -> Attempt:
    """Requeue the job, without a node. If SLURM refuses, submit a new job, unless rank 0 has done so, and update the
    jobs that wait for it.
    """
    exclude, follower = _nodes_to_exclude(job, node), read_job(folder).job
    if follower not in ("", this_job()):
        follows = f"submitted again as {follower}"
    else:
        try:
            slurm_client.requeue(job, exclude)
            follows = "requeued"
        except SlurmError as refused:
            try:
                follows = f"submitted again as {resubmit(folder, exclude)}"
            except (SlurmError, OSError) as error:
                follows = f"given up: neither requeued ({refused}) nor submitted again ({error}); {attempts.CONTINUES}"
    attempt = replace(attempt, next=follows, excluded=exclude)
    attempts.write(folder, attempt)
    return attempt


def _nodes_to_exclude(job: str, node: str | None) -> str | None:
    """The node and those excluded before; None if too few nodes would be left."""
    if node is None:
        return None
    try:
        text = slurm_client.run_command("scontrol", "--oneliner", "show", "job", job, retry_seconds=30)
        match = re.search(r"ExcNodeList=(\S+)", text)
        before = [] if match is None or match.group(1) == "(null)" else slurm_client.expand(match.group(1))
        excluded = sorted({*before, node})
        partition = re.search(r"Partition=(\S+)", text)
        usable = slurm_client.usable_nodes(partition.group(1) if partition else None, excluded)
    except SlurmError:
        return None
    return ",".join(excluded) if len(usable) >= int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) else None


if __name__ == "__main__":
    sys.exit(main())
