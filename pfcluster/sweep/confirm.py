"""The second half of a sweep: the best configurations and the baseline again, on seeds that the search never saw.

The best of thirty trials is partly the luckiest. What it scores on fresh seeds is what it is worth.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pfcluster.runs.atomic_files import write_atomically
from pfcluster.sweep.state import SweepState
from pfcluster.sweep.trials import TrialRun, read_failed, result_of

CONFIRMED = "confirmed.json"


class Confirmation:
    """Which trials are trained again, and what came of it. The choice is written down once."""

    def __init__(self, board: SweepState) -> None:
        self.board, self.spec = board, board.spec
        self.path = board.folder / CONFIRMED

    def choose(self) -> list[int]:
        """The best trials of an exploration that is over, the baseline before them."""
        chosen = [0, *self.board.ranked()[: self.spec.confirm]] if self.spec.confirm else []
        write_atomically(self.path, json.dumps({"trials": chosen, "seeds": self.spec.fresh_seeds}) + "\n")
        return chosen

    def chosen(self) -> list[int] | None:
        """Numbers of the trials, the baseline's first; None before they are chosen."""
        if not self.path.exists():
            return None
        known: list[int] = json.loads(self.path.read_text())["trials"]
        return known

    def chains(self) -> Iterator[list[TrialRun]]:
        """What is to be run: seed by seed, so that what is compared exists early; then the test split of the winner and
        the baseline.
        """
        chosen = self.chosen() or []
        if len(chosen) < 2:
            return
        for seed in self.spec.fresh_seeds:
            for number in chosen:
                if not self._trained(number, seed):
                    yield self.board.runs.confirmed(self.board.lineage(number), seed)
        winner = self.winner()
        for number in (0, winner) if winner is not None else ():
            if self.scores(number) is not None:
                for seed in self.spec.fresh_seeds:
                    yield [TrialRun(self.board.runs.job(self.board.lineage(number)[-1], seed, test=True))]

    def folder(self, number: int, seed: int) -> Path:
        """A trial's run with a fresh seed."""
        return self.board.runs.folder_of(self.board.lineage(number)[-1], seed)

    def _trained(self, number: int, seed: int) -> bool:
        """Whether such a run has been trained; its test split may have been measured since, or not."""
        result = result_of(self.folder(number, seed))
        return result is not None and result["status"] == "finished"

    def failed(self, number: int) -> bool:
        """Whether one of a trial's runs on fresh seeds has no result."""
        lineage = self.board.lineage(number)
        legs = [leg for seed in self.spec.fresh_seeds for leg in self.board.runs.confirmed(lineage, seed)]
        return any(read_failed(leg.job.folder) is not None for leg in legs)

    def scores(self, number: int) -> list[float] | None:
        """The metric's values on the fresh seeds, as they are; None where one is missing."""
        if not all(self._trained(number, seed) for seed in self.spec.fresh_seeds):
            return None
        values = [self.board.value(self.board.lineage(number), seed) for seed in self.spec.fresh_seeds]
        return [value for value in values if value is not None]

    def winner(self) -> int | None:
        """The trial that is best on the fresh seeds, the baseline left out; None before all are known."""
        chosen = self.chosen() or []
        scores = {number: self.scores(number) for number in chosen}
        if any(found is None and not self.failed(number) for number, found in scores.items()):
            return None
        means = {
            number: self.spec.sign * sum(found) / len(found) for number, found in scores.items() if found and number
        }
        return max(means, key=lambda number: (means[number], -number)) if means else None
