"""Early stopping by asynchronous successive halving (ASHA, Li et al. 2020), decided in the order of trial numbers.

At each rung a trial continues if it is among the best 1 / reduction of the trials with numbers up to its own that
reached the rung. Ray's and Optuna's ASHA compare with whatever results have arrived, so two sweeps of one spec stop
different trials; here the outcome depends on scores alone. A trial that cannot be decided yet keeps training, and
steps trained beyond its stop are ignored.

A rung is known by its number, 0 being the first: the same fraction of each trial's training. Where the space changes
the length of a run or how often it is evaluated, trials have it at different steps, and some do not have it.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class EvalSchedule:
    """When a run is evaluated: every `every` steps, and at its end."""

    total: int
    every: int

    def steps(self) -> list[int]:
        """Steps of the evaluations, the last at the end of the run."""
        return [*range(self.every, self.total, self.every), self.total]

    def at_or_after(self, step: float) -> int:
        """The first evaluation at or after a step."""
        return next((evaluation for evaluation in self.steps() if evaluation >= step), self.total)


@dataclass(frozen=True)
class Progress:
    """A trial's score at each rung that it has passed, by number, and whether more scores can follow."""

    at_rungs: tuple[float | None, ...]
    """None at a rung that the trial does not have."""
    ended: bool
    """Finished or failed: no further rung will be reached."""


def rungs(schedule: EvalSchedule, first_step: int, reduction: int, number: int) -> list[int | None]:
    """Steps of the rungs by their number, rising: fractions (1 / reduction)^k of the steps after `first_step`, k from
    `number` to 1, rounded up to evaluations. None for a rung at the end of the run, and for all but the last of those
    that fall on one evaluation, whose fraction is the nearest to it.
    """
    remaining = schedule.total - first_step
    steps = [schedule.at_or_after(first_step + remaining / reduction**k) for k in range(number, 0, -1)]
    later = [*steps[1:], schedule.total]
    return [step if step < following else None for step, following in zip(steps, later, strict=True)]


@dataclass(frozen=True)
class StopDecision:
    """Why a trial is stopped."""

    rung: int
    better: int
    """Trials with a higher score at this rung ..."""
    among: int
    """... out of the trials up to this one that reached it, itself included."""


def decide(trials: Sequence[Progress], reduction: int, number: int) -> tuple[dict[int, StopDecision], dict[int, int]]:
    """-> trials to stop, and for each trial the number of rungs that it has definitely passed. `number`: of the rungs.

    A trial is decided at a rung once every earlier trial has reached that rung, was stopped below it, or has ended. A
    trial that ended before a rung, or does not have it, is left out there.
    """
    stopped: dict[int, StopDecision] = {}
    passed: dict[int, int] = dict.fromkeys(range(len(trials)), 0)
    for rung in range(number):
        reached: list[float] = []
        """In ascending order."""
        for index, trial in enumerate(trials):
            if index in stopped:
                continue
            if len(trial.at_rungs) <= rung:
                if not trial.ended:
                    break  # later trials need this one's score
                continue
            if passed[index] < rung:
                break  # not decided at the rung below yet
            score = trial.at_rungs[rung]
            if score is None:
                passed[index] = rung + 1
                continue
            rank = -math.inf if math.isnan(score) else score
            insort(reached, rank)
            better = len(reached) - bisect_right(reached, rank)
            if better >= math.ceil(len(reached) / reduction):
                stopped[index] = StopDecision(rung, better, len(reached))
            else:
                passed[index] = rung + 1
    return stopped, passed


def is_settled(trial: Progress, index: int, stopped: Container[int], passed: Mapping[int, int]) -> bool:
    """Whether a trial's outcome is final: it has ended, and was stopped or decided at every rung that it reached."""
    return trial.ended and (index in stopped or passed[index] >= len(trial.at_rungs))
