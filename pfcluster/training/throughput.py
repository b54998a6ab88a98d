"""What a run achieves: images/s, model FLOP/s and MFU, the share of time spent waiting for batches, peak memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pfcluster.config import RunConfig
from pfcluster.distributed.process_group import World
from pfcluster.engine.peak import device_name, peak_tflops

StepFlops = Callable[[RunConfig, int, bool], float]
"""FLOPs of a step for one of its images; of a config, a number of classes, and whether the step is in the warm-up."""


class Throughput:
    """Figures between two flushes, for metrics.jsonl, and of all steps of this attempt, for result.json.

    FLOPs are those of the model (recomputation does not count), known on rank 0 only if a `count` is given. Memory is
    that of rank 0's GPU, and waiting that of rank 0.
    """

    def __init__(self, config: RunConfig, classes: int, world: World, count: StepFlops | None) -> None:
        self.config, self.classes, self.world = config, classes, world
        self.count = count if world.is_main else None
        self.peak = peak_tflops(device_name(world.device), config.engine.peak_tflops)
        self.total_images = 0
        self.total_seconds = self.total_waited = self.total_flops = 0.0
        self.restart()

    def add(self, step: int, waited: float) -> None:
        """A 0-based step, and the seconds for which it waited for its batch."""
        warmup = self.config.objective == "pf_mag" and step < self.config.pf_mag.warmup_steps
        self.steps[warmup] += 1
        self.waited += waited

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time that is not training: evaluations and waits for checkpoints."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.since += time.monotonic() - began

    def flush(self) -> dict[str, float]:
        """The figures of the steps since the last call. The device must have finished them."""
        seconds = max(time.monotonic() - self.since, 1e-9)
        images = sum(self.steps.values()) * self.config.batch_size
        flops = self._flops()
        self.total_images += images
        self.total_seconds += seconds
        self.total_waited += self.waited
        self.total_flops += flops or 0.0
        figures = {"images_per_second": images / seconds, **self._figures(seconds, self.waited, flops)}
        self.restart()
        return {name: value for name, value in figures.items() if value is not None}

    def images_per_second(self) -> float | None:
        """Images of all flushed steps over their time, as in the lines of metrics; None without any."""
        return round(self.total_images / self.total_seconds, 1) if self.total_seconds > 0 else None

    def summary(self) -> dict[str, Any]:
        """The figures of all flushed steps except images/s; null where they are unknown."""
        known = self.count is not None and self.total_seconds > 0
        figures = self._figures(self.total_seconds, self.total_waited, self.total_flops if known else None)
        rounded = {name: None if value is None else float(f"{value:.4g}") for name, value in figures.items()}
        tflops, source = (None, "unknown") if self.peak is None else self.peak
        return rounded | {"peak_tflops": tflops, "peak_source": source}

    def _figures(self, seconds: float, waited: float, flops: float | None) -> dict[str, float | None]:
        tflops = None if flops is None else flops / seconds / self.world.size / 1e12
        mfu = None if tflops is None or self.peak is None else tflops / self.peak[0]
        device = self.world.device
        memory = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
        waiting = waited / seconds if seconds > 0 else None
        return {"tflops_per_device": tflops, "mfu": mfu, "host_wait": waiting, "peak_memory_gb": memory}

    def _flops(self) -> float | None:
        """FLOPs of all ranks since the last flush."""
        if self.count is None:
            return None
        parts = [(steps, warmup) for warmup, steps in self.steps.items() if steps]
        per_image = [steps * self.count(self.config, self.classes, warmup) for steps, warmup in parts]
        return self.config.batch_size * sum(per_image)

    def restart(self) -> None:
        """Begin to measure."""
        self.steps = {False: 0, True: 0}
        self.waited = 0.0
        self.since = time.monotonic()
