"""The interface between a sweep's driver and whatever executes its runs. The driver decides what is run and when it
ends; an executor allocates resources, retries transient failures, and reports how runs ended.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pfcluster.config import ConfigError
from pfcluster.launch.attempts import FINAL, storage_delay
from pfcluster.launch.plan import TrainRun
from pfcluster.launch.worker import ExitStatus


class Executor(Protocol):
    """Executes runs. A run that is started again continues from its checkpoints."""

    name: str
    poll_seconds: float

    @property
    def max_parallel(self) -> int:
        """Runs that can be in progress at the same time."""

    def start(self, runs: Sequence[TrainRun]) -> None:
        """Accept runs; each starts as soon as there are resources for it."""

    def poll(self) -> list[tuple[TrainRun, ExitStatus]]:
        """Runs that have ended since the last call: finished, interrupted, or failed after all retries."""

    def stop(self) -> None:
        """Have all runs write a checkpoint and end, and wait for that."""


@dataclass(frozen=True)
class Resources:
    """Resources of one run, and how many runs fit."""

    processes: int
    cpus: int
    """Cores, and threads, of each process."""
    gpus: float
    """GPUs of each process; below 1 several runs share a GPU."""
    max_parallel: int


@dataclass
class Retries:
    """Counts the failures of each run and decides whether, and when, it is tried again."""

    limit: int
    failures: Counter[TrainRun] = field(default_factory=Counter)
    _not_before: dict[TrainRun, float] = field(default_factory=dict)

    def again(self, run: TrainRun, exit_status: ExitStatus) -> bool:
        """Whether to start a run again: it failed, another attempt may succeed, and the limit is not reached."""
        if exit_status.kind is None or exit_status.kind in FINAL:
            return False
        self.failures[run] += 1
        if exit_status.kind == "storage":  # a file server takes time to come back
            self._not_before[run] = time.monotonic() + storage_delay(self.failures[run])
        return self.failures[run] <= self.limit

    def may_start(self, run: TrainRun) -> bool:
        """Whether the time to wait after a failure of the storage is over."""
        return time.monotonic() >= self._not_before.get(run, 0.0)


def divide_machine(
    *,
    processes: int,
    cpus: int | None,
    gpus: float | None,
    max_parallel: int | None,
    cores: int,
    devices: Sequence[int],
) -> Resources:
    """Divide a machine or cluster among runs: a GPU for each process where there are GPUs, and the cores evenly;
    without GPUs one core for each process. cores: of all machines; devices: GPUs of each machine. A process has its
    GPUs on one machine, and a fraction of a GPU on one GPU. Raises ConfigError if not even one run fits.
    """
    count = sum(devices)
    if gpus is not None and gpus < 0:
        raise ConfigError(f"--gpus-per-trial must be at least 0, got {gpus:g}")
    per_process = gpus if gpus is not None else (1.0 if count else 0.0)
    if per_process > 1 and per_process != int(per_process):
        raise ConfigError(f"--gpus-per-trial must be a fraction of one GPU or a whole number, got {per_process:g}")
    if per_process:
        room = _room(per_process, devices)
        slots = room // processes
    else:
        slots = max(1, cores // (processes * (cpus or 1)))
    if not slots:
        machines = f" on {len(devices)} machines" if len(devices) > 1 else ""
        raise ConfigError(
            f"--gpus-per-trial {per_process:g} with {processes} processes: there are {count} GPUs{machines}, with room"
            f" for {room} such processes; use a smaller number, or 0"
        )
    max_parallel = max_parallel or slots
    if per_process and max_parallel > slots:
        raise ConfigError(
            f"--max-parallel {max_parallel}: the GPUs have room for {slots} runs; reduce it or --gpus-per-trial"
        )
    cpus = cpus or (max(1, cores // (max_parallel * processes)) if per_process else 1)
    return Resources(processes, cpus, per_process, max_parallel)


def _room(gpus: float, devices: Sequence[int]) -> int:
    """Number of processes with this many GPUs each, a whole number or a fraction of one, that fit on the machines'
    GPUs. Remainders of different GPUs, or machines, are not combined.
    """
    if gpus > 1:
        return sum(count // int(gpus) for count in devices)
    return sum(devices) * int(1 / gpus + 1e-9)


def local_devices() -> tuple[int, list[str]]:
    """Number of cores that this process may use, and names of the GPUs for CUDA_VISIBLE_DEVICES."""
    import torch

    cores = len(os.sched_getaffinity(0))
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",")[:count] if visible else [str(number) for number in range(count)]
    return cores, names
