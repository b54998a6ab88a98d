"""Runs on this machine: each in N processes, several runs at a time, with one progress display.

Finished runs are not run again, so the same command continues where it was stopped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeft

from pfcluster.launch.errors import LaunchError
from pfcluster.launch.launcher_lock import launching
from pfcluster.launch.plan import Plan, TrainRun
from pfcluster.launch.processes import RunProcesses, rank_environments, start_run
from pfcluster.launch.supervisor import EndedRun, train_runs
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
    threads = max(1, (os.cpu_count() or 1) // (processes * max_parallel))

    def train(runs: Sequence[TrainRun], title: str, on_failure: OnFailure | None) -> bool:
        backend = _LocalRuns(processes, threads, plan.command, title)
        return train_runs(backend, runs, plan.same_seed_runs(), max_parallel=max_parallel, on_failure=on_failure)

    layouts = {stage.name: (1, 1 if stage.single_process else processes) for stage in plan.stages}
    with launching(plan, "local", layouts):
        return run_waves(plan, train)


class _LocalRuns:
    """The runs in progress, each in processes of this machine with a progress bar."""

    def __init__(self, processes: int, threads: int, command: str, title: str) -> None:
        self.processes, self.threads, self.command, self.title = processes, threads, command, title
        self.console = plain_console(stderr=True)
        self.display = _progress_bars(self.console)
        self.running: dict[TaskID, RunProcesses] = {}

    def start(self, run: TrainRun) -> None:
        started = start_run(run, processes=self.processes, threads=self.threads, command=self.command)
        bar = self.display.add_task(f"{self.title}{run.label}", total=None, values="starting")
        self.running[bar] = started
        if not self.console.is_terminal:
            self._print(f"{self.title}{run.label}: started, its log is {started.logs[0]}")

    def poll(self) -> list[EndedRun]:
        time.sleep(POLL_SECONDS)
        polled = [self._poll_run(bar) for bar in list(self.running)]
        return [ended for ended in polled if ended is not None]

    def _poll_run(self, bar: TaskID) -> EndedRun | None:
        """Update the display of a run; returns its end, None while it runs."""
        each = self.running[bar]
        code = each.poll()
        each.read_metrics()
        if each.values:
            total = read_progress(each.run.folder).get("total_steps")
            self.display.update(bar, completed=each.step, total=total, values=each.summary())
        if code is None:
            return None
        del self.running[bar]
        if code == FINISHED:
            self.display.update(bar, completed=each.step, total=each.step)
            if not self.console.is_terminal:
                self._print(f"{self.title}{each.run.label}: {each.summary()}")
        failure = None if code in (FINISHED, INTERRUPTED) else launch_error(each, code)
        return EndedRun(each.run, code, failure)

    def request_stop(self) -> None:
        for each in self.running.values():
            each.signal(signal.SIGTERM)

    def show_failure(self, failure: LaunchError) -> None:
        self._print(f"{self.title}failed: {failure}", style="red")

    def _print(self, message: str, style: str | None = None) -> None:
        self.console.print(message, style=style, soft_wrap=True)


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
