"""Read the runs of a study: all run folders at any depth below one folder.

A folder with a result.json is a run; a folder with only a config.json is an unfinished run. Run folders are not nested.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pfcluster.config.io import flatten
from pfcluster.config.json_files import JsonFileError, read_object
from pfcluster.evaluate import predictions as predictions_file
from pfcluster.evaluate.predictions import Predictions, PredictionsError
from pfcluster.report.errors import Notice, ReportError
from pfcluster.report.result_schema import check_result
from pfcluster.runs.folder import CONFIG_FILE, PREDICTIONS_FILE, RESULT_FILE, find_runs

UNREADABLE = f"its {PREDICTIONS_FILE} cannot be read"
INCONSISTENT = f"its {PREDICTIONS_FILE} does not agree with the test accuracy in its result.json"


@dataclass(frozen=True)
class Run:
    """One run with a result.json."""

    folder: Path
    relative_path: str
    """Path of the folder relative to the study, with forward slashes."""
    values: Mapping[str, Any]
    """Content of result.json, validated."""
    config: Mapping[str, Any]
    """Config values by dotted field name; empty if config.json is missing."""
    finished_at: datetime
    """Modification time of result.json, UTC."""
    predictions: Predictions | None = None
    """Predictions on the test split."""
    no_predictions: str = ""
    """Reason why `predictions` is None."""

    @property
    def name(self) -> str:
        return str(self.values["name"])

    @property
    def objective(self) -> str:
        return str(self.values["objective"])

    @property
    def seed(self) -> int:
        return int(self.values["seed"])

    @property
    def status(self) -> str:
        return str(self.values["status"])

    def number(self, *path: str) -> float | None:
        """The number at e.g. ("test", "accuracy"); None if it is missing, null, not a number or not finite."""
        value: Any = self.values
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if is_number else None

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple((self.values.get("dataset") or {}).get("classes") or ())

    @property
    def dataset(self) -> str:
        """Name of the dataset, and the mode by which votes became labels; runs of different modes are not compared."""
        dataset = self.values.get("dataset") or {}
        name, votes = dataset.get("name") or "", dataset.get("votes")
        return f"{name} ({votes} votes)" if votes else str(name)


@dataclass(frozen=True)
class UnfinishedRun:
    """A run without a result.json, or whose status is not "finished"."""

    relative_path: str
    name: str
    seed: str
    status: str


def read_runs(study: Path) -> tuple[list[Run], list[UnfinishedRun], list[Notice]]:
    """Finished runs and unfinished runs of a study, and warnings about them.

    Raises ReportError if the folder does not exist or holds no finished run, and for a malformed result.json.
    """
    if not study.is_dir():
        raise ReportError(f"{study} is not a folder; pass the folder that contains the runs of a study")
    runs, unfinished, notices = [], [], []
    for folder in find_runs(study):
        relative_path = folder.relative_to(study).as_posix()
        if not (folder / RESULT_FILE).exists():
            unfinished.append(_unfinished(folder, relative_path))
            continue
        run = read_run(folder, relative_path)
        notices += _notices(run)
        if run.status == "finished":
            runs.append(run)
        else:
            unfinished.append(UnfinishedRun(relative_path, run.name, str(run.seed), run.status))
    if not runs:
        names = ", ".join(run.relative_path for run in unfinished[:5])
        others = f"; {len(unfinished)} unfinished: {names}" if unfinished else ""
        raise ReportError(
            f"{study} holds no finished run (a folder with result.json){others}; wait until a run has finished"
        )
    return runs, unfinished, notices


def read_run(folder: Path, relative_path: str) -> Run:
    """Read a run's result.json, config.json and predictions. Raises ReportError that names the file and the field."""
    file = folder / RESULT_FILE
    values = _object(file)
    check_result(file, values)
    config = flatten(_object(folder / CONFIG_FILE)) if (folder / CONFIG_FILE).exists() else {}
    run = Run(folder, relative_path, values, config, datetime.fromtimestamp(file.stat().st_mtime, timezone.utc))
    predictions, reason = _read_predictions(run)
    return replace(run, predictions=predictions, no_predictions=reason)


def _read_predictions(run: Run) -> tuple[Predictions | None, str]:
    """A run's predictions if they agree with its test accuracy; else None and the reason."""
    accuracy = run.number("test", "accuracy")
    if accuracy is None:
        return None, "no test accuracy"
    if not (run.folder / PREDICTIONS_FILE).exists():
        return None, f"no {PREDICTIONS_FILE}"
    try:
        predictions = predictions_file.read(run.folder)
    except PredictionsError:
        return None, UNREADABLE
    n = len(predictions.labels)
    same = abs(predictions.correct.sum() - accuracy * n) < 0.5 and run.number("test", "n") in (None, n)
    return (predictions, "") if same and run.classes in ((), predictions.classes) else (None, INCONSISTENT)


def _object(file: Path) -> dict[str, Any]:
    try:
        return read_object(file)
    except (FileNotFoundError, JsonFileError) as error:
        raise ReportError(f"{error}; repair it, or move the run out of the study") from error


def _unfinished(folder: Path, relative_path: str) -> UnfinishedRun:
    config: Mapping[str, Any] = {}
    try:
        config = _object(folder / CONFIG_FILE)
        status = "no result yet"
    except ReportError:
        status = "no result, and its config.json cannot be read"
    return UnfinishedRun(relative_path, str(config.get("name", "–")), str(config.get("seed", "–")), status)


def _notices(run: Run) -> list[Notice]:
    notices, path = [], run.relative_path
    if not run.config:
        notices.append(Notice("no config", f"{path} has no config.json: its settings are unknown."))
    for part in ("test", "validation"):
        nan = [f"{part}.{name}" for name, value in (run.values.get(part) or {}).items() if value != value]
        if nan:
            notices.append(Notice("not a number", f"{path}: {', '.join(nan)}; excluded from all means."))
    if run.status == "finished" and run.objective != "mae" and run.number("test", "accuracy") is None:
        notices.append(Notice("no test accuracy", f"{path} finished without a test accuracy; excluded from tables."))
    if run.no_predictions in (UNREADABLE, INCONSISTENT):
        text = f"{path}: {run.no_predictions}; no interval over test samples is given. Train the run again."
        notices.append(Notice("test predictions ignored", text))
    warning = run.values.get("warning")
    if warning:
        notices.append(Notice("warning of a run", f"{path}: {warning}"))
    return notices
