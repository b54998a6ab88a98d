"""What submitit starts on every rank of a SLURM job: `run_task(folder)`.

The ranks find each other by SLURM's variables, write to `FOLDER/logs/rank-N.log`, and take a signal as a wish to stop
at the next step's end. Rank 0 keeps the attempt's record. Whether the job goes on, and how, is decided when they have
ended (`end.py`); only where that might come too late a guard beside rank 0 asks SLURM itself.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from pfcluster.distributed.hosts import host_name
from pfcluster.distributed.signals import StopRequest
from pfcluster.launch import attempts
from pfcluster.launch.attempts import Failure
from pfcluster.launch.rank import RankInfo, redirect_output
from pfcluster.launch.slurm import client
from pfcluster.launch.worker import FAILED, FINISHED, INTERRUPTED, ExitStatus, work
from pfcluster.runs.folder import REQUESTED_CONFIG_FILE, TASK_FILE

LAST_SECONDS = 10.0
"""Before SLURM kills a job that has not stopped yet, it is put back into the queue as it is."""


def here() -> RankInfo:
    """Read off SLURM's variables."""
    found = os.environ
    cpus = found.get("SLURM_CPUS_PER_TASK")
    share = int(found.get("SLURM_CPUS_ON_NODE", "1")) // max(1, int(found.get("SLURM_NTASKS_PER_NODE", "1")))
    return RankInfo(
        rank=int(found["SLURM_PROCID"]),
        size=int(found["SLURM_NTASKS"]),
        local_rank=int(found["SLURM_LOCALID"]),
        job=found["SLURM_JOB_ID"],
        restart=int(found.get("SLURM_RESTART_COUNT", "0")),
        nodes=found.get("SLURM_JOB_NODELIST", ""),
        threads=max(1, int(cpus) if cpus else share),
    )


def run_task(folder: str) -> None:
    """Run the task of a folder in this rank; leaves by SystemExit where it failed."""
    with StopRequest() as stop:
        place, mine = Path(folder), here()
        with redirect_output(place, mine):
            ending = _run(place, mine, stop)
        if ending.kind == "lost rank":
            os._exit(ending.code)  # libraries' own ends would wait for the lost rank
        if ending.code not in (FINISHED, INTERRUPTED):
            sys.exit(ending.code)


def _run(place: Path, mine: RankInfo, stop: StopRequest) -> ExitStatus:
    join(mine)
    if mine.rank:
        number = _number(place, mine)
        ending = execute(place, mine, stop)
        _tell(place, number, mine, ending)
        return ending
    attempt = attempts.begin(place, mine.job, mine.restart, mine.nodes)
    if attempts.vanished(attempts.read(place)[:-1]):
        error = "three attempts in a row vanished without a word or a new checkpoint; look at its nodes and its memory"
        ending = ExitStatus(FAILED, "user", error)
        _tell(place, attempt.number, mine, ending)
        return ending
    with SignalWatcher(mine, stop):
        ending = execute(place, mine, stop)
    _tell(place, attempt.number, mine, ending)
    if ending.code in (FINISHED, INTERRUPTED):
        outcome = "finished" if ending.code == FINISHED else "stopped"
        name = signal.Signals(stop.signal).name if stop.signal else None
        attempts.end(place, attempt, outcome, signal=name)  # type: ignore[arg-type]
    return ending


def execute(place: Path, mine: RankInfo, stop: StopRequest) -> ExitStatus:
    """The task itself: a run in this process, or a command in another."""
    task = json.loads((place / TASK_FILE).read_text())
    if task["module"] is None:
        return work(place / REQUESTED_CONFIG_FILE, place, task["command"], mine.threads, stop)
    return call([sys.executable, "-m", task["module"], *task["arguments"]], stop)


def call(command: list[str], stop: StopRequest) -> ExitStatus:
    """Run a command until it ends or a signal asks to stop: then it is asked, too."""
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
    words = f"`{' '.join(command[2:])}` ended with {code}: the end of logs/rank-0.log says why"
    return ExitStatus(FAILED, "user" if code == 2 else "bug", words)


def join(mine: RankInfo) -> None:
    """Set what torch's process groups look for."""
    os.environ |= {
        "RANK": str(mine.rank),
        "WORLD_SIZE": str(mine.size),
        "LOCAL_RANK": str(mine.local_rank),
        "OMP_NUM_THREADS": str(mine.threads),
        "MASTER_ADDR": _main_address(mine.nodes),
    }
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns of an option that is meant (engine/ddp.py)


def _main_address(nodes: str) -> str:
    """The first node's name where it resolves, else the address from which srun started this rank: the batch script
    runs on the first node.
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


def _tell(place: Path, number: int, mine: RankInfo, ending: ExitStatus) -> None:
    if ending.kind is not None:
        attempts.write_failure(place, number, Failure(mine.rank, host_name(), ending.kind, ending.error))


def _number(place: Path, mine: RankInfo) -> int:
    """The number of this attempt, which rank 0 may not have written yet."""
    known = attempts.read(place)
    if not known:
        return 1
    newest = known[-1]
    return newest.number + ((newest.job, newest.restart) != (mine.job, mine.restart))


class SignalWatcher:
    """Rank 0's ear while the main thread may be deep in a collective. A thread hears of signals at once, asks SLURM
    what they mean, and puts the job back into the queue where nobody else will: SLURM ends it for good though nobody
    cancelled it, or it is about to be killed before a step ended.
    """

    def __init__(self, mine: RankInfo, stop: StopRequest) -> None:
        self.mine, self.stop = mine, stop
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

    def _listen(self) -> None:
        while heard := self._reader.recv(64):
            asking = [number for number in heard if number in (signal.SIGTERM, signal.SIGUSR2)]
            if asking:
                self.stop.ask(asking[0])
                self._care()
                return

    def _care(self) -> None:
        try:
            seen = client.look(self.mine.job)
            meaning = client.verdict(seen, self.mine.restart)
            print(f"{attempts.now()} a signal came; SLURM says: {meaning}", flush=True)
            if meaning == "preempted":
                client.requeue(self.mine.job)
                print("SLURM ends this job for good, though nobody cancelled it: put back into the queue", flush=True)
            elif meaning == "warned" and seen is not None and seen.ends is not None:
                wait = seen.ends.timestamp() - time.time() - LAST_SECONDS
                if not self._ended.wait(max(0.0, wait)):
                    print("no step ended in time; back into the queue, on from the last checkpoint", flush=True)
                    client.requeue(self.mine.job)
        except client.SlurmError as error:
            print(f"warning: {error}", file=sys.stderr, flush=True)
