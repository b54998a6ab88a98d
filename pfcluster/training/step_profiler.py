"""`--profile STEPS`: a trace of some training steps of rank 0, and on a GPU a snapshot of its memory."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from pfcluster.config import RunConfig
from pfcluster.distributed.process_group import World
from pfcluster.runs.folder import PROFILE_DIR

SKIPPED = 3
"""Steps of an attempt before the trace: they compile kernels and fill caches."""
MEMORY_EVENTS = 100_000
"""Allocations that a snapshot remembers."""


class StepProfiler:
    """While entered, traces `config.profile` steps after the first few of this attempt; 0 traces nothing."""

    def __init__(self, config: RunConfig, folder: Path, first_step: int, world: World) -> None:
        """`first_step`: number of complete steps, from which this attempt continues."""
        self.folder, self.first_step, self.device = folder / PROFILE_DIR, first_step, world.device
        self.profile: torch.profiler.profile | None = None
        if config.profile and world.is_main:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self.profile = torch.profiler.profile(
                activities=activities,
                schedule=torch.profiler.schedule(wait=SKIPPED - 1, warmup=1, active=config.profile, repeat=1),
                on_trace_ready=self._write,
                record_shapes=True,
            )

    def __enter__(self) -> StepProfiler:
        if self.profile is not None:
            if self.device.type == "cuda":
                torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
            self.profile.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.profile is not None:
            self.profile.stop()

    def step(self) -> None:
        """Mark the end of a step."""
        if self.profile is not None:
            self.profile.step()

    def _write(self, profile: Any) -> None:
        """Write the trace, which Perfetto and chrome://tracing open, and the snapshot, which pytorch.org/memory_viz
        opens. Named after the step before the first one in them.
        """
        self.folder.mkdir(exist_ok=True)
        name = f"after-step-{self.first_step + SKIPPED:08d}"
        unfinished = self.folder / f".{name}.json.gz"
        profile.export_chrome_trace(str(unfinished))
        os.replace(unfinished, self.folder / f"trace-{name}.json.gz")
        if self.device.type == "cuda":
            write_memory_snapshot(self.folder / f"memory-{name}.pickle")
            torch.cuda.memory._record_memory_history(enabled=None)


def write_memory_snapshot(path: Path) -> None:
    """Write what the GPU's memory holds, with the allocations that led there if they were recorded."""
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    torch.cuda.memory._dump_snapshot(str(unfinished))
    os.replace(unfinished, path)
