"""metrics.jsonl for machines and TensorBoard for curves. Rank 0 writes; the values are means over ranks."""

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
    """Collects the steps' scalars and writes their means. Lines from after the step resumed at are dropped."""

    def __init__(self, folder: Path, step: int, world: World) -> None:
        self.folder, self.first_step, self.world = folder, step, world
        self.pending: list[dict[str, Tensor]] = []
        self.since = time.monotonic()
        self.tensorboard: Any = None

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
        """Scalars of one step, still on the device."""
        self.pending.append(metrics)

    def flush(self, step: int, epoch: float, batch_size: int) -> dict[str, float]:
        """Write the means of the steps since the last flush, and images per second. Terms may come and go: each mean is
        over the steps that had it."""
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
        """One line of metrics.jsonl, and a point on each curve."""
        if self.tensorboard is None:
            return
        append_metrics(self.folder, split, step, epoch, values)
        for name, value in values.items():
            self.tensorboard.add_scalar(f"{split}/{name}", value, step)
