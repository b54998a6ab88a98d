"""What a reproduction has found so far: its runs by cell, and why others are missing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfcluster.experiments.cells import cell as cell_of
from pfcluster.experiments.record import Planned, Record, read_record
from pfcluster.report.errors import ReportError
from pfcluster.report.groups import RunGroup, group_runs
from pfcluster.report.results import Run, read_run
from pfcluster.runs.folder import METRICS_FILE, is_finished, logged_error

MEASURED = "measured"


@dataclass(frozen=True)
class Found:
    """A reproduction's results."""

    root: Path
    record: Record
    groups: dict[tuple[str, str], RunGroup]
    """Finished runs by dataset and cell."""
    missing: dict[tuple[str, str], str]
    """Why a cell has no run at all, or fewer than its seeds."""
    cross: list[dict[str, Any]]
    """Accuracies of runs on other datasets: cell, seed, trained, tested, accuracy, n."""
    costs: dict[str, dict[str, Any]]

    def group(self, dataset: str, cell: str) -> RunGroup | None:
        return self.groups.get((dataset, self.alias(cell)))

    def planned(self, dataset: str, cell: str) -> bool:
        """Whether a cell was asked for, be it that it cannot be run."""
        return any((each.dataset, each.cell) == (dataset, self.alias(cell)) for each in self.record.cells)

    def alias(self, name: str) -> str:
        """The cell whose runs are this one's too."""
        return cell_of(name).same_as(self.record.phi)

    def folders(self, dataset: str, cell: str) -> dict[int, Path]:
        """Run folders by seed."""
        group = self.group(dataset, cell)
        return {} if group is None else {run.seed: run.folder for run in group.runs}


def collect(root: Path) -> Found:
    """Read all that is there. Raises RecordError, ReportError."""
    record = read_record(root)
    groups: dict[tuple[str, str], RunGroup] = {}
    missing: dict[tuple[str, str], str] = {}
    for planned in record.cells:
        key = planned.dataset, planned.cell
        runs, why = _runs(root, record, planned)
        if why:
            missing[key] = why
        if runs:
            (groups[key],), _ = group_runs(runs)
    for dataset, name in record.extra:
        folder = root / dataset / name / f"seed-{record.seeds[0]}"
        if not is_finished(folder):
            missing[dataset, name] = reason(folder)
    return Found(root, record, groups, missing, _json(root, "cross", []), _json(root, "costs", {}))


def _runs(root: Path, record: Record, planned: Planned) -> tuple[list[Run], str]:
    if planned.reason is not None:
        return [], planned.reason
    runs, without = [], []
    for seed, folder in zip(record.seeds, planned.folders(root, record.seeds), strict=True):
        if is_finished(folder):
            runs.append(read_run(folder, folder.relative_to(root).as_posix()))
        else:
            without.append((seed, reason(folder)))
    reasons = dict.fromkeys(why for _, why in without)
    seeds = ", ".join(str(seed) for seed, _ in without)
    return runs, f"seed {seeds}: {'; '.join(reasons)}" if without else ""


def reason(folder: Path) -> str:
    """Why a run has no result: the error that its log tells, or that it did not end, or begin."""
    error = logged_error(folder)
    if error is not None:
        return error
    if (folder / METRICS_FILE).exists():
        return "not finished"
    return "not started: what it waits for failed, or its turn has not come"


def _json(root: Path, name: str, default: Any) -> Any:
    """A measurement's file; `default` where it is not there."""
    file = root / MEASURED / f"{name}.json"
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return default
    except (OSError, ValueError) as error:
        raise ReportError(f"{file} cannot be read: {error}; remove it and give the same command again") from error
