"""How far a run is, for whoever launched it: `progress.json` beside the metrics, and a line now and then in the log."""

from __future__ import annotations

from pathlib import Path

from pfcluster.config import RunConfig
from pfcluster.distributed.process_group import World
from pfcluster.runs.folder import write_progress

SHOWN = ("loss", "val accuracy", "val loss", "images_per_second")


class Progress:
    """Rank 0 speaks, on its standard output; launchers (`launch/`) turn this and metrics.jsonl into bars."""

    def __init__(self, config: RunConfig, folder: Path, total_steps: int, world: World) -> None:
        self.label = f"{config.name} seed {config.seed}"
        self.folder = folder
        self.total_steps = total_steps
        self.is_main = world.is_main
        self.values: dict[str, float] = {}
        self.tenth = -1

    def update(self, step: int, values: dict[str, float]) -> None:
        """Take over a step's values; a line for every tenth of the run."""
        self.values |= values
        tenth = 10 * step // self.total_steps
        if tenth > self.tenth:
            self.tenth = tenth
            shown = [f"{name} {self.values[name]:.4g}" for name in SHOWN if name in self.values]
            self.say(f"step {step}/{self.total_steps}  {'  '.join(shown)}")

    def say(self, message: str, stage: str = "train") -> None:
        """A line of its own, and the stage that the run is in."""
        if self.is_main:
            print(f"{self.label}: {message}", flush=True)
            write_progress(self.folder, self.total_steps, stage)
