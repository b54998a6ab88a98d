"""Validation of result.json: every field that the report reads has the expected type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pfcluster.report.errors import ReportError

FORMAT = 1
OBJECTIVES = ("mae", "finetune", "pf_mag")
OBJECT_FIELDS = (
    "dataset",
    "inputs",
    "parameters",
    "best",
    "validation",
    "test",
    "poker",
    "reconstruction",
    "pictures",
    "efficiency",
    "versions",
)
NUMBER_FIELDS = (
    *((part, name) for part in ("validation", "test") for name in ("accuracy", "macro_f1", "mean_class_accuracy", "n")),
    *(("dataset", split) for split in ("train", "validation", "test")),
    ("best", "step"),
    ("best", "value"),
    ("reconstruction", "mse"),
    *(("efficiency", name) for name in ("tflops_per_device", "mfu", "host_wait", "peak_memory_gb")),
)
TOP_NUMBERS = ("steps", "evaluated_step", "seconds", "images_per_second")
STRINGS = ("status", "command", "git_commit", "selection_split", "measured_on", "warning")

Require = Callable[[bool, str, object, str], None]


def check_result(file: Path, values: Mapping[str, Any]) -> None:
    """Raise ReportError that names the first malformed field. Required: format, name, objective, seed and status."""
    require = _requirement(file)
    require(values.get("format") == FORMAT, "format", values.get("format"), f"be {FORMAT}")
    for field in ("name", "status"):
        require(bool(values.get(field)) and isinstance(values[field], str), field, values.get(field), "be a string")
    require(values.get("objective") in OBJECTIVES, "objective", values.get("objective"), f"be one of {OBJECTIVES}")
    require(type(values.get("seed")) is int, "seed", values.get("seed"), "be an integer")
    check_fields(file, values)


def check_fields(file: Path, values: Mapping[str, Any]) -> None:
    """Raise ReportError that names the first field of another type; all may be missing."""
    require = _requirement(file)
    for field in OBJECT_FIELDS:
        require(_is_object(values.get(field)), field, values.get(field), "be an object or null")
    for field in STRINGS:
        require(isinstance(values.get(field), str | None), field, values.get(field), "be a string or null")
    for field in TOP_NUMBERS:
        require(_is_number(values.get(field)), field, values.get(field), "be a number or null")
    _check_numbers(values, require)
    _check_confusion(values, require)


def _requirement(file: Path) -> Require:
    def require(condition: bool, field: str, value: object, expected: str) -> None:
        if not condition:
            raise ReportError(
                f"{file}: {field} must {expected}, got {value!r}; repair it, or move the run out of the study"
            )

    return require


def _check_numbers(values: Mapping[str, Any], require: Require) -> None:
    """Metrics are numbers; test.per_class, poker.rows and each of its rows are objects of numbers."""
    poker_rows = (values.get("poker") or {}).get("rows")
    objects = {"test.per_class": (values.get("test") or {}).get("per_class"), "poker.rows": poker_rows}
    objects |= {f"poker.rows.{row}": value for row, value in _items(poker_rows)}
    for field, value in objects.items():
        require(_is_object(value), field, value, "be an object or null")
    numbers = {f"{part}.{name}": (values.get(part) or {}).get(name) for part, name in NUMBER_FIELDS}
    numbers |= {f"{field}.{name}": value for field, cells in objects.items() for name, value in _items(cells)}
    for field, value in numbers.items():
        require(_is_number(value) or field in objects, field, value, "be a number or null")


def _check_confusion(values: Mapping[str, Any], require: Require) -> None:
    classes = (values.get("dataset") or {}).get("classes") or []
    are_names = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    require(are_names, "dataset.classes", classes, "be a list of names")
    matrix = (values.get("test") or {}).get("confusion")
    if matrix is None:
        return
    square = isinstance(matrix, list) and len(matrix) == len(classes)
    square = square and all(isinstance(row, list) and len(row) == len(classes) for row in matrix)
    require(square, "test.confusion", matrix, f"be {len(classes)} rows of {len(classes)} counts, one for each class")
    counts = all(isinstance(cell, int | float) and cell >= 0 for row in matrix for cell in row)
    require(counts, "test.confusion", matrix, "hold counts")


def _is_object(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else []
