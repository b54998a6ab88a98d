"""When a trial is not worth more: asynchronous successive halving (ASHA, Li et al. 2020), decided in the order of the
trials' numbers.

At each rung a trial goes on if it is among the best 1 / reduction of the trials up to its own number that reached the
rung. Ray's and Optuna's ASHA compare with whatever has arrived, so that two sweeps of one spec stop different trials;
here the outcome depends on scores alone. A trial whose turn has not come trains on meanwhile: nobody waits, and what it
trained too much is not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class EvalSchedule:
    """When a run is evaluated: every so many steps, and at its end."""

    total: int
    every: int

    def evaluations(self) -> list[int]:
        """Steps of the evaluations, the last at the end."""
        return [*range(self.every, self.total, self.every), self.total]

    def at_least(self, step: float) -> int:
        """The first evaluation at or after a step."""
        return next((at for at in self.evaluations() if at >= step), self.total)


@dataclass(frozen=True)
class Progress:
    """What is known of a trial: its score at each rung that it has passed, and whether more will come."""

    at_rungs: tuple[float, ...]
    ended: bool
    """Finished or failed: rungs that are not there will not be."""


def rungs(course: EvalSchedule, first_step: int, reduction: int, number: int) -> list[int]:
    """Steps of the rungs, rising: the (1 / reduction)^k of what is trained after `first_step`, at evaluations. Rungs
    that fall together or onto the end are one, or none.
    """
    left = course.total - first_step
    wanted = [course.at_least(first_step + left / reduction**k) for k in range(number, 0, -1)]
    return [step for step in dict.fromkeys(wanted) if step < course.total]


@dataclass(frozen=True)
class StopDecision:
    """Why a trial stops."""

    rung: int
    better: int
    """Trials that were better at this rung ..."""
    among: int
    """... of those up to this trial's number that reached it, itself included."""


def decide(trials: Sequence[Progress], reduction: int, number: int) -> tuple[dict[int, StopDecision], dict[int, int]]:
    """Trials that are to stop; and for each trial the number of rungs at which it may go on for certain.

    A trial is judged at a rung once every earlier trial has reached that rung, was stopped below it, or has ended. A
    trial without a score at a rung it ended before counts as absent there.
    """
    stopped: dict[int, StopDecision] = {}
    passed: dict[int, int] = dict.fromkeys(range(len(trials)), 0)
    for rung in range(number):
        reached: list[float] = []
        for index, trial in enumerate(trials):
            if index in stopped:
                continue
            if len(trial.at_rungs) <= rung:
                if not trial.ended:
                    break  # later ones wait for this one's score
                continue
            if passed[index] < rung:
                break  # not judged below yet
            score = trial.at_rungs[rung]
            reached.append(score)
            better = sum(other > score for other in reached)
            if better >= math.ceil(len(reached) / reduction):
                stopped[index] = StopDecision(rung, better, len(reached))
            else:
                passed[index] = rung + 1
    return stopped, passed


def settled(trial: Progress, index: int, stopped: Container[int], passed: Mapping[int, int]) -> bool:
    """Whether nothing can change a trial's outcome any more: stopped, or ended and judged at every rung it reached."""
    return trial.ended and (index in stopped or passed[index] >= len(trial.at_rungs))
