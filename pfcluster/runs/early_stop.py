"""early_stop.json: ends a run at a given step, with a checkpoint and without the final evaluation. Sweeps write it for
trials that they stop, also while the run is active. No torch: launchers and sweep drivers use it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pfcluster.config.json_files import read_record
from pfcluster.runs.folder import EARLY_STOP_FILE
from pfcluster.system.atomic_files import write_atomically


@dataclass(frozen=True)
class EarlyStop:
    """Step at which a run ends early, and the reason."""

    step: int
    reason: str


def read_early_stop(folder: Path) -> EarlyStop | None:
    """The early stop of a run; None if it has none. Raises JsonFileError."""
    try:
        return read_record(EarlyStop, folder / EARLY_STOP_FILE)
    except FileNotFoundError:
        return None


def write_early_stop(folder: Path, early_stop: EarlyStop) -> None:
    """End a run at a step; if it is past that step already, at the end of the current one."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / EARLY_STOP_FILE, json.dumps(asdict(early_stop)) + "\n")
