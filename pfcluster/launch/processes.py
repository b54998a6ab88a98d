"""The processes of one run on this machine: starting, monitoring and stopping them, and how they exited."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pfcluster.config.json_files import try_read_record
from pfcluster.distributed.hosts import free_port, host_name
from pfcluster.launch.attempts import now
from pfcluster.launch.plan import TrainRun
from pfcluster.launch.worker import FAILED, FINISHED, INTERRUPTED, ExitStatus, informative_status
from pfcluster.runs.folder import LOG_HEADER, exit_status_path, log_path, remove_exit_statuses, write_requested_config
from pfcluster.runs.metrics_file import MetricsTail

LOOPBACK_INTERFACE = "lo"
SHOWN = ("loss", "accuracy")
"""Validation metrics on the progress line."""


@dataclass
class RunMonitor:
    """A run and its newest metrics."""

    run: TrainRun
    values: dict[str, float] = field(default_factory=dict)
    """Newest value of each metric; those of validation have the prefix "val ". Those of the test split, which follow at
    the end of a run, are not among them."""
    step: int = 0

    def __post_init__(self) -> None:
        self._tail = MetricsTail(self.run.folder)

    def read_metrics(self) -> None:
        """Read the lines that were appended to metrics.jsonl."""
        for line in self._tail.new_lines():
            self.step = max(self.step, line["step"])
            if line["split"] == "test":
                continue
            prefix = "" if line["split"] == "train" else "val "
            self.values |= {prefix + name: value for name, value in line.items() if isinstance(value, int | float)}

    def summary(self) -> str:
        """The newest values, in one line."""
        parts = [f"loss {self.values['loss']:.3f}"] if "loss" in self.values else []
        parts += [f"val {name} {self.values[f'val {name}']:.3f}" for name in SHOWN if f"val {name}" in self.values]
        if "images_per_second" in self.values:
            parts.append(f"{self.values['images_per_second']:.0f} images/s")
        return "  ".join(parts)


@dataclass
class RunProcesses(RunMonitor):
    """A run and its processes, one per rank."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    failed_rank: int = 0
    """The rank that failed first."""
    stopping: bool = False
    """Whether the processes were asked to stop."""

    def poll(self) -> int | None:
        """None while all ranks run, else the exit code of the run: that of the first rank that failed, 75 if they were
        interrupted, or 0. Kills the other ranks once one has failed.
        """
        codes = [process.poll() for process in self.processes]
        if self.stopping and -signal.SIGTERM in codes:  # before that rank handled signals; the others wait for it
            self.signal(signal.SIGKILL)
            return INTERRUPTED
        failed = [rank for rank, code in enumerate(codes) if code not in (None, FINISHED, INTERRUPTED)]
        if failed:
            self.failed_rank = failed[0]
            self.signal(signal.SIGKILL)  # the others may wait in a collective forever
            return codes[self.failed_rank]
        return None if None in codes else max(code for code in codes if code is not None)

    def exit_status(self, code: int) -> ExitStatus:
        """How the run ended, given the exit code from `poll`: the most informative error of all ranks."""
        if code in (FINISHED, INTERRUPTED):
            return ExitStatus(code)
        paths = [exit_status_path(self.run.folder, rank) for rank in range(len(self.processes))]
        statuses = [status for path in paths if (status := try_read_record(ExitStatus, path)) is not None]
        failure = informative_status(statuses)
        if failure is not None:
            return failure
        if code < 0:
            name = signal.Signals(-code).name
            hint = "; the kernel does so where memory runs out" if name == "SIGKILL" else ""
            return ExitStatus(FAILED, "killed", f"rank {self.failed_rank} was killed by {name}{hint}")
        log = self.logs[self.failed_rank]
        return ExitStatus(FAILED, "bug", f"rank {self.failed_rank} ended with code {code}; see {log}")

    def signal(self, number: int) -> None:
        """Send a signal to all processes that still run."""
        self.stopping = self.stopping or number == signal.SIGTERM
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)


def start_run(
    run: TrainRun, *, processes: int, threads: int, command: str, devices: Sequence[str] | None = None
) -> RunProcesses:
    """Start the processes of a run. Their output is appended to `logs/` of its folder, which another launcher that
    still trains there also writes.

    `devices` gives each process its CUDA_VISIBLE_DEVICES; None leaves all devices visible.
    """
    config = write_requested_config(run.folder, run.config)
    log_path(run.folder, 0).parent.mkdir(exist_ok=True)
    arguments = [str(config), str(run.folder), "--threads", str(threads), "--command", command]
    remove_exit_statuses(run.folder)
    started, logs = [], []
    for rank, environment in enumerate(rank_environments(processes, threads)):
        path = log_path(run.folder, rank)
        if devices is not None:
            environment |= {"CUDA_VISIBLE_DEVICES": devices[rank], "LOCAL_RANK": "0"}
        with open(path, "ab") as log:
            log.write(f"{LOG_HEADER}{now()} rank {rank} of {processes} on {host_name()}\n".encode())
            log.flush()
            process = subprocess.Popen(
                [sys.executable, "-m", "pfcluster.launch.worker", *arguments],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        started.append(process)
        logs.append(path)
    return RunProcesses(run, processes=started, logs=logs)


def rank_environments(processes: int, threads: int) -> list[dict[str, str]]:
    """The environment variables of each process of a process group on this machine, which talks over the loopback
    interface alone: gloo and NCCL accept data from whoever connects.
    """
    shared = dict(os.environ, OMP_NUM_THREADS=str(threads), PYTHONUNBUFFERED="1")
    shared.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns about an option that is intended (engine/ddp.py)
    if processes == 1:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            shared.pop(name, None)
        return [shared]
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    shared |= {"GLOO_SOCKET_IFNAME": LOOPBACK_INTERFACE, "NCCL_SOCKET_IFNAME": LOOPBACK_INTERFACE}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
