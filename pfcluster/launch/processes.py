"""The processes of one run on this machine: started, watched, asked to stop, and how they ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pfcluster.distributed.hosts import free_port
from pfcluster.launch.plan import TrainRun
from pfcluster.launch.worker import FAILED, FINISHED, INTERRUPTED, ExitStatus
from pfcluster.runs.folder import MetricsTail, exit_status_path, log_path, write_requested_config


@dataclass
class Watched:
    """A run and what it has said so far."""

    job: TrainRun
    values: dict[str, float] = field(default_factory=dict)
    step: int = 0

    def __post_init__(self) -> None:
        self.tail = MetricsTail(self.job.folder)

    def read_metrics(self) -> None:
        """Take over the lines that metrics.jsonl gained."""
        for line in self.tail.new_lines():
            self.step = max(self.step, line["step"])
            prefix = "" if line["split"] == "train" else "val "
            self.values |= {prefix + name: value for name, value in line.items() if isinstance(value, int | float)}


@dataclass
class Running(Watched):
    """A run in its processes."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    lost: int = 0
    """The rank that ended badly first."""

    def poll(self) -> int | None:
        """None while all ranks run; the first exit code that is not 0, as soon as there is one; 0 once all ended
        well.
        """
        codes = [process.poll() for process in self.processes]
        bad = [rank for rank, code in enumerate(codes) if code not in (None, FINISHED, INTERRUPTED)]
        if bad:
            self.lost = bad[0]
            self.signal(signal.SIGKILL)  # the others may wait in a collective for ever
            return codes[self.lost]
        return None if None in codes else max(code for code in codes if code is not None)

    def ending(self, code: int) -> ExitStatus:
        """How it ended with a code that `poll` gave: in the words of the rank that says most."""
        if code in (FINISHED, INTERRUPTED):
            return ExitStatus(code)
        told = [ExitStatus(**json.loads(path.read_text())) for path in self._told() if path.exists()]
        failed = [one for one in told if one.kind is not None]
        if failed:
            return min(failed, key=lambda one: one.kind == "lost rank")
        if code < 0:
            name = signal.Signals(-code).name
            hint = "; the kernel does so where memory runs out" if name == "SIGKILL" else ""
            return ExitStatus(FAILED, "killed", f"rank {self.lost} was killed by {name}{hint}")
        return ExitStatus(FAILED, "bug", f"rank {self.lost} ended with code {code}; see {self.logs[self.lost]}")

    def _told(self) -> list[Path]:
        return [exit_status_path(self.job.folder, rank) for rank in range(len(self.processes))]

    def signal(self, number: int) -> None:
        """Send all processes a signal."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)


def start(
    job: TrainRun, *, processes: int, threads: int, command: str, devices: Sequence[str] | None = None
) -> Running:
    """Start a run's processes; what they say goes to `logs/` in the run's folder. `devices`: a GPU for each, by the
    names of CUDA_VISIBLE_DEVICES; None leaves all visible.
    """
    config = write_requested_config(job.folder, job.config)
    arguments = [str(config), str(job.folder), "--threads", str(threads), "--command", command]
    started, files = [], []
    for rank, ranked in enumerate(rank_environments(processes, threads)):
        path = log_path(job.folder, rank)
        path.parent.mkdir(exist_ok=True)
        exit_status_path(job.folder, rank).unlink(missing_ok=True)
        if devices is not None:
            ranked |= {"CUDA_VISIBLE_DEVICES": devices[rank], "LOCAL_RANK": "0"}
        with open(path, "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pfcluster.launch.worker", *arguments],
                env=ranked,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        started.append(process)
        files.append(path)
    return Running(job, processes=started, logs=files)


def rank_environments(processes: int, threads: int) -> list[dict[str, str]]:
    """The environment of each process of a group on this machine: how they find each other, and their threads."""
    shared = dict(os.environ, OMP_NUM_THREADS=str(threads), PYTHONUNBUFFERED="1")
    shared.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns of an option that is meant (engine/ddp.py)
    if processes == 1:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            shared.pop(name, None)
        return [shared]
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
