"""Read a study: a folder, at any depth of which lie runs. A run is a folder with a result.json.

Folders with a config.json alone are unfinished runs. Whatever lies inside a run's folder belongs to that run.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pfcluster.evaluate import predictions
from pfcluster.evaluate.predictions import Predictions, PredictionsError

FORMAT = 1
FIGURES = (("test", "accuracy"), ("test", "macro_f1"), ("test", "n"), ("reconstruction", "mse"))
OBJECTIVES = ("mae", "finetune", "pf_mag")
DAMAGED = f"its {predictions.FILE} cannot be read"
OTHERS = f"its {predictions.FILE} is not of the test in its result.json"


class ReportError(ValueError):
    """A study that cannot be reported: says which folder or file, why, and what to do."""


@dataclass(frozen=True)
class Notice:
    """Something a reader must know before trusting the tables."""

    name: str
    text: str


@dataclass(frozen=True)
class Run:
    """One run with a result.json. `values` is that file, checked by `read_run`."""

    folder: Path
    place: str
    """The folder below the study's, with forward slashes."""
    values: Mapping[str, Any]
    config: Mapping[str, Any]
    """Dotted names of the config's fields and their values; empty where config.json is missing."""
    finished_at: datetime
    """Time of result.json, UTC."""
    answers: Predictions | None = None
    """What the run answered to each test sample."""
    no_answers: str = ""
    """Why there are none, in a few words."""

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
        """The number at e.g. ("test", "accuracy"); None where any part of the path is missing, null or not finite."""
        value: Any = self.values
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        plain = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if plain else None

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple((self.values.get("dataset") or {}).get("classes") or ())

    @property
    def dataset(self) -> str:
        """The dataset's name, and where votes became its labels, how: such runs compare within one mode only."""
        dataset = self.values.get("dataset") or {}
        name, votes = dataset.get("name") or "", dataset.get("votes")
        return f"{name} ({votes} votes)" if votes else str(name)


@dataclass(frozen=True)
class Unfinished:
    """A run without a result, or with one that is not of a finished run."""

    place: str
    name: str
    seed: str
    status: str


def find_runs(study: Path) -> Iterator[Path]:
    """Run folders below the study in the order of their paths. Nothing inside a run, and no hidden folder, is
    visited.
    """
    for folder, below, files in os.walk(study):
        is_run = "result.json" in files or ("config.json" in files and Path(folder) != study)
        below[:] = [] if is_run else sorted(name for name in below if not name.startswith("."))
        if is_run:
            yield Path(folder)


def read_runs(study: Path) -> tuple[list[Run], list[Unfinished], list[Notice]]:
    """All runs of a study: finished, unfinished, and what was odd about them.

    Raises ReportError for a folder that does not exist or holds no finished run, and for a malformed result.json.
    """
    if not study.is_dir():
        raise ReportError(f"{study} is no folder; give the folder in which the runs of a study lie")
    runs, unfinished, notices = [], [], []
    for folder in find_runs(study):
        place = folder.relative_to(study).as_posix()
        if (folder / "result.json").exists():
            run = read_run(folder, place)
            notices += _notices(run)
            if run.status == "finished":
                runs.append(run)
            else:
                unfinished.append(Unfinished(place, run.name, str(run.seed), run.status))
        else:
            unfinished.append(_unfinished(folder, place))
    if not runs:
        others = (
            f"; {len(unfinished)} unfinished: {', '.join(run.place for run in unfinished[:5])}" if unfinished else ""
        )
        raise ReportError(
            f"{study} holds no finished run (a folder with result.json){others}; let one finish and try again"
        )
    return runs, unfinished, notices


def read_run(folder: Path, place: str) -> Run:
    """One run's result.json and config.json. Raises ReportError that names the file and the field that is wrong."""
    file = folder / "result.json"
    values = _object(file)
    _check(file, values)
    config = flatten(_object(folder / "config.json")) if (folder / "config.json").exists() else {}
    run = Run(folder, place, values, config, datetime.fromtimestamp(file.stat().st_mtime, timezone.utc))
    answers, why = _answers(run)
    return replace(run, answers=answers, no_answers=why)


