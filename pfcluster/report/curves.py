"""Learning curves of runs, read line by line and thinned while they are read: memory does not grow with a run's length.

Legend: p points of a curve.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfcluster.report.figures import MAX_POINTS, downsample
from pfcluster.runs.folder import iter_metrics

Curve = NDArray[np.float64]
"""(step, value), finite, in ascending steps: p 2."""
Metric = tuple[str, str]
"""Split and name of a metric."""
CAPACITY = 2048
"""Points of a curve that are kept while it is read."""


class _Series:
    """A growing curve: the means of `size` neighbours each, the size doubled whenever there are too many."""

    def __init__(self) -> None:
        self.steps, self.values = array("d"), array("d")
        self.size = 1
        self._sums = (0.0, 0.0, 0)
        """Steps, values and number of the points since the last mean."""

    def add(self, step: float, value: float) -> None:
        if self.size == 1:
            self.steps.append(step)
            self.values.append(value)
        else:
            self._add_to_mean(step, value)
        if len(self.steps) > CAPACITY:
            self._halve()

    def _add_to_mean(self, step: float, value: float) -> None:
        step_sum, value_sum, count = self._sums
        self._sums = step_sum + step, value_sum + value, count + 1
        if count + 1 == self.size:
            self._append_mean()

    def _append_mean(self) -> None:
        step_sum, value_sum, count = self._sums
        if count:
            self.steps.append(step_sum / count)
            self.values.append(value_sum / count)
        self._sums = 0.0, 0.0, 0

    def _halve(self) -> None:
        curve = self._sorted()
        odd = len(curve) % 2
        pairs = curve[: len(curve) - odd].reshape(-1, 2, 2).mean(1)
        if odd:  # the last one goes on
            self._sums = self.size * curve[-1, 0], self.size * curve[-1, 1], self.size
        self.steps, self.values = array("d", pairs[:, 0]), array("d", pairs[:, 1])
        self.size *= 2

    def _sorted(self) -> Curve:
        """By step; of several points with the same step the last one counts."""
        steps, values = np.array(self.steps), np.array(self.values)
        unique, last = np.unique(steps[::-1], return_index=True)
        return np.stack([unique, values[::-1][last]], 1)

    def curve(self) -> Curve:
        """The curve so far: p 2."""
        self._append_mean()
        return self._sorted()


def read_curves(folder: Path, metrics: Collection[Metric], limit: int = MAX_POINTS) -> dict[Metric, Curve]:
    """The curves of these metrics in a run's metrics.jsonl, of at most `limit` points; without empty ones."""
    names: dict[str, list[str]] = {}
    for split, name in metrics:
        names.setdefault(split, []).append(name)
    series = {split: {name: _Series() for name in of_split} for split, of_split in names.items()}
    for line in iter_metrics(folder):
        step = line["step"]
        for name, one in series.get(line["split"], {}).items():
            value = line.get(name)
            if value is not None and math.isfinite(value):
                one.add(step, value)
    return {
        (split, name): np.array(downsample(one.curve(), limit))
        for split, of_split in series.items()
        for name, one in of_split.items()
        if len(one.steps)
    }


def curve_of(curves: Mapping[Metric, Curve], metric: Metric, scale: float = 1) -> Curve:
    """A metric's curve, values times `scale`; without points if it was not logged."""
    return curves.get(metric, np.zeros((0, 2))) * (1, scale)
