"""Executed by submitit on every rank of a SLURM job: `run_task(folder)`.

The ranks connect through SLURM's variables, log to `FOLDER/logs/rank-N.log`, and stop at the end of a step when they
receive a signal. Rank 0 records the attempt. The epilogue decides what follows once all ranks have ended; where that
may be too late, a thread of rank 0 (`SignalWatcher`) requeues the job itself.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pfcluster.config.json_files import read_record
from pfcluster.distributed.hosts import host_name
from pfcluster.distributed.signals import StopRequest
from pfcluster.launch import attempts, slurm_client
from pfcluster.launch.attempts import Failure
from pfcluster.launch.plan import CLI_MODULE
from pfcluster.launch.rank import RankInfo, redirect_output
from pfcluster.launch.slurm.resubmit import resubmit
from pfcluster.launch.training_lock import training_lock
from pfcluster.launch.worker import FAILED, FINISHED, INTERRUPTED, ExitStatus, work
from pfcluster.runs.folder import CANCELLED_FILE, REQUESTED_CONFIG_FILE, TASK_FILE

REQUEUE_SECONDS = 10.0
"""A job that has not stopped this long before SLURM kills it is requeued."""
REQUEST_SECONDS = 60.0
"""Longest time that a rank waits at its end for a request to SLURM under way."""


def rank_info() -> RankInfo:
    """This rank, from SLURM's variables."""
    env = os.environ
    cpus = env.get("SLURM_CPUS_PER_TASK")
    share = int(env.get("SLURM_CPUS_ON_NODE", "1")) // max(1, int(env.get("SLURM_NTASKS_PER_NODE", "1")))
    return RankInfo(
        rank=int(env["SLURM_PROCID"]),
        size=int(env["SLURM_NTASKS"]),
        local_rank=int(env["SLURM_LOCALID"]),
        job=env["SLURM_JOB_ID"],
        restart=int(env.get("SLURM_RESTART_COUNT", "0")),
        nodes=env.get("SLURM_JOB_NODELIST", ""),
        threads=max(1, int(cpus) if cpus else share),
    )


def run_task(folder: str) -> None:
    """Execute the task of a folder in this rank. Raises SystemExit if it failed."""
    with StopRequest() as stop:
        task_folder, info = Path(folder), rank_info()
        with redirect_output(task_folder, info):
            status = _run_alone(task_folder, info, stop)
        if status.kind == "lost rank":
            os._exit(status.code)  # exit handlers of libraries would wait for the lost rank
        if status.code not in (FINISHED, INTERRUPTED):
            sys.exit(status.code)


@dataclass(frozen=True)
class TaskRecord:
    """What a task executes; written by the submission into its `task.json`."""

    label: str
    command: str
    """The shell command that repeats the plan."""
    module: str | None
    """Module that is run with `arguments`; None trains the requested config."""
    arguments: tuple[str, ...]


def read_task(folder: Path) -> TaskRecord:
    """What the task of a folder executes. Raises FileNotFoundError, JsonFileError."""
    return read_record(TaskRecord, folder / TASK_FILE)


def _run_alone(folder: Path, info: RankInfo, stop: StopRequest) -> ExitStatus:
    """`_run` once no other process trains in the folder; a task that only runs a command does not wait."""
    set_process_group_variables(info)
    if read_task(folder).module is not None:
        return _run(folder, info, stop)
    with training_lock(folder, lambda: stop.requested) as acquired:
        if acquired:
            return _run(folder, info, stop)
    if info.rank == 0:  # so that the epilogue sees a stopped attempt, not a failed one
        attempt = attempts.begin(folder, info.job, info.restart, info.nodes)
        name = signal.Signals(stop.signal).name if stop.signal else None
        attempts.end(folder, attempt, "stopped", signal=name)
    return ExitStatus(INTERRUPTED)


def _run(folder: Path, info: RankInfo, stop: StopRequest) -> ExitStatus:
    """Execute the task and record how it ended: rank 0 in the attempt, the other ranks in files of their own."""
    if info.rank:
        number = _attempt_number(folder, info)
        status = execute(folder, info, stop)
        _write_failure(folder, number, info, status)
        return status
    attempt = attempts.begin(folder, info.job, info.restart, info.nodes)
    if not _continues(folder) and attempts.ended_repeatedly(attempts.read(folder)[:-1]):
        error = (
            "three attempts in a row were lost, or ended by their time limit, without an error or a new checkpoint;"
            " check nodes and memory, or use a longer --time"
        )
        status = ExitStatus(FAILED, "user", error)
        _write_failure(folder, attempt.number, info, status)
        return status
    with SignalWatcher(folder, info, stop):
        status = execute(folder, info, stop)
    _write_failure(folder, attempt.number, info, status)
    if status.code in (FINISHED, INTERRUPTED):
        name = signal.Signals(stop.signal).name if stop.signal else None
        attempts.end(folder, attempt, "finished" if status.code == FINISHED else "stopped", signal=name)
    return status


