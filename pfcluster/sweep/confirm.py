"""The confirmation of a sweep: the best configurations and the baseline are trained again on seeds that the search did
not use.

The best of thirty trials is best partly by chance. Its score on fresh seeds estimates its real performance.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pfcluster.config.json_files import JsonFileError, convert, read_object
from pfcluster.sweep.state import SweepState
from pfcluster.sweep.trials import TrialRun, first_failure, result_of
from pfcluster.system.atomic_files import write_atomically

CONFIRMED = "confirmed.json"


class Confirmation:
    """The trials that are trained again, and their results. They are selected once, and the selection is recorded."""

    def __init__(self, state: SweepState) -> None:
        self.state, self.spec = state, state.spec
        self.path = state.folder / CONFIRMED

    def select(self) -> list[int]:
        """Select the baseline and the best trials of a search that is complete."""
        selected = [0, *self.state.ranked()[: self.spec.confirm]] if self.spec.confirm else []
        write_atomically(self.path, json.dumps({"trials": selected, "seeds": self.spec.fresh_seeds}) + "\n")
        return selected

    def selected(self) -> list[int] | None:
        """Numbers of the trials, the baseline first; None before the selection. Raises JsonFileError."""
        if not self.path.exists():
            return None
        numbers = convert(list[int], read_object(self.path).get("trials"), str(self.path), "trials")
        if unknown := [number for number in numbers if not 0 <= number < len(self.state.trials)]:
            raise JsonFileError(f"{self.path}: trials names trial {unknown[0]}, which does not exist")
        return list(numbers)

    def chains(self) -> Iterator[list[TrialRun]]:
        """What to run: seed by seed, so that comparable results exist early; then the test split of the winner and the
        baseline. The runs of a chain follow each other.
        """
        selected = self.selected() or []
        if len(selected) < 2:
            return
        for seed in self.spec.fresh_seeds:
            for number in selected:
                if not self._trained(number, seed):
                    yield self.state.runs.confirmation_runs(self.state.lineage(number), seed)
        winner = self.winner()
        for number in (0, winner) if winner is not None else ():
            if self.scores(number) is not None:
                for seed in self.spec.fresh_seeds:
                    yield [TrialRun(self.state.runs.run_of(self.state.lineage(number)[-1], seed, test=True))]

    def folder(self, number: int, seed: int) -> Path:
        """Folder of a trial's run with a fresh seed."""
        return self.state.runs.folder_of(self.state.lineage(number)[-1], seed)

    def _trained(self, number: int, seed: int) -> bool:
        """Whether such a run has been trained, regardless of whether its test split has been measured."""
        result = result_of(self.folder(number, seed))
        return result is not None and result["status"] == "finished"

    def failed(self, number: int) -> bool:
        """Whether one of a trial's runs on fresh seeds failed."""
        lineage = self.state.lineage(number)
        runs = [one for seed in self.spec.fresh_seeds for one in self.state.runs.confirmation_runs(lineage, seed)]
        return first_failure(runs) is not None

    def scores(self, number: int) -> list[float] | None:
        """The metric on the fresh seeds, not sign-adjusted; None if a run is missing."""
        if not all(self._trained(number, seed) for seed in self.spec.fresh_seeds):
            return None
        values = [self.state.value(self.state.lineage(number), seed) for seed in self.spec.fresh_seeds]
        return [value for value in values if value is not None]

    def winner(self) -> int | None:
        """The best trial on the fresh seeds, excluding the baseline; None before all results are there."""
        scores = {number: self.scores(number) for number in self.selected() or []}
        if any(values is None and not self.failed(number) for number, values in scores.items()):
            return None
        means = {
            number: self.spec.sign * sum(values) / len(values) for number, values in scores.items() if values and number
        }
        return max(means, key=lambda number: (means[number], -number)) if means else None
