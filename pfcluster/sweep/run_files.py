"""The files of a sweep's runs, each read again only after it changed: a tick of the driver costs what changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfcluster.config import RunConfig
from pfcluster.launch.plan import TrainRun
from pfcluster.runs.early_stop import EarlyStop, read_early_stop
from pfcluster.runs.folder import CONFIG_FILE, EARLY_STOP_FILE, METRICS_FILE, RESULT_FILE
from pfcluster.runs.metrics_file import metric_series, metrics_line
from pfcluster.sweep.trials import FAILED, Failed, read_failed

Version = tuple[int, int, int] | None
"""Inode, time of modification and size of a file; None if there is none. Files of runs are replaced, or appended to."""


@dataclass
class _Curve:
    """What has been read of a metrics.jsonl."""

    version: Version = None
    read_bytes: int = 0
    values: dict[int, float] = field(default_factory=dict)
    points: list[tuple[int, float]] = field(default_factory=list)


class RunFiles:
    """Reads files of runs, and remembers them until they change."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self._values: dict[tuple[str, Path], tuple[tuple[Version, ...], Any]] = {}
        self._finished_configs: dict[Path, RunConfig] = {}
        self._curves: dict[Path, _Curve] = {}

    def failed(self, folder: Path) -> Failed | None:
        """Why a run failed; None if it did not."""
        failed: Failed | None = self._read(FAILED, folder, (FAILED,), read_failed)
        return failed

    def early_stop(self, folder: Path) -> EarlyStop | None:
        """The early stop of a run; None if it has none."""
        early_stop: EarlyStop | None = self._read(EARLY_STOP_FILE, folder, (EARLY_STOP_FILE,), read_early_stop)
        return early_stop

    def finished(self, run: TrainRun) -> bool:
        """See `TrainRun.finished`."""
        known = self._finished_configs.get(run.folder)
        if known is not run.config and known != run.config:
            self._values.pop(("finished", run.folder), None)
            self._finished_configs[run.folder] = run.config
        files = (CONFIG_FILE, RESULT_FILE, EARLY_STOP_FILE)
        finished: bool = self._read("finished", run.folder, files, lambda _: run.finished())
        return finished

    def _read(self, what: str, folder: Path, files: tuple[str, ...], read: Callable[[Path], Any]) -> Any:
        versions = tuple(_version(f"{folder}/{file}") for file in files)
        known = self._values.get((what, folder))
        if known is None or known[0] != versions:
            known = self._values[what, folder] = versions, read(folder)
        return known[1]

    def curve(self, folder: Path) -> list[tuple[int, float]]:
        """A run's validation scores: (step, value) in ascending steps. The same list until there are new ones."""
        curve = self._curves.setdefault(folder, _Curve())
        path = f"{folder}/{METRICS_FILE}"
        version = _version(path)
        if version == curve.version:
            return curve.points
        replaced = version is None or curve.version is None or version[0] != curve.version[0]
        if replaced or (version is not None and version[2] < curve.read_bytes):
            curve = self._curves[folder] = _Curve()
        curve.version = version
        lines = _new_lines(path, curve)
        new = dict(metric_series(lines, "validation", self.metric))
        if new:
            curve.values |= new
            curve.points = sorted(curve.values.items())
        return curve.points


def _version(path: str) -> Version:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _new_lines(path: str, curve: _Curve) -> list[dict[str, Any]]:
    """Lines of the validation split that were completed since the last call; damaged ones are skipped."""
    lines = []
    try:
        with open(path, "rb") as file:
            file.seek(curve.read_bytes)
            for text in file:
                if not text.endswith(b"\n"):
                    break
                curve.read_bytes += len(text)
                if b'"validation"' in text and (line := metrics_line(text)) is not None:
                    lines.append(line)
    except OSError:
        curve.version = None  # look again
    return lines