def _answers(run: Run) -> tuple[Predictions | None, str]:
    """A run's answers where they are those that its test accuracy counts; else why not."""
    accuracy = run.number("test", "accuracy")
    if accuracy is None:
        return None, "no test accuracy"
    if not (run.folder / predictions.FILE).exists():
        return None, f"no {predictions.FILE} (an older run)"
    try:
        found = predictions.read(run.folder)
    except PredictionsError:
        return None, DAMAGED
    n = len(found.labels)
    same = abs(found.correct.sum() - accuracy * n) < 0.5 and run.number("test", "n") in (None, n)
    return (found, "") if same and run.classes in ((), found.classes) else (None, OTHERS)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as dotted names: {"model": {"depth": 4}} -> {"model.depth": 4}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def read_metrics(run: Run) -> list[Mapping[str, Any]]:
    """The lines of metrics.jsonl that can be read; none where the file is missing. A line cut by a kill is left out."""
    file = run.folder / "metrics.jsonl"
    if not file.exists():
        return []
    lines: list[Mapping[str, Any]] = []
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def series(lines: Sequence[Mapping[str, Any]], split: str, metric: str) -> list[tuple[float, float]]:
    """(step, value) of one metric in ascending steps; where a resumed run wrote a step twice, the later line holds."""
    points = {}
    for line in lines:
        step, value = line.get("step"), line.get(metric)
        if line.get("split") == split and isinstance(step, int | float) and isinstance(value, int | float):
            points[float(step)] = float(value)
    return sorted(points.items())


def _object(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ReportError(f"{file} cannot be read: {error}; repair it, or move the run out of the study") from error
    if not isinstance(values, dict):
        raise ReportError(f"{file} must hold an object, got {type(values).__name__}; move the run out of the study")
    return values


def _check(file: Path, values: Mapping[str, Any]) -> None:
    """Every field the report reads has its type. Only format, name, objective, seed and status must be there."""

    def require(condition: bool, field: str, value: object, wanted: str) -> None:
        if not condition:
            raise ReportError(
                f"{file}: {field} must {wanted}, got {value!r}; repair it, or move the run out of the study"
            )

    require(values.get("format") == FORMAT, "format", values.get("format"), f"be {FORMAT}")
    for field in ("name", "status"):
        require(bool(values.get(field)) and isinstance(values[field], str), field, values.get(field), "be a text")
    require(values.get("objective") in OBJECTIVES, "objective", values.get("objective"), f"be one of {OBJECTIVES}")
    require(type(values.get("seed")) is int, "seed", values.get("seed"), "be a whole number")
    for field in (
        "dataset",
        "parameters",
        "best",
        "validation",
        "test",
        "poker",
        "reconstruction",
        "pictures",
        "versions",
    ):
        value = values.get(field)
        require(value is None or isinstance(value, dict), field, value, "be an object or null")
    objects = {"test.per_class": ("test", "per_class"), "poker.rows": ("poker", "rows")}
    inner = {field: (values.get(part) or {}).get(name) for field, (part, name) in objects.items()}
    inner |= {f"poker.rows.{row}": value for row, value in _items(inner["poker.rows"])}
    for field, value in inner.items():
        require(value is None or isinstance(value, dict), field, value, "be an object or null")
    figures = {f"{part}.{name}": (values.get(part) or {}).get(name) for part, name in FIGURES}
    figures |= {f"{field}.{name}": value for field, cells in inner.items() for name, value in _items(cells)}
    for field, value in figures.items():
        plain = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        require(plain or field in inner, field, value, "be a number or null")
    _check_confusion(values, require)


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else []


def _check_confusion(values: Mapping[str, Any], require: Any) -> None:
    classes = (values.get("dataset") or {}).get("classes") or []
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    require(named, "dataset.classes", classes, "be a list of names")
    matrix = (values.get("test") or {}).get("confusion")
    if matrix is None:
        return
    square = isinstance(matrix, list) and len(matrix) == len(classes)
    square = square and all(isinstance(row, list) and len(row) == len(classes) for row in matrix)
    require(square, "test.confusion", matrix, f"be {len(classes)} rows of {len(classes)} counts, one for each class")
    counts = all(isinstance(cell, int | float) and cell >= 0 for row in matrix for cell in row)
    require(counts, "test.confusion", matrix, "hold counts")


def _unfinished(folder: Path, place: str) -> Unfinished:
    config: Mapping[str, Any] = {}
    try:
        config = _object(folder / "config.json")
        status = "no result yet"
    except ReportError:
        status = "no result, and its config.json cannot be read"
    return Unfinished(place, str(config.get("name", "–")), str(config.get("seed", "–")), status)


def _notices(run: Run) -> list[Notice]:
    notices = []
    if not run.config:
        notices.append(Notice("no config", f"{run.place} has no config.json: nothing shows what was run."))
    for part in ("test", "validation"):
        broken = [f"{part}.{name}" for name, value in (run.values.get(part) or {}).items() if value != value]
        if broken:
            notices.append(Notice("not a number", f"{run.place}: {', '.join(broken)}; left out of every mean."))
    if run.status == "finished" and run.objective != "mae" and run.number("test", "accuracy") is None:
        notices.append(Notice("no test figures", f"{run.place} finished without a test accuracy; no table counts it."))
    if run.no_answers in (DAMAGED, OTHERS):
        text = f"{run.place}: {run.no_answers}; nothing is said of other test samples. Train it again."
        notices.append(Notice("test answers left out", text))
    warning = run.values.get("warning")
    if warning:
        notices.append(Notice("a run's own warning", f"{run.place}: {warning}"))
    return notices
