"""Straggler monitoring: time that each rank spends in a step before it waits for the others."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as torch_dist

from pfcluster.distributed.hosts import host_name
from pfcluster.distributed.process_group import World

COLUMNS = ("data", "forward", "step")


@dataclass
class StragglerMonitor:
    """Collects the seconds that each rank takes for the parts of a step.

    `data`: reading, copying and augmenting a batch. `forward`: all forward passes before the first backward pass. DDP,
    ZeRO-1 and ZeRO-2 do not communicate there; FSDP2 and ZeRO-3 wait for each other's weights, so that only `data`
    identifies the slow rank. `step`: the full step.
    """

    world: World
    pending: list[tuple[float, Callable[[], float], float]] = field(default_factory=list)
    busy: list[list[float]] = field(default_factory=list)
    """Mean of data + forward of every rank, one list per `flush`."""

    def __post_init__(self) -> None:
        self.hosts: list[str] = [host_name()]
        if self.world.size > 1:
            self.hosts = [""] * self.world.size
            torch_dist.all_gather_object(self.hosts, host_name())

    def add(self, data: float, forward: Callable[[], float], step: float) -> None:
        """Seconds of one step on this rank. `forward` is called by `flush`: on a GPU the time is not known before."""
        self.pending.append((data, forward, step))

    def flush(self) -> dict[str, list[float]] | None:
        """Mean milliseconds of every rank since the last call, by `COLUMNS`; None for a single rank. A collective."""
        seconds = [(data, forward(), step) for data, forward, step in self.pending]
        mine = torch.tensor(seconds, dtype=torch.float64).mean(0).float().to(self.world.device)
        self.pending = []
        if self.world.size == 1:
            return None
        everyone = [torch.empty_like(mine) for _ in range(self.world.size)]
        torch_dist.all_gather(everyone, mine)
        rows = torch.stack(everyone).tolist()
        self.busy.append([data + forward for data, forward, _ in rows])
        return {name: [round(1e3 * row[i], 2) for row in rows] for i, name in enumerate(COLUMNS)}

    def summary(self) -> dict[str, Any] | None:
        """The slowest rank over all flushes of this process, compared with the median; None for a single rank."""
        if not self.busy:
            return None
        means = [statistics.fmean(column) for column in zip(*self.busy, strict=True)]
        slowest = max(range(len(means)), key=means.__getitem__)
        median = statistics.median(means)
        return {
            "slowest_rank": slowest,
            "host": self.hosts[slowest],
            "busy_ms": round(1e3 * means[slowest], 2),
            "median_busy_ms": round(1e3 * median, 2),
            "over_median": round(means[slowest] / max(median, 1e-9), 3),
        }