def _continues(folder: Path) -> bool:
    """Whether the task goes on with what an earlier attempt has done, without checkpoints: a build."""
    task = read_task(folder)
    return task.module == CLI_MODULE and task.arguments[:1] == ("build",)


def execute(folder: Path, info: RankInfo, stop: StopRequest) -> ExitStatus:
    """Execute the task: train in this process, or run a command in another."""
    task = read_task(folder)
    if task.module is None:
        return work(folder / REQUESTED_CONFIG_FILE, folder, task.command, info.threads, stop)
    return run_command([sys.executable, "-m", task.module, *task.arguments], stop)


def run_command(command: list[str], stop: StopRequest) -> ExitStatus:
    """Run a command until it ends; when a stop is requested, forward it as SIGTERM."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while process.poll() is None:
        if stop.requested:
            process.send_signal(signal.SIGTERM)
            process.wait()
            break
        time.sleep(0.2)
    code = process.returncode
    if code == 0:
        return ExitStatus(FINISHED)
    if stop.requested:
        return ExitStatus(INTERRUPTED)
    error = f"`{' '.join(command[2:])}` ended with {code}: see the end of logs/rank-0.log"
    return ExitStatus(FAILED, "user" if code == 2 else "bug", error)


def set_process_group_variables(info: RankInfo) -> None:
    """Set the variables from which torch creates a process group."""
    os.environ |= {
        "RANK": str(info.rank),
        "WORLD_SIZE": str(info.size),
        "LOCAL_RANK": str(info.local_rank),
        "OMP_NUM_THREADS": str(info.threads),
        "MASTER_ADDR": _main_address(info.nodes),
    }
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns about an option that is intended (engine/ddp.py)


def _main_address(nodes: str) -> str:
    """The first node's name if it resolves, else the address from which srun started this rank: the batch script runs
    on the first node.
    """
    first = nodes.split(",")[0]
    if "[" in first:
        prefix, ranges = nodes.split("[", 1)
        first = prefix + ranges.split("]")[0].split(",")[0].split("-")[0]
    try:
        socket.getaddrinfo(first, None)
    except OSError:
        return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", first)
    return first


def _write_failure(folder: Path, number: int, info: RankInfo, status: ExitStatus) -> None:
    if status.kind is not None:
        attempts.write_failure(folder, number, Failure(info.rank, host_name(), status.kind, status.error))


def _attempt_number(folder: Path, info: RankInfo) -> int:
    """The number of this attempt, which rank 0 may not have recorded yet."""
    recorded = attempts.read(folder)
    if not recorded:
        return 1
    newest = recorded[-1]
    return newest.number + ((newest.job, newest.restart) != (info.job, info.restart))


class SignalWatcher:
    """Signal-handling thread of rank 0, which works while the main thread is blocked in a collective.

    On a signal it queries SLURM for the cause, and requeues the job, or submits a new one where SLURM refuses, in two
    cases: SLURM preempts the job without requeueing it, or the job is about to be killed before the current step has
    ended.
    """

    def __init__(self, folder: Path, info: RankInfo, stop: StopRequest) -> None:
        self.folder, self.info, self.stop = folder, info, stop
        self._ended = threading.Event()
        self._reader, self._writer = socket.socketpair()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._previous = -1

    def __enter__(self) -> SignalWatcher:
        self._writer.setblocking(False)
        self._previous = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._previous)
        self._ended.set()
        self._writer.close()
        self._thread.join(REQUEST_SECONDS)  # the epilogue must know a job that it is submitting

    def _listen(self) -> None:
        # SLURM signals every process of the step, more than once: the commands below, which inherit this, must survive
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})
        while received := self._reader.recv(64):
            signals = [number for number in received if number in (signal.SIGTERM, signal.SIGUSR2)]
            if signals:
                self.stop.ask(signals[0])
                self._requeue_if_needed()
                return

    def _requeue_if_needed(self) -> None:
        try:
            job = slurm_client.find_job(self.info.job)
            cause = slurm_client.signal_cause(job, self.info.restart)
            print(f"{attempts.now()} received a signal; cause according to SLURM: {cause}", flush=True)
            if cause == "preempted":
                print(f"preempted without a requeue by SLURM: {self._run_again()}", flush=True)
            elif cause == "warned" and job is not None and job.ends is not None:
                seconds = job.ends.timestamp() - time.time() - REQUEUE_SECONDS
                ended = self._ended.wait(max(0.0, seconds))
                if not ended and not (self.folder / CANCELLED_FILE).exists():
                    follows = self._run_again()
                    print(f"no step ended in time: {follows}, to continue from the last checkpoint", flush=True)
        except (slurm_client.SlurmError, OSError) as error:
            print(f"warning: {error}", file=sys.stderr, flush=True)

    def _run_again(self) -> str:
        """Requeue the job or submit a new one; returns which. Raises SlurmError, OSError."""
        try:
            slurm_client.requeue(self.info.job)
        except slurm_client.SlurmError:
            return f"submitted again as {resubmit(self.folder, None)}"
        return "requeued"
