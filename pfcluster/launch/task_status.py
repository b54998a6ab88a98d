"""The state of one task of a plan, whichever launcher started it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BAD = ("failed", "lost", "timed out", "not run")
ENDED = (*BAD, "finished", "cancelled", "stopped")


@dataclass(frozen=True)
class TaskStatus:
    """One task."""

    stage: str
    label: str
    folder: Path
    state: str
    """finished, running, evaluating, queued, waiting, ending, stopped, failed, lost, timed out, cancelled, not run, not
    started or unknown."""
    reason: str = ""
    """Why it waits, or how it ended."""
    job: str = ""
    """SLURM's job id."""
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    images_per_second: float | None = None
    seconds_left: float | None = None
    restarts: int = 0
    failures: int = 0
    nodes: str = ""
    error: str | None = None
