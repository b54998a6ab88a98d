"""Executes a plan wave by wave on this machine; the training runs of a wave are handed to a launcher."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from pfcluster.distributed.signals import StopRequest
from pfcluster.launch.errors import LaunchError
from pfcluster.launch.plan import Command, Failures, Plan, Stage, TrainRun
from pfcluster.launch.worker import USER_ERROR

OnFailure = Callable[[TrainRun, LaunchError], None]
Train = Callable[[Sequence[TrainRun], str, OnFailure | None], bool]
"""Trains runs, with a title for their progress. Returns True once all have ended, False if a signal stopped them.
Failures go to OnFailure; without it the first one is raised."""

POLL_SECONDS = 0.2
"""Interval at which a command is checked for a stop request."""


def run_waves(plan: Plan, train: Train) -> bool:
    """Run a plan's stages; True once all are done, False if a signal stopped them.

    Raises LaunchError if a task fails; for a plan that continues on failure, once everything else is done.
    """
    failures = Failures()
    waves = list(plan.waves())
    for number, wave in enumerate(waves, start=1):
        title = f"[{number}/{len(waves)}] " if len(waves) > 1 else ""
        if not _run_wave(failures.runnable(wave), plan, train, title, failures):
            return False
    if failures.tasks:
        raise LaunchError(failures.text(), USER_ERROR if failures.codes == {USER_ERROR} else 1)
    return True


def _run_wave(wave: Sequence[Stage], plan: Plan, train: Train, title: str, failures: Failures) -> bool:
    tasks = [task for stage in wave for task in stage.tasks]
    for command in (task for task in tasks if isinstance(task, Command) and not task.finished()):
        try:
            if not run_command(command):
                return False
        except LaunchError as error:
            if not plan.continue_on_failure:
                raise
            failures.add(command, str(error), error.code, wave)
    before = plan.same_seed_runs()

    def blocked(run: TrainRun) -> bool:
        return any(each.folder in failures.folders for each in before.get(run.folder, ()))

    runs = [task for task in tasks if isinstance(task, TrainRun)]
    ready = [run for run in runs if not blocked(run)]
    on_failure: OnFailure | None = None
    if plan.continue_on_failure:

        def on_failure(run: TrainRun, error: LaunchError) -> None:
            failures.add(run, str(error), error.code, wave)

    completed = not ready or train(ready, title, on_failure)
    for run in runs:
        if blocked(run):
            failures.skip(run, wave)
    return completed


def run_command(command: Command) -> bool:
    """Run a command in this terminal; False if a signal stopped the plan meanwhile. Raises LaunchError if it fails.

    A stop request is passed on as SIGTERM; Ctrl-C reaches the command without that.
    """
    with StopRequest() as stop:
        process, forwarded = subprocess.Popen([sys.executable, "-m", command.module, *command.arguments]), False
        try:
            while process.poll() is None:
                if stop.requested and stop.signal != signal.SIGINT and not forwarded:
                    process.send_signal(signal.SIGTERM)
                    forwarded = True
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
        finally:
            process.kill()  # after a second Ctrl-C
    code = process.returncode
    if code and not stop.requested:
        raise LaunchError(f"{command.label} ended with {code}; its error is printed above", code)
    return not stop.requested
