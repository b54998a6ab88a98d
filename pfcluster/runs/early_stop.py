"""An early end: `early_stop.json` in a run's folder ends the run at a step, with a checkpoint and without its final
evaluation. A sweep writes it for a trial that is not worth more, also while the run is under way.

No torch: launchers and drivers read and write these, too.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pfcluster.runs.atomic_files import write_atomically
from pfcluster.runs.folder import EARLY_STOP_FILE


@dataclass(frozen=True)
class EarlyStop:
    """Where a run ends early, and why."""

    step: int
    reason: str


def read_early_stop(folder: Path) -> EarlyStop | None:
    """The run's limit; None where it has none."""
    try:
        return EarlyStop(**json.loads((folder / EARLY_STOP_FILE).read_text()))
    except FileNotFoundError:
        return None


def write_early_stop(folder: Path, limit: EarlyStop) -> None:
    """Have a run end at a step; at the end of the step it is in, if that is past already."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / EARLY_STOP_FILE, json.dumps(asdict(limit)) + "\n")


def clear_early_stop(folder: Path) -> None:
    """Let the run go on to its own end when it is given again."""
    (folder / EARLY_STOP_FILE).unlink(missing_ok=True)
