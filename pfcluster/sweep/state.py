"""How the trials stand: which have ended, with which score, and which are to be stopped. Read off their folders."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from pfcluster.launch.plan import TrainRun
from pfcluster.runs.early_stop import read_early_stop
from pfcluster.sweep import asha
from pfcluster.sweep.asha import EvalSchedule, Progress
from pfcluster.sweep.spec import AT_END, Spec
from pfcluster.sweep.trials import (
    Failed,
    Runs,
    Stop,
    Trial,
    TrialRun,
    curve,
    read_failed,
    read_trials,
    stop_run,
    value_of,
    write_trials,
)


@dataclass(frozen=True)
class TrialStatus:
    """How a trial stands."""

    over: bool
    """Nothing can change its outcome any more."""
    score: float | None = None
    """Higher is better; None while it runs and where it failed."""
    failed: Failed | None = None


class SweepState:
    """All trials of the exploration, and how they stand."""

    def __init__(self, spec: Spec, folder: Path, course: Callable[[TrainRun], EvalSchedule]) -> None:
        self.spec, self.folder, self.course = spec, folder, course
        self.runs = Runs(spec, folder)
        self.trials: list[Trial] = read_trials(folder)
        self.standings: list[TrialStatus] = []
        self._over: dict[int, tuple[TrialStatus, Progress]] = {}

    def add(self, trials: list[Trial]) -> None:
        """Take new trials."""
        self.trials += trials
        write_trials(self.folder, self.trials)
        self.standings += [TrialStatus(over=False) for _ in trials]

    def refresh(self, active: Container[Path]) -> None:
        """Look at all trials that are not over, and stop those that are not worth more. `flying`: folders of runs that
        are under way.
        """
        halved = self.spec.scheduler == "asha" and self.spec.metric not in AT_END
        failed = [self._failed(trial) for trial in self.trials]
        ended = [self._ended(trial, active, bad) for trial, bad in zip(self.trials, failed, strict=True)]
        if not halved:
            self.standings = [self._standing(*each) for each in zip(self.trials, ended, failed, strict=True)]
            return
        rungs = [self.rungs(trial) for trial in self.trials]
        progress = [self._progress(*each) for each in zip(self.trials, rungs, ended, strict=True)]
        number = max((len(own) for own in rungs), default=0)
        stopped, passed = asha.decide(progress, self.spec.reduction, number)
        self._stop({index: (verdict, rungs[index][verdict.rung]) for index, verdict in stopped.items()})
        self.standings = []
        for index, (trial, one) in enumerate(zip(self.trials, progress, strict=True)):
            over = asha.settled(one, index, stopped, passed)
            standing = self._standing(trial, over, None if trial.stop else failed[index])
            self.standings.append(standing)
            if over:
                self._over[index] = standing, one

    def _stop(self, stopped: dict[int, tuple[asha.StopDecision, int]]) -> None:
        """Write down new stops, and tell their runs."""
        changed = False
        for index, (verdict, step) in stopped.items():
            trial = self.trials[index]
            if trial.stop is None:
                reason = f"{verdict.better} of the {verdict.among} trials up to this one were better there"
                stop = Stop(step, reason)
                for seed in self.spec.seeds:
                    stop_run(self.runs.folder_of(trial, seed), stop)
                self.trials[index] = replace(trial, stop=stop)
                changed = True
        if changed:
            write_trials(self.folder, self.trials)

    def _standing(self, trial: Trial, over: bool, failed: Failed | None) -> TrialStatus:
        if trial.number in self._over:
            return self._over[trial.number][0]
        score = self.score(trial, self.spec.seeds) if over and failed is None else None
        return TrialStatus(over, score, failed if over else None)

    def score(self, trial: Trial, seeds: tuple[int, ...]) -> float | None:
        """Mean over seeds of the metric up to where the trial was stopped, higher being better; None where a seed has
        none. In a population a generation's own best while it goes on, at its end that of the whole line.
        """
        until = None if trial.stop is None else trial.stop.step
        lineage = [trial] if trial.until is not None else self.lineage(trial.number)
        values = [self.value(lineage, seed, until) for seed in seeds]
        known = [value for value in values if value is not None]
        return self.spec.sign * fmean(known) if known and len(known) == len(values) else None

    def value(self, lineage: list[Trial], seed: int, until: int | None = None) -> float | None:
        """The metric of a lineage's runs with one seed, as it is: that of the checkpoint which its last run ends with
        as its best.
        """
        if self.spec.metric in AT_END:
            return value_of(self.runs.line(lineage, seed)[-1], self.spec.metric)
        found = [value_of(folder, self.spec.metric, until) for folder in self.runs.line(lineage, seed)]
        return max((value for value in found if value is not None), default=None)

    def done(self, leg: TrialRun) -> bool:
        """Whether a leg has what is wanted of it."""
        if leg.job.finished():
            return True
        limit = None if leg.until is not None else read_early_stop(leg.job.folder)
        if limit is None:
            return False
        points = curve(leg.job.folder, self.spec.metric)
        return bool(points) and points[-1][0] >= limit.step  # stopped before it could write a result

    def _failed(self, trial: Trial) -> Failed | None:
        if trial.number in self._over:
            return None
        legs = [leg for seed in self.spec.seeds for leg in self.runs.explored(trial, seed)]
        return next((found for leg in legs if (found := read_failed(leg.job.folder)) is not None), None)

    def _ended(self, trial: Trial, active: Container[Path], failed: Failed | None) -> bool:
        """Whether none of its runs will go on."""
        if trial.number in self._over:
            return True
        legs = [leg for seed in self.spec.seeds for leg in self.runs.explored(trial, seed)]
        if any(leg.job.folder in active for leg in legs):
            return False
        return failed is not None or all(self.done(leg) for leg in legs)

    def rungs(self, trial: Trial) -> list[int]:
        """Steps at which ASHA judges a trial."""
        job = self.runs.job(trial, self.spec.seeds[0])
        return asha.rungs(self.course(job), first_step(job), self.spec.reduction, self.spec.rungs)

    def _progress(self, trial: Trial, rungs: list[int], ended: bool) -> Progress:
        """A trial's scores at the rungs that all its seeds have passed."""
        if trial.number in self._over:
            return self._over[trial.number][1]
        curves = [curve(self.runs.folder_of(trial, seed), self.spec.metric) for seed in self.spec.seeds]
        reached = min(points[-1][0] if points else 0 for points in curves)
        scores = [
            self.spec.sign * fmean(max(value for at, value in points if at <= step) for points in curves)
            for step in rungs
            if step <= reached
        ]
        return Progress(tuple(scores), ended)

    def lineage(self, number: int) -> list[Trial]:
        """A trial and those it goes on from, oldest first. The baseline is one whole run, also in a population."""
        if number == 0:
            return [replace(self.trials[0], until=None, stop=None)]
        found = [self.trials[number]]
        while found[0].parent is not None:
            found.insert(0, self.trials[found[0].parent])
        return found

    def ranked(self) -> list[int]:
        """Trials that were trained whole and have a score, best first, equals by number; without the baseline."""
        scored = [
            (standing.score, trial.number)
            for trial, standing in zip(self.trials, self.standings, strict=True)
            if trial.number and trial.stop is None and trial.until is None and standing.score is not None
        ]
        return [number for _, number in sorted(scored, key=lambda one: (-one[0], one[1]))]


def first_step(job: TrainRun) -> int:
    """Step before which a run's scores say nothing of what is searched: its warm-up."""
    config = job.config
    if config.objective == "pf_mag":
        return config.pf_mag.warmup_steps + config.pf_mag.loss_balancing_steps
    return config.optim.warmup_steps
