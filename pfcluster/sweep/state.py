"""The state of a sweep, read from the folders of its runs: which trials have ended, with which score, and which are to
be stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from pfcluster.launch.plan import TrainRun
from pfcluster.runs.early_stop import read_early_stop
from pfcluster.sweep import asha
from pfcluster.sweep.asha import EvalSchedule, Progress, StopDecision
from pfcluster.sweep.spec import FINAL_METRICS, Spec
from pfcluster.sweep.trials import (
    Failed,
    Runs,
    Stop,
    Trial,
    TrialRun,
    curve,
    first_failure,
    metric_of,
    read_trials,
    stop_run,
    write_trials,
)


@dataclass(frozen=True)
class TrialStatus:
    """Status of a trial."""

    settled: bool
    """Its outcome is final."""
    score: float | None = None
    """Higher is better; None while it runs and if it failed."""
    failed: Failed | None = None


class SweepState:
    """All trials of the search and their status."""

    def __init__(self, spec: Spec, folder: Path, schedule_of: Callable[[TrainRun], EvalSchedule]) -> None:
        self.spec, self.folder, self.schedule_of = spec, folder, schedule_of
        self.runs = Runs(spec, folder)
        self.trials: list[Trial] = read_trials(folder)
        self.statuses: list[TrialStatus] = []
        self._settled: dict[int, tuple[TrialStatus, Progress]] = {}
        """Of trials whose outcome is final: their files are not read again."""

    def add(self, trials: list[Trial]) -> None:
        """Add new trials."""
        self.trials += trials
        write_trials(self.folder, self.trials)
        self.statuses += [TrialStatus(settled=False) for _ in trials]

    def refresh(self, active: Container[Path]) -> None:
        """Read the status of all trials that are not settled, and stop those that ASHA rejects. `active`: folders of
        runs that are in progress.
        """
        failures = [self._failure(trial) for trial in self.trials]
        ended = [self._ended(trial, active, failed) for trial, failed in zip(self.trials, failures, strict=True)]
        if not self.spec.uses_asha:
            self.statuses = [self._status(*one) for one in zip(self.trials, ended, failures, strict=True)]
            return
        rungs = [self.rungs(trial) for trial in self.trials]
        progress = [self._progress(*one) for one in zip(self.trials, rungs, ended, strict=True)]
        stopped, passed = asha.decide(progress, self.spec.reduction, max(map(len, rungs), default=0))
        self._stop({index: (decision, rungs[index][decision.rung]) for index, decision in stopped.items()})
        self.statuses = []
        for index, (trial, one) in enumerate(zip(self.trials, progress, strict=True)):
            settled = asha.is_settled(one, index, stopped, passed)
            status = self._status(trial, settled, None if trial.stop else failures[index])
            self.statuses.append(status)
            if settled:
                self._settled[index] = status, one

    def _stop(self, stopped: dict[int, tuple[StopDecision, int]]) -> None:
        """Record new stops, for the sweep and in the folders of the runs."""
        changed = False
        for index, (decision, step) in stopped.items():
            trial = self.trials[index]
            if trial.stop is None:
                reason = f"{decision.better} of the {decision.among} trials up to this one were better there"
                stop = Stop(step, reason)
                for seed in self.spec.seeds:
                    stop_run(self.runs.folder_of(trial, seed), stop)
                self.trials[index] = replace(trial, stop=stop)
                changed = True
        if changed:
            write_trials(self.folder, self.trials)

    def _status(self, trial: Trial, settled: bool, failed: Failed | None) -> TrialStatus:
        if trial.number in self._settled:
            return self._settled[trial.number][0]
        score = self.score(trial, self.spec.seeds) if settled and failed is None else None
        return TrialStatus(settled, score, failed if settled else None)

    def score(self, trial: Trial, seeds: tuple[int, ...]) -> float | None:
        """Mean over seeds of the metric up to the step where the trial was stopped, higher being better; None if a seed
        has no value. In a population: the best of the trial's own generation, and for the last generation the best of
        its whole lineage.
        """
        until = None if trial.stop is None else trial.stop.step
        lineage = [trial] if trial.until is not None else self.lineage(trial.number)
        values = [self.value(lineage, seed, until) for seed in seeds]
        measured = [value for value in values if value is not None]
        return self.spec.sign * fmean(measured) if measured and len(measured) == len(values) else None

    def value(self, lineage: list[Trial], seed: int, until: int | None = None) -> float | None:
        """The metric of a lineage's runs with one seed, not sign-adjusted: that of the checkpoint which its last run
        selects as the best.
        """
        folders = self.runs.lineage_folders(lineage, seed)
        if self.spec.metric in FINAL_METRICS:
            return metric_of(folders[-1], self.spec.metric)
        values = [metric_of(folder, self.spec.metric, until) for folder in folders]
        return max((value for value in values if value is not None), default=None)

    def done(self, trial_run: TrialRun) -> bool:
        """Whether a run has trained as far as the sweep needs it."""
        if trial_run.run.finished():
            return True
        early_stop = None if trial_run.until is not None else read_early_stop(trial_run.run.folder)
        if early_stop is None:
            return False
        points = curve(trial_run.run.folder, self.spec.metric)
        return bool(points) and points[-1][0] >= early_stop.step  # stopped before it could write a result

    def _search_runs(self, trial: Trial) -> list[TrialRun]:
        return [one for seed in self.spec.seeds for one in self.runs.search_runs(trial, seed)]

    def _failure(self, trial: Trial) -> Failed | None:
        return None if trial.number in self._settled else first_failure(self._search_runs(trial))

    def _ended(self, trial: Trial, active: Container[Path], failed: Failed | None) -> bool:
        """Whether none of its runs will continue."""
        if trial.number in self._settled:
            return True
        runs = self._search_runs(trial)
        if any(one.run.folder in active for one in runs):
            return False
        return failed is not None or all(self.done(one) for one in runs)

    def rungs(self, trial: Trial) -> list[int]:
        """Steps at which ASHA compares a trial."""
        run = self.runs.run_of(trial, self.spec.seeds[0])
        return asha.rungs(self.schedule_of(run), first_step(run), self.spec.reduction, self.spec.rungs)

    def _progress(self, trial: Trial, rungs: list[int], ended: bool) -> Progress:
        """A trial's scores at the rungs that all its seeds have passed."""
        if trial.number in self._settled:
            return self._settled[trial.number][1]
        curves = [curve(self.runs.folder_of(trial, seed), self.spec.metric) for seed in self.spec.seeds]
        reached = min(points[-1][0] if points else 0 for points in curves)
        scores = [
            self.spec.sign * fmean(max(value for at, value in points if at <= step) for points in curves)
            for step in rungs
            if step <= reached
        ]
        return Progress(tuple(scores), ended)

    def lineage(self, number: int) -> list[Trial]:
        """A trial and its ancestors, oldest first. The baseline is one uninterrupted run, also in a population."""
        if number == 0:
            return [replace(self.trials[0], until=None, stop=None)]
        lineage = [self.trials[number]]
        while lineage[0].parent is not None:
            lineage.insert(0, self.trials[lineage[0].parent])
        return lineage

    def ranked(self) -> list[int]:
        """Trials that were trained to the end and have a score, best first, ties by number; without the baseline."""
        scored = [
            (status.score, trial.number)
            for trial, status in zip(self.trials, self.statuses, strict=True)
            if trial.number and trial.stop is None and trial.until is None and status.score is not None
        ]
        return [number for _, number in sorted(scored, key=lambda one: (-one[0], one[1]))]


def first_step(run: TrainRun) -> int:
    """End of the warm-up: scores before this step do not depend on what is searched."""
    config = run.config
    if config.objective == "pf_mag":
        return config.pf_mag.warmup_steps + config.pf_mag.loss_balancing_steps
    return config.optim.warmup_steps
