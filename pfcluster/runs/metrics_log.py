"""Metrics of a run: means over ranks and steps, written by rank 0 to metrics.jsonl."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pfcluster.distributed.process_group import World
from pfcluster.runs.metrics_file import append_metrics, truncate_metrics


class MetricsLog:
    """Collects the scalars of each step and writes their means."""

    def __init__(self, folder: Path, step: int, world: World) -> None:
        """Drops the lines after `step`, from which the run resumes."""
        self.folder, self.world = folder, world
        self.pending: list[dict[str, Tensor]] = []
        if world.is_main:
            truncate_metrics(folder, step)

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Add the scalars of one step; they stay on the device."""
        self.pending.append(metrics)

    def flush(self, step: int, epoch: float, figures: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Write the means since the last flush, and `figures`, which is called once the device has finished the steps;
        returns the line. A metric that was not logged at every step is averaged over the steps that have it. A
        collective.
        """
        names = sorted({name for metrics in self.pending for name in metrics})
        means = [torch.stack([m[name].detach().float() for m in self.pending if name in m]).mean() for name in names]
        values = self.world.mean(torch.stack(means)).tolist()
        line = dict(zip(names, values, strict=True)) | figures()
        self.pending = []
        self.write("train", step, epoch, line)
        return line

    def write(self, split: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """Append a line to metrics.jsonl. Does nothing on other ranks than 0."""
        if self.world.is_main:
            append_metrics(self.folder, split, step, epoch, values)
