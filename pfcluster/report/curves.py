"""Learning curves of runs, read line by line and thinned while they are read: memory does not grow with a run's length.

Legend: p points of a curve.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pfcluster.report.figures import MAX_POINTS, Curve, downsample
from pfcluster.runs.metrics_file import iter_metrics

Metric = tuple[str, str]
"""Split and name of a metric."""
CAPACITY = 2048
"""Points of a curve that are kept while it is read."""
CHUNK_LINES = 512
"""Lines that are in memory at a time."""


class _Series:
    """A growing curve: the means of `size` neighbours each, the size doubled whenever there are too many."""

    def __init__(self) -> None:
        self.kept: Curve = np.zeros((0, 2))
        self.size = 1
        self._sum, self._count = np.zeros(2), 0
        """Sum and number of the points since the last mean."""

    def extend(self, points: Curve) -> None:
        """Add points in the order of the file: p 2."""
        missing = self.size - self._count
        if self._count and len(points) >= missing:
            self._sum, self._count = self._sum + points[:missing].sum(0), self.size
            self._append_mean()
            points = points[missing:]
        if not self._count:
            whole = len(points) - len(points) % self.size
            self.kept = np.concatenate([self.kept, points[:whole].reshape(-1, self.size, 2).mean(1)])
            points = points[whole:]
        self._sum, self._count = self._sum + points.sum(0), self._count + len(points)
        while len(self.kept) > CAPACITY:
            self._halve()

    def _append_mean(self) -> None:
        if self._count:
            self.kept = np.concatenate([self.kept, self._sum[None] / self._count])
        self._sum, self._count = np.zeros(2), 0

    def _halve(self) -> None:
        curve = self._sorted()
        odd = len(curve) % 2
        if odd:  # the last one goes on
            self._sum, self._count = self._sum + self.size * curve[-1], self._count + self.size
        self.kept = curve[: len(curve) - odd].reshape(-1, 2, 2).mean(1)
        self.size *= 2

    def _sorted(self) -> Curve:
        """By step; of several points with the same step the last one counts."""
        unique, last = np.unique(self.kept[::-1, 0], return_index=True)
        return np.stack([unique, self.kept[::-1, 1][last]], 1)

    def curve(self) -> Curve:
        """The curve so far: p 2."""
        self._append_mean()
        return self._sorted()


def read_curves(folder: Path, metrics: Collection[Metric], limit: int = MAX_POINTS) -> dict[Metric, Curve]:
    """The curves of these metrics in a run's metrics.jsonl, of at most `limit` points; without empty ones."""
    names: dict[str, list[str]] = {}
    for split, name in metrics:
        names.setdefault(split, []).append(name)
    series = {metric: _Series() for metric in metrics}
    for lines in _chunks(iter_metrics(folder), CHUNK_LINES):
        for split, of_split in names.items():
            part = [line for line in lines if line["split"] == split]
            steps = np.array([line["step"] for line in part], float)
            for name in of_split:
                values = np.array([line.get(name) for line in part], float)  # None becomes NaN
                present = np.isfinite(values)
                series[split, name].extend(np.stack([steps[present], values[present]], 1))
    curves = {metric: one.curve() for metric, one in series.items()}
    return {metric: downsample(curve, limit) for metric, curve in curves.items() if len(curve)}


def _chunks(lines: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    while chunk := list(islice(lines, size)):
        yield chunk


def curve_of(curves: Mapping[Metric, Curve], metric: Metric, scale: float = 1) -> Curve:
    """A metric's curve, values times `scale`; without points if it was not logged."""
    return curves.get(metric, np.zeros((0, 2))) * (1, scale)
