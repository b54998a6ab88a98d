"""Runs on this machine: each in N processes of its own, a few runs at a time, all watched on one screen.

Runs whose folder says "finished" are not run again, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeft

from pfcluster.distributed.signals import StopRequest
from pfcluster.launch.plan import Command, Failures, Plan, Stage, TrainRun
from pfcluster.launch.processes import Running, Watched, rank_environments, start
from pfcluster.launch.worker import FINISHED, INTERRUPTED, USER_ERROR
from pfcluster.runs.folder import read_progress

POLL_SECONDS = 0.25
SHOWN = ("loss", "accuracy")


class LaunchError(RuntimeError):
    """A run failed. `code` is the exit code to leave with; the message holds what the run said."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def run_plan(plan: Plan, *, processes: int, at_once: int) -> bool:
    """Run a plan's groups, wave by wave; True once all is finished, False where a signal stopped it.

    Raises LaunchError where something fails; of a tolerant plan once all else is done.
    """

    def train(jobs: Sequence[TrainRun], title: str, failed: OnFailure | None) -> bool:
        return run_jobs(
            jobs, processes=processes, at_once=at_once, command=plan.command, title=title, on_failure=failed
        )

    return run_waves(plan, train)


OnFailure = Callable[[TrainRun, LaunchError], None]
Train = Callable[[Sequence[TrainRun], str, OnFailure | None], bool]
"""Runs jobs under a title; True once all have ended, False where a signal stopped them. Without anyone to tell of
failures it raises the first."""


def run_waves(plan: Plan, train: Train) -> bool:
    """A plan's groups, wave by wave, their runs by `train`; True once all is done, False where a signal stopped it.
    Raises LaunchError.
    """
    failures = Failures()
    waves = list(plan.waves())
    for number, whole in enumerate(waves, start=1):
        title = f"[{number}/{len(waves)}] " if len(waves) > 1 else ""
        wave = failures.runnable(whole)
        if not _run_wave(wave, plan, train, title, failures):
            return False
    if failures.tasks:
        raise LaunchError(failures.text(), 1)
    return True


def _run_wave(wave: Sequence[Stage], plan: Plan, train: Train, title: str, failures: Failures) -> bool:
    tasks = [task for group in wave for task in group.tasks]
    for call in (task for task in tasks if isinstance(task, Command) and not task.finished()):
        try:
            if not run_call(call):
                return False
        except LaunchError as error:
            if not plan.continue_on_failure:
                raise
            failures.add(call, str(error), wave)
    jobs = [task for task in tasks if isinstance(task, TrainRun)]
    failed: OnFailure | None = None
    if plan.continue_on_failure:

        def failed(job: TrainRun, error: LaunchError) -> None:
            failures.add(job, str(error), wave)

    return not jobs or train(jobs, title, failed)


def run_call(call: Command) -> bool:
    """Run a command on this terminal; False where a signal stopped it. Raises LaunchError where it fails."""
    command = [sys.executable, "-m", call.module, *call.arguments]
    with StopRequest() as stop:
        code = subprocess.run(command, check=False).returncode
    if code and not stop.requested:
        raise LaunchError(f"{call.label} ended with {code}; what it said stands above", code)
    return code == 0


def run_jobs(
    jobs: Sequence[TrainRun],
    *,
    processes: int,
    at_once: int,
    command: str,
    title: str = "",
    on_failure: OnFailure | None = None,
) -> bool:
    """Run all jobs; True once all have ended, False where a signal stopped them (checkpoints are written).

    A failure is told to `on_failure`, and the others go on; without it LaunchError is raised, after the others were
    stopped in the same orderly way.
    """
    waiting = [job for job in jobs if not job.finished()]
    console = Console(stderr=True)
    for job in jobs:
        if job not in waiting:
            console.print(f"{job.label}: finished already in {job.folder}", highlight=False, soft_wrap=True)
    running: list[Running] = []
    tasks: dict[int, TaskID] = {}
    threads = max(1, (os.cpu_count() or 1) // (processes * at_once))
    failure: LaunchError | None = None
    with StopRequest() as stop, _bars(console) as bars:
        asked = False
        while running or (waiting and not stop.requested and failure is None):
            while waiting and len(running) < at_once and not stop.requested and failure is None:
                started = start(waiting.pop(0), processes=processes, threads=threads, command=command)
                running.append(started)
                tasks[id(started)] = bars.add_task(f"{title}{started.job.label}", total=None, values="starting")
            for each in list(running):
                code = each.poll()
                _show(bars, tasks[id(each)], each, done=code == FINISHED)
                if code is None:
                    continue
                running.remove(each)
                if code not in (FINISHED, INTERRUPTED):
                    found = _failure(each, code)
                    if on_failure is None:
                        failure = failure or found
                    else:
                        on_failure(each.job, found)
                        console.print(f"{title}failed: {found}", style="red", highlight=False, soft_wrap=True)
                elif not console.is_terminal and code == FINISHED:
                    console.print(f"{title}{each.job.label}: {show_line(each)}", highlight=False, soft_wrap=True)
            if (stop.requested or failure) and not asked:
                asked = True
                for each in running:
                    each.signal(signal.SIGTERM)
            time.sleep(POLL_SECONDS)
    if failure is not None:
        raise failure
    if stop.requested:
        console.print("stopped; the same command goes on from the checkpoints")
    return not stop.requested


def _bars(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[values]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeLeft(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def _show(bars: Progress, task: TaskID, running: Running, *, done: bool) -> None:
    running.read_metrics()
    total = _total(running.job)
    if running.values:
        bars.update(task, completed=running.step, total=total, values=show_line(running))
    if done:
        bars.update(task, completed=running.step, total=running.step)


def _total(job: TrainRun) -> int | None:
    """Steps of the run, as the worker announced them."""
    total: int | None = read_progress(job.folder).get("total_steps")
    return total


def show_line(running: Watched) -> str:
    """A run's newest values."""
    values = running.values
    shown = [f"loss {values['loss']:.3f}"] if "loss" in values else []
    shown += [f"val {name} {values[f'val {name}']:.3f}" for name in SHOWN if f"val {name}" in values]
    if "images_per_second" in values:
        shown.append(f"{values['images_per_second']:.0f} images/s")
    return "  ".join(shown)


def run_ranks(module: str, arguments: Sequence[str], processes: int) -> int:
    """Run `python -m module` in a group of processes of which only rank 0's words are shown; -> 0, or the first exit
    code that is another.
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


def _failure(running: Running, code: int) -> LaunchError:
    """What the failed run said: one line for a user's error, the end of the log for anything else."""
    for log in running.logs:
        lines = log.read_text(errors="replace").splitlines()
        told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if told:
            return LaunchError(f"{running.job.label}: {told[-1]}", USER_ERROR if code == USER_ERROR else 1)
    log = running.logs[running.lost]
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    who = f"rank {running.lost} of {running.job.label}" if len(running.logs) > 1 else running.job.label
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    advice = "checkpoints from before are whole, the same command goes on"
    return LaunchError(f"{who} {how}; {advice}. The end of its log ({log}):\n{tail}", 1)
