"""The state of a sweep, read from the folders of its runs: which trials have ended, with which score, and which are to
be stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from pfcluster.config import RunConfig
from pfcluster.launch.plan import TrainRun
from pfcluster.sweep import asha
from pfcluster.sweep.asha import EvalSchedule, Progress, StopDecision
from pfcluster.sweep.run_files import RunFiles
from pfcluster.sweep.spec import FINAL_METRICS, Spec
from pfcluster.sweep.trials import (
    Failed,
    Runs,
    Stop,
    Trial,
    TrialRun,
    poker_face_metric,
    read_trials,
    result_of,
    stop_run,
    write_trials,
)
from pfcluster.training.schedule import adversarial_start, selection_start


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
        self.files = RunFiles(spec.metric)
        self.trials: list[Trial] = read_trials(folder, self.runs)
        self.statuses: list[TrialStatus] = []
        self._ended: dict[int, tuple[Failed | None, Progress]] = {}
        """Results of trials whose runs will not continue."""
        self._settled: dict[int, TrialStatus] = {}
        """Status of trials whose outcome is final."""
        self._rungs: dict[int, list[int | None]] = {}
        self._search_runs: dict[int, list[list[TrialRun]]] = {}

    def add(self, trials: list[Trial]) -> None:
        """Add new trials; `save` writes them."""
        self.trials += trials
        self.statuses += [TrialStatus(settled=False) for _ in trials]

    def save(self) -> None:
        """Write all trials; needed before runs of new ones start."""
        write_trials(self.folder, self.trials)

    def refresh(self, active: Container[Path]) -> None:
        """Read the status of all trials that are not settled, and stop those that ASHA rejects. `active`: folders of
        runs that are in progress.
        """
        rungs = [self.rungs(trial) if self.spec.uses_asha else [] for trial in self.trials]
        observed = [self._observe(trial, active, rungs[index]) for index, trial in enumerate(self.trials)]
        progress = [one for _, one in observed]
        stopped, passed = asha.decide(progress, self.spec.reduction, max(map(len, rungs), default=0))
        self._stop(stopped, rungs)
        self.statuses = []
        for index, (trial, one) in enumerate(zip(self.trials, progress, strict=True)):
            settled = asha.is_settled(one, index, stopped, passed)
            if settled and index not in self._settled:
                self._settled[index] = self._status(trial, None if trial.stop else observed[index][0])
            self.statuses.append(self._settled.get(index) or TrialStatus(settled=False))

    def _stop(self, stopped: dict[int, StopDecision], rungs: list[list[int | None]]) -> None:
        """Record new stops in the sweep and in the run folders; also earlier stops whose file is missing in a run
        folder.
        """
        changed = False
        for index, decision in stopped.items():
            trial, step = self.trials[index], rungs[index][decision.rung]
            assert step is not None
            if trial.stop is None:
                reason = f"{decision.better} of the {decision.among} trials up to this one were better there"
                self.trials[index] = replace(trial, stop=Stop(step, reason))
                changed = True
        if changed:
            self.save()
        for trial in self.trials:
            if trial.stop is not None and trial.number not in self._settled:
                for folder in (self.runs.folder_of(trial, seed) for seed in self.spec.seeds):
                    if self.files.early_stop(folder) is None:
                        stop_run(folder, trial.stop)

    def _status(self, trial: Trial, failed: Failed | None) -> TrialStatus:
        """Status of a trial whose outcome is final."""
        return TrialStatus(True, self.score(trial, self.spec.seeds) if failed is None else None, failed)

    def score(self, trial: Trial, seeds: tuple[int, ...]) -> float | None:
        """Mean over seeds of `value`, higher being better; None if a seed has none. In a population: of the trial's own
        generation, and for the last generation of its whole lineage.
        """
        lineage = [trial] if trial.ends_early else self.lineage(trial.number)
        values = [self.value(lineage, seed) for seed in seeds]
        measured = [value for value in values if value is not None]
        return self.spec.sign * fmean(measured) if measured and len(measured) == len(values) else None

    def value(self, lineage: list[Trial], seed: int) -> float | None:
        """The metric of a lineage's runs with one seed, not sign-adjusted; None if it was not measured. Of a trial that
        is trained to the end: that of the checkpoint which its last run selects as the best. Of a trial that ends
        before, by ASHA or with its generation: the best after the warm-up, up to where it was stopped.
        """
        folders = self.runs.lineage_folders(lineage, seed)
        runs = [self.runs.run_of(trial, seed) for trial in lineage]
        if self.spec.metric in FINAL_METRICS:
            return poker_face_metric(result_of(folders[-1]), self.spec.metric)
        stop, values = lineage[-1].stop, []
        for folder, run in zip(folders, runs, strict=True):
            start = 0 if lineage[-1].ends_early else selection_start(run.config, self.schedule_of(run).total)
            points = [point for point in self.counted(folder, run.config) if point[0] > start]
            values += [value for step, value in points if stop is None or step <= stop.step]
        return max(values, default=None)

    def counted(self, folder: Path, config: RunConfig) -> list[tuple[int, float]]:
        """A run's validation scores that count: those after the warm-up of PF-MAG."""
        start = adversarial_start(config)
        return [point for point in self.files.curve(folder) if point[0] > start]

    def done(self, trial_run: TrialRun) -> bool:
        """Whether a run has trained as far as the sweep needs it."""
        if self.files.finished(trial_run.run):
            return True
        early_stop = None if trial_run.until is not None else self.files.early_stop(trial_run.run.folder)
        if early_stop is None:
            return False
        points = self.files.curve(trial_run.run.folder)
        return bool(points) and points[-1][0] >= early_stop.step  # stopped before it could write a result

    def search_runs(self, trial: Trial) -> list[list[TrialRun]]:
        """The runs of a trial in the search, in order, for each seed."""
        if trial.number not in self._search_runs:
            self._search_runs[trial.number] = [self.runs.search_runs(trial, seed) for seed in self.spec.seeds]
        return self._search_runs[trial.number]

    def _observe(
        self, trial: Trial, active: Container[Path], rungs: list[int | None]
    ) -> tuple[Failed | None, Progress]:
        """Why a trial failed, and its progress. Files of a trial that has ended, and results of active runs, are not
        read.
        """
        if trial.number in self._ended:
            return self._ended[trial.number]
        runs = [one for chain in self.search_runs(trial) for one in chain]
        if any(one.run.folder in active for one in runs):
            return None, self._progress(trial, rungs, ended=False)
        failures = (self.files.failed(one.run.folder) for one in runs)
        failed = next((failed for failed in failures if failed is not None), None)
        ended = failed is not None or all(self.done(one) for one in runs)
        observed = failed, self._progress(trial, rungs, ended)
        if ended:
            self._ended[trial.number] = observed
        return observed

    def rungs(self, trial: Trial) -> list[int | None]:
        """Steps at which ASHA compares a trial, by the rung's number; None where the trial does not have it."""
        if trial.number not in self._rungs:
            run = self.runs.run_of(trial, self.spec.seeds[0])
            schedule, first = self.schedule_of(run), first_step(run)
            self._rungs[trial.number] = asha.rungs(schedule, first, self.spec.reduction, self.spec.rungs)
        return self._rungs[trial.number]

    def first_rung(self) -> int | None:
        """Number of ASHA's first rung; None if no trial has one. All trials that have it reach it, unless they fail."""
        numbered = (one for trial in self.trials for one in enumerate(self.rungs(trial)))
        return min((number for number, step in numbered if step is not None), default=None)

    def _progress(self, trial: Trial, rungs: list[int | None], ended: bool) -> Progress:
        """A trial's scores at the rungs that all its seeds have passed."""
        if not rungs:
            return Progress((), ended)
        runs = [chain[-1].run for chain in self.search_runs(trial)]
        curves = [self.counted(run.folder, run.config) for run in runs]
        reached = min(points[-1][0] if points else 0 for points in curves)
        scores: list[float | None] = []
        for step in rungs:
            if step is None:
                scores.append(None)
                continue
            if step > reached:
                break
            best = (max((value for at, value in points if at <= step), default=math.nan) for points in curves)
            scores.append(self.spec.sign * fmean(best))
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
            if trial.number and not trial.ends_early and status.score is not None
        ]
        return [number for _, number in sorted(scored, key=lambda one: (-one[0], one[1]))]


def first_step(run: TrainRun) -> int:
    """End of the warm-up: scores before this step do not depend on what is searched."""
    config = run.config
    if config.objective == "pf_mag":
        return config.pf_mag.warmup_steps + config.pf_mag.loss_balancing_steps
    return config.optim.warmup_steps
