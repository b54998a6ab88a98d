"""metrics.jsonl and ranks.jsonl of a run folder: written, read, followed and cut at the step of a resume. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pfcluster.config.json_files import JsonFileError, parse_json
from pfcluster.runs.folder import METRICS_FILE, RANKS_FILE, append_warning
from pfcluster.system.atomic_files import write_via_temporary
from pfcluster.system.os_errors import retry_transient

LINE_TYPES = frozenset((str, int, float, bool, type(None)))
"""Types of the values of a line of metrics.jsonl; its split is the only string."""
TAIL_BYTES = 1 << 16
"""`last_metrics` reads this much of the end of metrics.jsonl."""


def append_metrics(folder: Path, split: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
    """Append one line to metrics.jsonl."""
    _append_line(folder / METRICS_FILE, {"split": split, "step": step, "epoch": round(epoch, 4), **values})


def truncate_metrics(folder: Path, step: int) -> None:
    """Drop the lines after `step`, and lines that cannot be read, before a run resumes at that step. Replaces the file.
    A last line without its end was cut by a crash; other broken lines are counted in warnings.log.
    """
    path = folder / METRICS_FILE
    path.touch()
    broken = 0

    def fill(kept: BinaryIO) -> None:
        nonlocal broken
        with open(path, "rb") as lines:
            for line in lines:
                values = metrics_line(line)
                if values is not None and line.endswith(b"\n") and values["step"] <= step:
                    kept.write(line)
                broken += values is None and line.endswith(b"\n")

    write_via_temporary(path, fill)
    if broken:
        append_warning(folder, f"{broken} lines of {path} could not be read and were dropped")


def read_metrics(folder: Path, split: str | None = None) -> list[dict[str, Any]]:
    """All lines of `iter_metrics`."""
    return list(iter_metrics(folder, split))


def iter_metrics(folder: Path, split: str | None = None) -> Iterator[dict[str, Any]]:
    """Lines of metrics.jsonl one by one, of one split or of all; none if there is no file. Lines cut by a crash are
    skipped.
    """
    try:
        with open(folder / METRICS_FILE, encoding="utf-8", errors="replace") as lines:
            yield from _parsed(lines, split)
    except OSError:
        return


def last_metrics(folder: Path, split: str) -> dict[str, Any] | None:
    """The newest line of a split; None if there is none in the last `TAIL_BYTES` of the file."""
    try:
        with open(folder / METRICS_FILE, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    return next(_parsed(reversed(lines), split), None)


def last_trained_step(folder: Path) -> int:
    """Newest training step in metrics.jsonl; 0 if there is none."""
    line = last_metrics(folder, "train")
    return 0 if line is None else int(line["step"])


def metric_series(lines: Sequence[Mapping[str, Any]], split: str, metric: str) -> list[tuple[int, float]]:
    """(step, value) of one metric in ascending steps. Of several lines with the same step the last one counts."""
    points = {}
    for line in lines:
        step, value = line.get("step"), line.get(metric)
        if line.get("split") == split and isinstance(step, int | float) and isinstance(value, int | float):
            points[int(step)] = float(value)
    return sorted(points.items())


class MetricsTail:
    """Reads a growing metrics.jsonl piece by piece."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS_FILE
        self._offset = 0
        self._inode = 0

    def new_lines(self) -> Iterator[dict[str, Any]]:
        """Complete lines appended since the last call. Starts over if the file was replaced, as by a resumed run."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            if inode != self._inode:
                self._offset, self._inode = 0, inode
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                values = metrics_line(line)
                if values is not None:
                    yield values


def append_rank_times(folder: Path, step: int, milliseconds: Mapping[str, Sequence[float]]) -> None:
    """Append one line to ranks.jsonl: for each part of a step, the milliseconds of every rank."""
    _append_line(folder / RANKS_FILE, {"step": step, **milliseconds})


def _append_line(path: Path, values: Mapping[str, Any]) -> None:
    line = json.dumps(values) + "\n"

    def append() -> None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line)

    retry_transient(append)


def _parsed(lines: Iterable[str], split: str | None) -> Iterator[dict[str, Any]]:
    """Lines that are JSON objects, of one split or of all."""
    for text in lines:
        if split is not None and f'"{split}"' not in text:
            continue
        line = metrics_line(text)
        if line is not None and split in (None, line["split"]):
            yield line


def metrics_line(text: str | bytes) -> dict[str, Any] | None:
    """A line of metrics.jsonl: an object with a step, a split and otherwise numbers; None if it is damaged."""
    try:
        line = parse_json(text, METRICS_FILE)
    except JsonFileError:
        return None
    if not (isinstance(line, dict) and type(line.get("step")) is int and isinstance(line.get("split"), str)):
        return None
    types = list(map(type, line.values()))
    return line if types.count(str) == 1 and LINE_TYPES.issuperset(types) else None
