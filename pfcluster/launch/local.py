"""Runs on this machine: each in N processes, several runs at a time, with one progress display.

Finished runs are not run again, so the same command continues where it was stopped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeft

from pfcluster.distributed.signals import StopRequest
from pfcluster.launch.errors import LaunchError
from pfcluster.launch.launcher_lock import launching
from pfcluster.launch.plan import Plan, TrainRun
from pfcluster.launch.processes import RunProcesses, rank_environments, start_run
from pfcluster.launch.run_queue import RunQueue
from pfcluster.launch.waves import OnFailure, run_waves
from pfcluster.launch.worker import FINISHED, INTERRUPTED, USER_ERROR
from pfcluster.runs.folder import logged_error, read_progress
from pfcluster.system.terminal import plain_column, plain_console

POLL_SECONDS = 0.25
TAIL_LINES = 15
"""Lines of a failed run's log in its error message."""


def run_plan(plan: Plan, *, processes: int, max_parallel: int) -> bool:
    """Run a plan on this machine, each run in `processes` processes; True once all is done, False if a signal stopped
    it. Raises LaunchError as `run_waves`.
    """

    def train(runs: Sequence[TrainRun], title: str, on_failure: OnFailure | None) -> bool:
        supervisor = _Supervisor(processes, max_parallel, plan.command, title, on_failure)
        return supervisor.train(runs, plan.same_seed_runs())

    layouts = {stage.name: (1, 1 if stage.single_process else processes) for stage in plan.stages}
    with launching(plan, "local", layouts):
        return run_waves(plan, train)


class _Supervisor:
    """Trains runs in processes, at most `max_parallel` runs at a time."""

    def __init__(
        self, processes: int, max_parallel: int, command: str, title: str, on_failure: OnFailure | None
    ) -> None:
        self.processes, self.max_parallel = processes, max_parallel
        self.command, self.title, self.on_failure = command, title, on_failure
        self.threads = max(1, (os.cpu_count() or 1) // (processes * max_parallel))
        self.console = plain_console(stderr=True)
        self.bars = _progress_bars(self.console)
        self.running: dict[TaskID, RunProcesses] = {}
        self.queue = RunQueue((), {})
        self.failure: LaunchError | None = None
        """The first failure, where there is no `on_failure`: the other runs are then stopped."""

    def train(self, runs: Sequence[TrainRun], before: Mapping[Path, Sequence[TrainRun]]) -> bool:
        """Train all runs, each after those that `before` names; True once all have ended, False if a signal stopped
        them with checkpoints.

        Raises the first LaunchError if there is no `on_failure`, after the other runs were stopped.
        """
        self.queue = RunQueue(unfinished(runs, self.console), before)
        with StopRequest() as stop, self.bars:
            signalled = False
            while self.running or (self.queue and not stop.requested and self.failure is None):
                while len(self.running) < self.max_parallel and not (stop.requested or self.failure):
                    run = self.queue.next()
                    if run is None:
                        break
                    self._start(run)
                for bar in list(self.running):
                    self._check(bar, stopping=stop.requested or self.failure is not None)
                if (stop.requested or self.failure) and not signalled:
                    signalled = True
                    for each in self.running.values():
                        each.signal(signal.SIGTERM)
                time.sleep(POLL_SECONDS)
        if self.failure is not None:
            raise self.failure
        if stop.requested:
            self.console.print("stopped; the same command continues from the checkpoints")
        return not stop.requested

    def _start(self, run: TrainRun) -> None:
        started = start_run(run, processes=self.processes, threads=self.threads, command=self.command)
        bar = self.bars.add_task(f"{self.title}{run.label}", total=None, values="starting")
        self.running[bar] = started
        if not self.console.is_terminal:
            self._print(f"{self.title}{run.label}: started, its log is {started.logs[0]}")

    def _check(self, bar: TaskID, *, stopping: bool) -> None:
        """Update the display of a run, and handle its end. `stopping`: all runs are asked to stop."""
        each = self.running[bar]
        code = each.poll()
        each.read_metrics()
        if each.values:
            total = read_progress(each.run.folder).get("total_steps")
            self.bars.update(bar, completed=each.step, total=total, values=each.summary())
        if code is None:
            return
        del self.running[bar]
        if code == FINISHED:
            self.queue.finished(each.run)
            self.bars.update(bar, completed=each.step, total=each.step)
            if not self.console.is_terminal:
                self._print(f"{self.title}{each.run.label}: {each.summary()}")
            return
        self.queue.drop_after(each.run)
        if code != INTERRUPTED or not stopping:
            failure = stopped_alone(each.run) if code == INTERRUPTED else launch_error(each, code)
            if self.on_failure is None:
                self.failure = self.failure or failure
            else:
                self.on_failure(each.run, failure)
                self._print(f"{self.title}failed: {failure}", style="red")

    def _print(self, message: str, style: str | None = None) -> None:
        self.console.print(message, style=style, soft_wrap=True)


def unfinished(runs: Sequence[TrainRun], console: Console) -> list[TrainRun]:
    """The runs that have not finished; prints a line for each of the others."""
    remaining = [run for run in runs if not run.finished()]
    for run in runs:
        if run not in remaining:
            console.print(f"{run.label}: finished already in {run.folder}", soft_wrap=True)
    return remaining


def launch_error(failed: RunProcesses, code: int) -> LaunchError:
    """The error of a failed run: its own error message, or the end of its log if it printed none."""
    label = failed.run.label
    message = logged_error(failed.run.folder)
    if message is not None:
        return LaunchError(f"{label}: {message}", USER_ERROR if code == USER_ERROR else 1)
    log = failed.logs[failed.failed_rank]
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
    name = f"rank {failed.failed_rank} of {label}" if len(failed.logs) > 1 else label
    end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    advice = "earlier checkpoints are complete, the same command continues from them"
    return LaunchError(f"{name} {end}; {advice}. The end of its log ({log}):\n{tail}", 1)


def stopped_alone(run: TrainRun) -> LaunchError:
    """The error of a run that a signal stopped which its launcher did not receive: what waits for it must not start."""
    return LaunchError(f"{run.label} was stopped by a signal to its own process; the same command continues it", 1)


def run_ranks(module: str, arguments: Sequence[str], processes: int) -> int:
    """Run `python -m module` in a group of processes, showing the output of rank 0 only.

    Returns 0, or the first other exit code.
    """
    threads = max(1, (os.cpu_count() or 1) // processes)
    started = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=environment,
            stdout=None if rank == 0 else subprocess.DEVNULL,
            stderr=None if rank == 0 else subprocess.DEVNULL,
        )
        for rank, environment in enumerate(rank_environments(processes, threads))
    ]
    try:
        codes = [process.wait() for process in started]
    finally:
        for process in started:
            process.kill()
    return next((code for code in codes if code), 0)


def _progress_bars(console: Console) -> Progress:
    columns = (
        plain_column("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        plain_column("{task.fields[values]}"),
        TimeElapsedColumn(),
        plain_column("left"),
        TimeLeft(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)
