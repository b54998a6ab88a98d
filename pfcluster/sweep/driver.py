"""The sweep's driver: collect ended runs, stop bad trials, propose and start new ones, until the winner is confirmed.

All state is in the sweep's folder, and every decision is a function of it. A driver that is killed and started again
sees the same trials, keeps finished runs, continues unfinished ones, and decides as it would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from pfcluster.launch.errors import LaunchError
from pfcluster.launch.plan import TrainRun
from pfcluster.launch.worker import FAILED, FINISHED, INTERRUPTED, USER_ERROR, ExitStatus
from pfcluster.sweep import pbt, search
from pfcluster.sweep.confirm import Confirmation
from pfcluster.sweep.executor import Executor
from pfcluster.sweep.search import Observation
from pfcluster.sweep.space import baseline
from pfcluster.sweep.state import SweepState, first_step
from pfcluster.sweep.trials import Failed, Trial, TrialRun, write_failed

Log = Callable[[str], None]


class Sweep:
    """A sweep in progress."""

    def __init__(self, state: SweepState, executor: Executor, log: Log) -> None:
        self.state, self.executor, self.log = state, executor, log
        self.spec, self.runs = state.spec, state.runs
        self.confirmation = Confirmation(state)
        self.active: set[Path] = set()
        """Folders of runs in progress."""
        self.baseline = baseline(self.spec.space, self.spec.stages())
        self.trial_count = search.trial_count(self.spec)
        self.state.refresh(self.active)
        self._reported = {number for number, status in enumerate(self.state.statuses) if status.settled}

    def tick(self) -> bool:
        """One round; True once everything is done. Raises LaunchError if the sweep cannot continue."""
        for run, exit_status in self.executor.poll():
            self._run_ended(run, exit_status)
        self.state.refresh(self.active)
        self._report_trials()
        proposed = len(self.state.trials)
        while trials := self._proposals():
            self.state.add(trials)
        if len(self.state.trials) > proposed:
            self.state.save()
        complete = self._search_complete()
        if complete and self.confirmation.selected() is None:
            self._start_confirmation()
        first = [trial_run for chain in self._chains() if (trial_run := self._next(chain)) is not None]
        ready = list({trial_run.run.folder: trial_run for trial_run in first}.values())  # chains share their MAE-ViT
        starting = ready[: max(0, self.executor.max_parallel - len(self.active))]
        for trial_run in starting:
            trial_run.prepare()
            self.active.add(trial_run.run.folder)
        if starting:
            self.executor.start([trial_run.run for trial_run in starting])
        return complete and not self.active and not ready

    def _chains(self) -> Iterator[list[TrialRun]]:
        """Everything to be run now, most urgent first; the runs of a chain follow each other."""
        shared = [[TrialRun(run)] for run in self.runs.shared.values()]
        yield from shared
        if not all(self.state.files.finished(chain[0].run) for chain in shared):
            return
        for trial, status in zip(self.state.trials, self.state.statuses, strict=True):
            if not status.settled:
                yield from self.state.search_runs(trial)
        yield from self.confirmation.chains()

    def _next(self, chain: list[TrialRun]) -> TrialRun | None:
        """The run of a chain that can start; None if one is in progress or failed, or all are done."""
        for trial_run in chain:
            if trial_run.run.folder in self.active or self.state.files.failed(trial_run.run.folder) is not None:
                return None
            if not self.state.done(trial_run):
                return trial_run
        return None

    def _run_ended(self, run: TrainRun, exit_status: ExitStatus) -> None:
        self.active.discard(run.folder)
        if exit_status.code in (FINISHED, INTERRUPTED):
            return
        if self.runs.starts_all_trials(run):
            code = USER_ERROR if exit_status.code == USER_ERROR else FAILED
            raise LaunchError(f"{run.label}, which all trials start from, failed: {exit_status.error}", code)
        write_failed(run.folder, Failed(exit_status.kind or "bug", exit_status.error))
        if not run.folder.name.startswith(tuple(f"seed-{seed}" for seed in self.spec.seeds)):
            self.log(f"{run.label}: failed ({exit_status.kind}): {exit_status.error}")

    def _report_trials(self) -> None:
        """Log the outcome of trials that were settled since the last call."""
        for number, status in enumerate(self.state.statuses):
            if not status.settled or number in self._reported:
                continue
            self._reported.add(number)
            trial = self.state.trials[number]
            value = None if status.score is None else status.score * self.spec.sign
            score = "no value" if value is None else f"{self.spec.metric} {value:.4f}"
            if status.failed is not None:
                self.log(f"{trial.name}: failed ({status.failed.kind}): {status.failed.error}")
            elif trial.stop is not None:
                self.log(f"{trial.name}: {score}, stopped at step {trial.stop.step}: {trial.stop.reason}")
            else:
                self.log(f"{trial.name}: {score}")

    # Proposals

    def _proposals(self) -> list[Trial]:
        """New trials that can be proposed now and for which there is room; logged."""
        trials = self._next_generation() if self.spec.scheduler == "pbt" else self._next_trial()
        for trial in trials:
            parent = "" if trial.parent is None else f", from trial-{trial.parent:03d}"
            values = "  ".join(f"{name} {value}" for name, value in trial.values.items())
            self.log(f"{trial.name}{' (baseline)' if trial.number == 0 else ''}{parent}: {values}")
        return trials

    def _next_trial(self) -> list[Trial]:
        number, statuses = len(self.state.trials), self.state.statuses
        unsettled = len(self.spec.seeds) * sum(not status.settled for status in statuses)
        required = statuses[: search.required_trials(self.spec, number)]
        if number >= self.trial_count or unsettled >= self.executor.max_parallel:
            return []
        if not all(status.settled for status in required):
            return []
        earlier = [
            Observation(trial.values, status.score, 0 if trial.stop is None else trial.stop.step, not status.settled)
            for trial, status in zip(self.state.trials, statuses, strict=True)
        ]
        return [Trial(number, search.propose(self.spec, self.baseline, number, earlier))]

    def _next_generation(self) -> list[Trial]:
        members, count = self.spec.trials, len(self.state.trials)
        generation = count // members
        if generation >= self.spec.generations:
            return []
        first = self.runs.run_of(Trial(0, self.baseline), self.spec.seeds[0])
        ends = pbt.generation_ends(self.spec, self.state.schedule_of(first), first_step(first))
        until = None if generation == self.spec.generations - 1 else ends[generation]
        if generation == 0:
            return [Trial(member, pbt.draw(self.spec, self.baseline, member), until=until) for member in range(members)]
        last, statuses = self.state.trials[-members:], self.state.statuses[-members:]
        scores = [status.score for status in statuses]
        if not all(status.settled for status in statuses) or all(score is None for score in scores):
            return []
        children = pbt.offspring(self.spec, generation, [trial.values for trial in last], scores)
        return [
            Trial(count + member, values, parent=last[parent].number, until=until)
            for member, (parent, values) in enumerate(children)
        ]

    def _search_complete(self) -> bool:
        """Whether all trials of the search are settled and none will follow."""
        statuses = self.state.statuses
        if not statuses or not all(status.settled for status in statuses):
            return False
        if self.spec.scheduler == "pbt":
            all_failed = all(status.score is None for status in statuses[-self.spec.trials :])
            return all_failed or len(statuses) >= self.spec.trials * self.spec.generations
        return len(statuses) >= self.trial_count

    def _start_confirmation(self) -> None:
        if all(status.score is None for status in self.state.statuses):
            reasons = {status.failed.error for status in self.state.statuses if status.failed is not None}
            raise LaunchError(f"every trial failed: {'; '.join(sorted(reasons))}", FAILED)
        selected = self.confirmation.select()
        if len(selected) > 1:
            names = ", ".join(f"trial-{number:03d}" for number in selected[1:])
            seeds = " ".join(map(str, self.spec.fresh_seeds))
            self.log(f"the search is complete; training {names} and the baseline again on fresh seeds {seeds}")
        elif self.spec.confirm:
            self.log("the search is complete; no trial except the baseline ran to its end: nothing to confirm")
