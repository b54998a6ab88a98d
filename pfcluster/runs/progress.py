"""Messages of a running run: progress lines on stdout, progress.json for launchers, and warnings."""

from __future__ import annotations

import sys
from pathlib import Path

from pfcluster.config import RunConfig
from pfcluster.distributed.process_group import World
from pfcluster.runs.folder import append_warning, write_progress

SHOWN = ("loss", "val accuracy", "val loss", "images_per_second", "tflops_per_device", "mfu", "host_wait")
"""Metrics of a progress line."""


class Progress:
    """Prints progress on rank 0. Launchers draw their progress bars from progress.json and metrics.jsonl."""

    def __init__(self, config: RunConfig, folder: Path, total_steps: int, world: World) -> None:
        self.label = f"{config.name} seed {config.seed}"
        self.folder = folder
        self.total_steps = total_steps
        self.is_main = world.is_main
        self.values: dict[str, float] = {}
        """Newest value of each metric."""
        self.tenth = -1
        """Tenths of the run that were reported."""

    def update(self, step: int, values: dict[str, float]) -> None:
        """Record metrics, and print a line for every tenth of the run."""
        self.values |= values
        tenth = 10 * step // self.total_steps
        if tenth > self.tenth:
            self.tenth = tenth
            shown = [f"{name} {self.values[name]:.4g}" for name in SHOWN if name in self.values]
            self.report(f"step {step}/{self.total_steps}  {'  '.join(shown)}")

    def report(self, message: str, stage: str = "train") -> None:
        """Print a line, and write the current stage to progress.json."""
        if self.is_main:
            print(f"{self.label}: {message}", flush=True)
            write_progress(self.folder, self.total_steps, stage)


def warn(folder: Path, message: str, is_main: bool) -> None:
    """Print a warning on stderr and append it to warnings.log, on rank 0."""
    if is_main:
        print(f"warning: {message}", file=sys.stderr)
        append_warning(folder, message)
