"""The sweep itself: look what has ended, stop what is not worth more, propose, start; until the winner is confirmed.

All that it knows stands in the sweep's folder, and every decision is a function of that. A driver that is killed and
started again sees the same trials, keeps what is finished, goes on with what is not, and decides as it would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pfcluster.launch.local import LaunchError
from pfcluster.launch.plan import TrainRun
from pfcluster.launch.worker import FAILED, FINISHED, INTERRUPTED, USER_ERROR, ExitStatus
from pfcluster.sweep import pbt, search
from pfcluster.sweep.confirm import Confirmation
from pfcluster.sweep.executor import Executor
from pfcluster.sweep.search import Observation
from pfcluster.sweep.space import baseline
from pfcluster.sweep.state import SweepState, first_step
from pfcluster.sweep.trials import Failed, Trial, TrialRun, read_failed, write_failed

Say = Callable[[str], None]


class Sweep:
    """A sweep under way."""

    def __init__(self, board: SweepState, executor: Executor, say: Say) -> None:
        self.board, self.executor, self.say = board, executor, say
        self.spec, self.runs = board.spec, board.runs
        self.confirmation = Confirmation(board)
        self.active: set[Path] = set()
        self.baseline = baseline(self.spec.space, self.spec.stages())
        self.board.refresh(self.active)
        self._told = {number for number, one in enumerate(self.board.standings) if one.over}

    def tick(self) -> bool:
        """One look at everything; True once all is done. Raises LaunchError where nothing can follow."""
        for job, ending in self.executor.poll():
            self._landed(job, ending)
        self.board.refresh(self.active)
        self._tell()
        while made := self._proposed():
            self.board.add(made)
        explored = self._explored()
        if explored and self.confirmation.chosen() is None:
            self._choose()
        ready = [leg for chain in self._chains() if (leg := self._next(chain)) is not None]
        begun = ready[: max(0, self.executor.at_once - len(self.active))]
        for leg in begun:
            leg.prepare()
            self.active.add(leg.job.folder)
        if begun:
            self.executor.start([leg.job for leg in begun])
        return explored and not self.active and not ready

    def _chains(self) -> Iterator[list[TrialRun]]:
        """All that is to be run now, most urgent first; the runs of a chain follow each other."""
        shared = [[TrialRun(job)] for job in self.runs.shared.values()]
        yield from shared
        if not all(chain[0].job.finished() for chain in shared):
            return
        for trial, standing in zip(self.board.trials, self.board.standings, strict=True):
            if not standing.over:
                for seed in self.spec.seeds:
                    yield self.runs.explored(trial, seed)
        yield from self.confirmation.chains()

    def _next(self, chain: list[TrialRun]) -> TrialRun | None:
        """The run of a chain that can start: None where one is under way, one failed, or all are done."""
        for leg in chain:
            if leg.job.folder in self.active or read_failed(leg.job.folder) is not None:
                return None
            if not self.board.done(leg):
                return leg
        return None

    def _landed(self, job: TrainRun, ending: ExitStatus) -> None:
        self.active.discard(job.folder)
        if ending.code in (FINISHED, INTERRUPTED):
            return
        if job in self.runs.shared.values():
            code = USER_ERROR if ending.code == USER_ERROR else FAILED
            raise LaunchError(f"{job.label}, which all trials start from, failed: {ending.error}", code)
        write_failed(job.folder, Failed(ending.kind or "bug", ending.error))
        if not job.folder.name.startswith(tuple(f"seed-{seed}" for seed in self.spec.seeds)):
            self.say(f"{job.label}: failed ({ending.kind}): {ending.error}")

    def _tell(self) -> None:
        """Say what became of trials since the last look."""
        for number, standing in enumerate(self.board.standings):
            if not standing.over or number in self._told:
                continue
            self._told.add(number)
            trial = self.board.trials[number]
            value = None if standing.score is None else standing.score * self.spec.sign
            shown = "no value" if value is None else f"{self.spec.metric} {value:.4f}"
            if standing.failed is not None:
                self.say(f"{trial.name}: failed ({standing.failed.kind}): {standing.failed.error}")
            elif trial.stop is not None:
                self.say(f"{trial.name}: {shown}, stopped at step {trial.stop.step}: {trial.stop.reason}")
            else:
                self.say(f"{trial.name}: {shown}")

    # Proposing

    def _proposed(self) -> list[Trial]:
        """New trials that can be proposed now and have a place."""
        return self._next_generation() if self.spec.scheduler == "pbt" else self._next_trial()

    def _next_trial(self) -> list[Trial]:
        number, standings = len(self.board.trials), self.board.standings
        going = len(self.spec.seeds) * sum(not one.over for one in standings)
        known = all(one.over for one in standings[: search.waits_for(self.spec, number)])
        if number >= search.count(self.spec) or going >= self.executor.at_once or not known:
            return []
        earlier = [
            Observation(trial.values, one.score, 0 if trial.stop is None else trial.stop.step, not one.over)
            for trial, one in zip(self.board.trials, standings, strict=True)
        ]
        return [self._said(Trial(number, search.propose(self.spec, self.baseline, number, earlier)))]

    def _next_generation(self) -> list[Trial]:
        members, count = self.spec.trials, len(self.board.trials)
        generation = count // members
        if generation >= self.spec.generations:
            return []
        first = self.runs.job(Trial(0, self.baseline), self.spec.seeds[0])
        until: int | None = pbt.ends(self.spec, self.board.course(first), first_step(first))[generation]
        if generation == self.spec.generations - 1:
            until = None
        if generation == 0:
            drawn = [pbt.draw(self.spec, self.baseline, member) for member in range(members)]
            return [self._said(Trial(member, values, until=until)) for member, values in enumerate(drawn)]
        last, standings = self.board.trials[-members:], self.board.standings[-members:]
        scores = [one.score for one in standings]
        if not all(one.over for one in standings) or all(score is None for score in scores):
            return []
        found = pbt.offspring(self.spec, generation, [trial.values for trial in last], scores)
        return [
            self._said(Trial(count + member, values, parent=last[parent].number, until=until))
            for member, (parent, values) in enumerate(found)
        ]

    def _said(self, trial: Trial) -> Trial:
        parent = "" if trial.parent is None else f", from trial-{trial.parent:03d}"
        values = "  ".join(f"{name} {value}" for name, value in trial.values.items())
        self.say(f"{trial.name}{' (baseline)' if trial.number == 0 else ''}{parent}: {values}")
        return trial

    def _explored(self) -> bool:
        """Whether the exploration is over."""
        standings = self.board.standings
        if not standings or not all(one.over for one in standings):
            return False
        if self.spec.scheduler == "pbt":
            dead = all(one.score is None for one in standings[-self.spec.trials :])
            return dead or len(standings) >= self.spec.trials * self.spec.generations
        return len(standings) >= search.count(self.spec)

    def _choose(self) -> None:
        if all(one.score is None for one in self.board.standings):
            reasons = {one.failed.error for one in self.board.standings if one.failed is not None}
            raise LaunchError(f"every trial failed: {'; '.join(sorted(reasons))}", FAILED)
        chosen = self.confirmation.choose()
        if len(chosen) > 1:
            names = ", ".join(f"trial-{number:03d}" for number in chosen[1:])
            seeds = " ".join(map(str, self.spec.fresh_seeds))
            self.say(f"the exploration is over; {names} and the baseline are trained again on fresh seeds {seeds}")
        elif self.spec.confirm:
            self.say("the exploration is over; no trial but the baseline was trained whole: nothing to confirm")
