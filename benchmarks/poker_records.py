"""Figures of the finished runs of benchmarks/poker_faces.py, so that its training may be spread over machines and days.

A record is that of the config that it was measured with; with another config the run is trained again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.poker_aims import run_figures
from benchmarks.result_files import training_device
from pfcluster.config import RunConfig
from pfcluster.config.io import to_json
from pfcluster.launch.plan import TrainRun
from pfcluster.runs.folder import read_result
from pfcluster.system.atomic_files import write_atomically

FOLDER = "FOLDER"
"""What stands for the folder of the runs in a digest."""


@dataclass(frozen=True)
class Record:
    """A finished run."""

    config: str
    """`config_digest` of its config."""
    figures: Mapping[str, float]
    unseen: Mapping[str, float] | None
    """Figures on faces on which nothing else was measured; None if they were not evaluated."""
    test_faces: int
    steps: int
    seconds: float
    device: str
    """cpu or cuda."""
    machine: str
    torch: str | None
    commit: str | None
    date: str


class Records:
    """All records of a file, by run and seed."""

    def __init__(self, file: Path, folder: Path) -> None:
        """Read the file if there is one. `folder`: where the runs are."""
        self._file, self._folder = file, folder
        values: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
        self._by_run = {
            name: {int(seed): Record(**record) for seed, record in seeds.items()} for name, seeds in values.items()
        }

    def find(self, name: str, config: RunConfig) -> Record | None:
        """The record of a run with this config and its seed."""
        record = self._by_run.get(name, {}).get(config.seed)
        return record if record is not None and record.config == config_digest(config, self._folder) else None

    def measured(self, run: TrainRun, unseen: Mapping[str, float] | None, commit: str | None) -> Record:
        """The record of a finished run, not yet written. `commit`: where the run does not know its own."""
        result = read_result(run.folder)
        assert result is not None
        tested = "accuracy" in (result.get("test") or {})  # a MAE has a loss
        return Record(
            config=config_digest(run.config, self._folder),
            figures=run_figures(result) if tested else {},
            unseen=unseen,
            test_faces=result["test"]["n"] if tested else 0,
            steps=result["steps"],
            seconds=round(result["seconds"], 1),
            device=str(result["device"]),
            machine=training_device(result),
            torch=result["versions"].get("torch"),
            commit=result.get("git_commit") or commit,
            date=date.today().isoformat(),
        )

    def add(self, name: str, seed: int, record: Record) -> None:
        """Add the record of a run, and write the file."""
        self._by_run.setdefault(name, {})[seed] = record
        values = {
            each: {str(seed): asdict(self._by_run[each][seed]) for seed in sorted(self._by_run[each])}
            for each in sorted(self._by_run)
        }
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._file, json.dumps(values, indent=1) + "\n")


def config_digest(config: RunConfig, folder: Path) -> str:
    """SHA-256 of a config, whatever folder its runs are in."""
    text = to_json(config).replace(json.dumps(str(folder))[1:-1], FOLDER)
    return hashlib.sha256(text.encode()).hexdigest()


def figures_of(records: Mapping[int, Record]) -> dict[str, dict[int, float]]:
    """Figure -> seed -> value."""
    figures: dict[str, dict[int, float]] = {}
    for seed, record in records.items():
        for figure, value in record.figures.items():
            figures.setdefault(figure, {})[seed] = value
    return figures


def cost_of(records: Sequence[Record]) -> dict[str, Any]:
    """Steps, wall-clock seconds, devices and commits of a row's runs."""
    return {
        "steps": records[0].steps,
        "seconds_per_run": [record.seconds for record in records],
        "device": sorted({record.device for record in records}),
        "commit": ", ".join(dict.fromkeys(str(record.commit) for record in records)),
    }
