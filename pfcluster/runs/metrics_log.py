"""Metrics of a run: means over ranks and steps, written by rank 0 to metrics.jsonl and TensorBoard."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from pfcluster.distributed.process_group import World
from pfcluster.runs.folder import TENSORBOARD_DIR, append_metrics, truncate_metrics


class MetricsLog:
    """Collects the scalars of each step and writes their means. Entering it drops the lines after `step`, from which
    the run resumes.
    """

    def __init__(self, folder: Path, step: int, world: World) -> None:
        self.folder, self.first_step, self.world = folder, step, world
        self.pending: list[dict[str, Tensor]] = []
        self.since = time.monotonic()
        self.tensorboard: Any = None
        """On rank 0."""

    def __enter__(self) -> MetricsLog:
        if self.world.is_main:
            from torch.utils.tensorboard import SummaryWriter

            truncate_metrics(self.folder, self.first_step)
            self.tensorboard = SummaryWriter(str(self.folder / TENSORBOARD_DIR), purge_step=self.first_step)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.tensorboard is not None:
            self.tensorboard.close()

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add the scalars of one step; they stay on the device."""
        self.pending.append(metrics)

    def flush(self, step: int, epoch: float, batch_size: int) -> dict[str, float]:
        """Write the means since the last flush, and images per second; returns the line. A metric that was not logged
        at every step is averaged over the steps that have it. A collective.
        """
        names = sorted({name for metrics in self.pending for name in metrics})
        means = [torch.stack([m[name].detach().float() for m in self.pending if name in m]).mean() for name in names]
        values = self.world.mean(torch.stack(means)).tolist()
        elapsed = time.monotonic() - self.since
        line = dict(zip(names, values, strict=True))
        line["images_per_second"] = len(self.pending) * batch_size / max(elapsed, 1e-9)
        self.pending, self.since = [], time.monotonic()
        self.write("train", step, epoch, line)
        return line

    def write(self, split: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """Append a line to metrics.jsonl, and a point to each TensorBoard curve. Does nothing on other ranks than 0."""
        if self.tensorboard is None:
            return
        append_metrics(self.folder, split, step, epoch, values)
        for name, value in values.items():
            self.tensorboard.add_scalar(f"{split}/{name}", value, step)
