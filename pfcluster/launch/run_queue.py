"""The runs of a wave in the order in which a launcher on this machine or on Ray starts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pfcluster.launch.plan import TrainRun


class RunQueue:
    """Runs that have not started. One that waits for others of the same queue is ready once those have finished."""

    def __init__(self, runs: Sequence[TrainRun], before: Mapping[Path, Sequence[TrainRun]]) -> None:
        """`runs`: unfinished runs, each after those that it waits for; `before`: by folder, the runs that it waits for
        (`Plan.same_seed_runs`).
        """
        self._waiting = list(runs)
        self._unfinished = {run.folder for run in runs}
        self._before = before

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def next(self) -> TrainRun | None:
        """Take the first run that is ready; None if all wait for runs in progress."""
        for index, run in enumerate(self._waiting):
            if not self._waits_for(run, self._unfinished):
                return self._waiting.pop(index)
        return None

    def finished(self, run: TrainRun) -> None:
        """Let the runs start that wait for a run."""
        self._unfinished.discard(run.folder)

    def drop_after(self, run: TrainRun) -> None:
        """Remove the runs that wait for one that did not finish."""
        dropped = {run.folder}
        for waiting in self._waiting:
            if self._waits_for(waiting, dropped):
                dropped.add(waiting.folder)
        self._waiting = [waiting for waiting in self._waiting if waiting.folder not in dropped]

    def _waits_for(self, run: TrainRun, folders: set[Path]) -> bool:
        return any(before.folder in folders for before in self._before.get(run.folder, ()))
