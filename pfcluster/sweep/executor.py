"""What a sweep asks of whatever runs its runs. The driver decides what is run and when it ends; an executor finds it a
place, tries again what failed for no fault of its own, and says what came of it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pfcluster.config import ConfigError
from pfcluster.launch.plan import TrainRun
from pfcluster.launch.worker import ExitStatus


class Executor(Protocol):
    """Runs jobs. A job that is begun anew goes on from its checkpoints."""

    name: str
    poll_seconds: float

    @property
    def at_once(self) -> int:
        """Runs that have a place at one time."""

    def start(self, jobs: Sequence[TrainRun]) -> None:
        """Take jobs; they begin as places come free."""

    def poll(self) -> list[tuple[TrainRun, ExitStatus]]:
        """What has ended since it was asked last: finished, interrupted, or failed for good."""

    def stop(self) -> None:
        """Have all runs save themselves and end, and wait for it."""


@dataclass(frozen=True)
class Resources:
    """What one run gets of a machine."""

    processes: int
    cpus: int
    """Cores, and threads, of each process."""
    gpus: float
    """Of each process; below 1 runs share a GPU."""
    at_once: int
    """Runs at one time."""


def share_of(
    *, processes: int, cpus: int | None, gpus: float | None, at_once: int | None, cores: int, devices: int
) -> Resources:
    """A machine shared out: a GPU for each process where there are GPUs, and the cores over the runs; without GPUs one
    core for each process. Raises ConfigError where not one run has room.
    """
    if gpus is not None and gpus < 0:
        raise ConfigError(f"--gpus-per-trial must be at least 0, got {gpus:g}")
    wanted = gpus if gpus is not None else (1.0 if devices else 0.0)
    if wanted > 1 and wanted != int(wanted):
        raise ConfigError(f"--gpus-per-trial must be a share of one GPU or whole ones, got {wanted:g}")
    if wanted * processes > devices:
        raise ConfigError(
            f"--gpus-per-trial {wanted:g} with {processes} processes: there are {devices} GPUs; ask for fewer, or 0"
        )
    places = int(devices / (wanted * processes) + 1e-9) if wanted else max(1, cores // (processes * (cpus or 1)))
    at_once = at_once or places
    if wanted and at_once > places:
        raise ConfigError(f"--at-once {at_once}: the GPUs have room for {places} runs; give each less of a GPU")
    cpus = cpus or (max(1, cores // (at_once * processes)) if wanted else 1)
    return Resources(processes, cpus, wanted, at_once)


def machine() -> tuple[int, list[str]]:
    """Cores of this machine that we may use, and the names of its GPUs for CUDA_VISIBLE_DEVICES."""
    import torch

    cores = len(os.sched_getaffinity(0))
    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",")[:count] if visible else [str(number) for number in range(count)]
    return cores, names
