"""`reproduce.json`: the planned cells of a reproduction, from which its tables know what is missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pfcluster.config.json_files import JsonFileError, read_object, record_of
from pfcluster.experiments.cells import CELLS, Cell, cell_by_name
from pfcluster.experiments.matrix import PlannedRun, Settings, selected_cells, unavailable_reason
from pfcluster.system.atomic_files import write_atomically

RECORD_FILE, FORMAT = "reproduce.json", 2


class RecordError(ValueError):
    """A folder that is not a reproduction's: names the file, the reason and the remedy."""


@dataclass(frozen=True)
class PlannedCell:
    """One cell on one dataset."""

    dataset: str
    cell: str
    reason: str | None
    """Why it cannot be run; None if it can."""

    @property
    def spec(self) -> Cell:
        return cell_by_name(self.cell)

    def folders(self, root: Path, seeds: Sequence[int]) -> list[Path]:
        """Folders of its runs, by seed."""
        return [root / self.dataset / self.cell / f"seed-{seed}" for seed in seeds]


@dataclass(frozen=True)
class Record:
    """A reproduction as it was requested."""

    command: str
    miniature: bool
    seeds: tuple[int, ...]
    datasets: tuple[str, ...]
    data: dict[str, dict[str, Any]]
    """Data options by dataset."""
    presets: dict[str, str]
    identity_net: str
    face_net: str
    fid: str
    cells: tuple[PlannedCell, ...]
    auxiliary: tuple[tuple[str, str], ...]
    """Dataset and name of runs that belong to no cell: pre-training, judges, identity net."""


def make_record(settings: Settings, runs: Sequence[PlannedRun], command: str, *, miniature: bool) -> Record:
    """The record of a reproduction."""
    cells = [
        PlannedCell(dataset, cell.name, unavailable_reason(settings, cell))
        for dataset in settings.datasets
        for cell in selected_cells(settings, dataset)
    ]
    return Record(
        command,
        miniature,
        settings.seeds,
        tuple(settings.datasets),
        {name: dict(values) for name, values in settings.datasets.items()},
        dict(settings.presets),
        settings.identity_net,
        settings.face_net,
        "InceptionV3" if settings.fid else "the judge's features",
        tuple(cells),
        tuple(dict.fromkeys((run.dataset, run.name) for run in runs if run.cell is None)),
    )


def write_record(folder: Path, record: Record) -> None:
    """Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RECORD_FILE, json.dumps({"format": FORMAT, **asdict(record)}, indent=1) + "\n")


def read_record(folder: Path) -> Record:
    """Raises RecordError if the file is missing, damaged or of another format."""
    file = folder / RECORD_FILE
    remedy = "pass the OUTPUT of `pfcluster reproduce`"
    try:
        values = read_object(file)
        if values.pop("format", None) != FORMAT:
            raise RecordError(f"{file} is of another version; run the same reproduce command again")
        record = record_of(Record, values, str(file))
        unknown = [cell.cell for cell in record.cells if cell.cell not in {each.name for each in CELLS}]
        if unknown or not record.seeds:
            raise RecordError(f"{file} names {f'the unknown cell {unknown[0]}' if unknown else 'no seeds'}; {remedy}")
    except FileNotFoundError as error:
        raise RecordError(f"{folder} holds no {RECORD_FILE}: {remedy}") from error
    except JsonFileError as error:
        raise RecordError(f"{error}; {remedy}") from error
    return record
