"""Results of a reproduction: finished runs by cell, measurements, and reasons for missing runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pfcluster.config.json_files import JsonFileError, convert, read_json
from pfcluster.experiments.cells import CELLS, cell_by_name
from pfcluster.experiments.record import PlannedCell, Record, read_record
from pfcluster.report.errors import Notice, ReportError
from pfcluster.report.groups import RunGroup, group_runs
from pfcluster.report.results import Run, read_run
from pfcluster.runs.folder import METRICS_FILE, is_finished, logged_error

MEASURED_DIR = "measured"


@dataclass(frozen=True)
class CrossScore:
    """A row of cross.json: a run's accuracy on another dataset."""

    cell: str
    seed: int
    trained: str
    tested: str
    accuracy: float
    mean_class_accuracy: float
    n: int

    def __post_init__(self) -> None:
        if self.cell not in {each.name for each in CELLS}:
            raise ValueError(f"there is no cell {self.cell!r}")


@dataclass(frozen=True)
class CostSpeed:
    """Times of a batch in costs.json."""

    batch: int
    forward_ms: float
    step_ms: float

    def __post_init__(self) -> None:
        if not (self.batch > 0 and self.forward_ms > 0 and self.step_ms > 0):
            raise ValueError("batch, forward_ms and step_ms must be positive")


@dataclass(frozen=True)
class Cost:
    """A model's costs in costs.json; see profiling/model_cost.py, which needs torch."""

    train_parameters: int
    test_parameters: int
    step_gflop: float
    test_gflop: float
    speeds: tuple[CostSpeed, ...]


@dataclass(frozen=True)
class Results:
    """Results of a reproduction so far."""

    root: Path
    record: Record
    groups: dict[tuple[str, str], RunGroup]
    """Finished runs by dataset and cell."""
    missing: dict[tuple[str, str], str]
    """Why runs of a cell are missing, by dataset and cell."""
    notices: tuple[Notice, ...]
    """Warnings about runs of a cell that cannot be averaged."""
    cross: list[dict[str, Any]]
    """Accuracies of runs on other datasets: cell, seed, trained, tested, accuracy, n."""
    costs: dict[str, dict[str, Any]]

    def group(self, dataset: str, cell: str) -> RunGroup | None:
        return self.groups.get((dataset, self._canonical_name(cell)))

    def is_planned(self, dataset: str, cell: str) -> bool:
        """Whether a cell was requested, including cells that cannot be run."""
        key = dataset, self._canonical_name(cell)
        return any((planned.dataset, planned.cell) == key for planned in self.record.cells)

    def _canonical_name(self, cell: str) -> str:
        return cell_by_name(cell).canonical_name(self.record.identity_net)


def read_results(root: Path) -> Results:
    """Read a reproduction's finished runs and measurements. Raises RecordError, ReportError."""
    record = read_record(root)
    groups: dict[tuple[str, str], RunGroup] = {}
    missing: dict[tuple[str, str], str] = {}
    notices: list[Notice] = []
    for planned in record.cells:
        key = planned.dataset, planned.cell
        runs, reason = _read_cell(root, record, planned)
        if reason:
            missing[key] = reason
        if runs:
            found, warnings = group_runs(runs)
            if len(found) > 1:
                labels = ", ".join(group.label for group in found)
                raise ReportError(
                    f"{root / planned.dataset / planned.cell} holds runs of several names or objectives ({labels});"
                    " move those of others away"
                )
            groups[key] = found[0]
            notices += [replace(one, text=f"{planned.dataset}: {one.text}") for one in warnings]
    for dataset, name in record.auxiliary:
        folder = root / dataset / name / f"seed-{record.seeds[0]}"
        if not is_finished(folder):
            missing[dataset, name] = _missing_reason(folder)
    cross = _read_measurement(root, "cross", list[CrossScore], [])
    costs = _read_measurement(root, "costs", dict[str, Cost], {})
    return Results(root, record, groups, missing, tuple(notices), cross, costs)


def _read_cell(root: Path, record: Record, planned: PlannedCell) -> tuple[list[Run], str]:
    """Finished runs of a cell, and why others are missing (empty if none are)."""
    if planned.reason is not None:
        return [], planned.reason
    runs, missing = [], []
    for seed, folder in zip(record.seeds, planned.folders(root, record.seeds), strict=True):
        if is_finished(folder):
            runs.append(read_run(folder, folder.relative_to(root).as_posix()))
        else:
            missing.append((seed, _missing_reason(folder)))
    reasons = dict.fromkeys(reason for _, reason in missing)
    seeds = ", ".join(str(seed) for seed, _ in missing)
    return runs, f"seed {seeds}: {'; '.join(reasons)}" if missing else ""


def _missing_reason(folder: Path) -> str:
    """Why a run has no result: the error in its log, or that it did not finish or start."""
    error = logged_error(folder)
    if error is not None:
        return error
    if (folder / METRICS_FILE).exists():
        return "not finished"
    return "not started: a run that it depends on failed, or it is still waiting"


def _read_measurement(root: Path, name: str, kind: Any, default: Any) -> Any:
    """Content of a measurement's file, checked against the type `kind`; `default` if it does not exist."""
    file = root / MEASURED_DIR / f"{name}.json"
    try:
        values = read_json(file)
        convert(kind, values, str(file))
    except FileNotFoundError:
        return default
    except JsonFileError as error:
        raise ReportError(f"{error}; remove it and run the same command again") from error
    return values
