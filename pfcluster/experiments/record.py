"""`reproduce.json`: what a reproduction set out to do, so that its tables can tell what is missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pfcluster.experiments.cells import TABLES, Cell, cell
from pfcluster.experiments.matrix import Run, Settings, wanted, why_not
from pfcluster.runs.atomic_files import write_atomically

RECORD, FORMAT = "reproduce.json", 1


class RecordError(ValueError):
    """A folder that holds no reproduction: says which file, why, and what to do."""


@dataclass(frozen=True)
class Planned:
    """One cell on one dataset."""

    dataset: str
    cell: str
    reason: str | None
    """Why it was not to be run; None where it was."""

    @property
    def of(self) -> Cell:
        return cell(self.cell)

    def folders(self, root: Path, seeds: Sequence[int]) -> list[Path]:
        """Its runs' folders, seed by seed."""
        return [root / self.dataset / self.cell / f"seed-{seed}" for seed in seeds]


@dataclass(frozen=True)
class Record:
    """A reproduction as it was asked for."""

    command: str
    miniature: bool
    seeds: tuple[int, ...]
    datasets: tuple[str, ...]
    data: dict[str, dict[str, Any]]
    """Options of the data, by dataset."""
    presets: dict[str, str]
    phi: str
    face_phi: str
    fid: str
    cells: tuple[Planned, ...]
    extra: tuple[tuple[str, str], ...]
    """Dataset and name of runs that belong to no cell: pre-training, judges."""


def make_record(settings: Settings, runs: Sequence[Run], command: str, *, miniature: bool) -> Record:
    """The record of a matrix."""
    cells = [
        Planned(dataset, each.name, why_not(settings, each))
        for dataset in settings.datasets
        for each in wanted(settings, dataset)
    ]
    return Record(
        command,
        miniature,
        settings.seeds,
        tuple(settings.datasets),
        {name: dict(values) for name, values in settings.datasets.items()},
        dict(settings.presets),
        settings.phi,
        settings.face_phi,
        "InceptionV3" if settings.fid else "the judge's features",
        tuple(cells),
        tuple(dict.fromkeys((run.dataset, run.name) for run in runs if run.cell is None)),
    )


def write_record(folder: Path, record: Record) -> None:
    """Raises OSError for a disk."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RECORD, json.dumps({"format": FORMAT, **asdict(record)}, indent=1) + "\n")


def read_record(folder: Path) -> Record:
    """Raises RecordError."""
    file = folder / RECORD
    advice = "give the OUTPUT of `jobs/launch.py reproduce`"
    try:
        values = json.loads(file.read_text())
        if values.pop("format") != FORMAT:
            raise RecordError(f"{file} is of another version; give the same reproduce command again")
        cells = tuple(Planned(**each) for each in values.pop("cells"))
        values |= {name: tuple(values[name]) for name in ("seeds", "datasets")}
        values |= {"cells": cells, "extra": tuple((dataset, name) for dataset, name in values["extra"])}
        record = Record(**values)
        known = all(each.of.table in TABLES for each in record.cells)
    except OSError as error:
        raise RecordError(f"{folder} holds no {RECORD}: {advice}") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"{file} cannot be read: {error!r}; {advice}") from error
    assert known
    return record
