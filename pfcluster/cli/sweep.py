"""`pfcluster sweep`: run a sweep and report it; `pfcluster sweep report FOLDER`: report it again."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from pfcluster.cli.train import INTERRUPTED
from pfcluster.config import DataConfig
from pfcluster.distributed.signals import StopRequest
from pfcluster.launch.command_line import parse
from pfcluster.launch.plan import Plan, Stage, TrainRun, stages_of
from pfcluster.launch.preflight import preflight
from pfcluster.sweep import search
from pfcluster.sweep.asha import EvalSchedule
from pfcluster.sweep.driver import Sweep
from pfcluster.sweep.evaluations import require_counted_evaluations
from pfcluster.sweep.executor import Executor
from pfcluster.sweep.executors import make_executor
from pfcluster.sweep.options import SweepOptions, read
from pfcluster.sweep.report.data import COMMAND
from pfcluster.sweep.space import baseline
from pfcluster.sweep.spec import Spec, require_same, save
from pfcluster.sweep.state import SweepState
from pfcluster.sweep.trials import Runs, Trial, clear_failures
from pfcluster.system.atomic_files import write_atomically
from pfcluster.system.redaction import redact
from pfcluster.system.terminal import plain_console, print_warnings

ScheduleOf = Callable[[TrainRun], EvalSchedule]


@dataclass(frozen=True, kw_only=True)
class SweepReportOptions:
    """Write the report of a sweep again, also while the sweep is in progress."""

    folder: tyro.conf.Positional[Path]
    """The sweep's folder."""


def main(arguments: Sequence[str]) -> int:
    """Run or report a sweep; returns the exit code. Raises ValueError, LaunchError."""
    return report(arguments[1:]) if arguments[:1] == ["report"] else sweep(arguments)


def sweep(arguments: Sequence[str]) -> int:
    """Search, confirm, report; returns the exit code."""
    options, console = read(arguments), plain_console()
    spec, folder = options.spec, options.output
    schedule_of = evaluation_schedules()
    print_warnings(preflight(_first_runs(spec, folder), options.cluster), console)
    print_warnings(_missing_test_split(spec, folder), console)
    require_counted_evaluations(spec, Runs(spec, folder), schedule_of)
    search.require_valid_trials(spec)
    if options.dry_run:
        require_same(spec, folder)
        _describe(options, schedule_of, console)
        return 0
    command = redact(shlex.join(["pfcluster", "sweep", *arguments]))
    with make_executor(options, command) as executor:
        save(spec, folder)
        if not (folder / COMMAND).exists():
            write_atomically(folder / COMMAND, command + "\n")
        if options.retry_failed and (count := clear_failures(folder)):
            console.print(f"trying {count} failed runs again")
        _describe(options, schedule_of, console)
        if spec.search == "tpe" and spec.scheduler != "pbt" and spec.lag < executor.max_parallel < spec.trials:
            console.print(
                f"{executor.max_parallel} runs fit, but TPE with --lag {spec.lag} keeps at most {spec.lag} trials in"
                f" progress; --lag {executor.max_parallel} in a new sweep would use all resources",
            )
        if not run(spec, folder, executor, schedule_of, console):
            console.print("stopped; the same command continues from here")
            return INTERRUPTED
    return report([str(folder)])


def run(spec: Spec, folder: Path, executor: Executor, schedule_of: ScheduleOf, console: Console) -> bool:
    """Drive a sweep to its end; False if a signal stopped it, with the checkpoints of all runs written."""
    start = time.monotonic()

    def log(message: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - start), 60)
        console.print(f"{minutes:3d}:{seconds:02d}  {message}", soft_wrap=True)

    driver = Sweep(SweepState(spec, folder, schedule_of), executor, log)
    with StopRequest() as stop:
        complete = False
        try:
            while not stop.requested and not (complete := driver.tick()):
                time.sleep(executor.poll_seconds)
        finally:
            if not complete:
                executor.stop()
    return complete


def evaluation_schedules() -> ScheduleOf:
    """-> a function that computes a run's evaluation schedule from its config and the size of its data."""
    from pfcluster.data.dataset import open_dataset
    from pfcluster.training.schedule import evaluation_steps, total_steps

    @cache
    def samples(data: DataConfig, seed: int) -> int:
        return len(open_dataset(data, seed).train)

    def schedule_of(run: TrainRun) -> EvalSchedule:
        config = run.config
        count = samples(config.data, config.seed if config.data.limit is not None else 0)
        return EvalSchedule(total_steps(config, count), evaluation_steps(config, count))

    return schedule_of


def _missing_test_split(spec: Spec, folder: Path) -> list[str]:
    """A sentence if the winner is to be evaluated on the test split, and the data has none."""
    if not spec.confirm:
        return []
    from pfcluster.data.dataset import missing_test_split, open_dataset

    config = Runs(spec, folder).run_of(Trial(0, {}), spec.fresh_seeds[0], test=True).config
    missing = missing_test_split(open_dataset(config.data, config.seed), config)
    return [] if missing is None else [missing]


def _first_runs(spec: Spec, folder: Path) -> Plan:
    """The shared runs and the baseline's, for the preflight checks."""
    runs = Runs(spec, folder)
    shared = stages_of(list(runs.shared.values()))
    first = [trial_run.run for trial_run in runs.search_runs(Trial(0, {}), spec.seeds[0])]
    return Plan(folder.name, folder, (*shared, Stage("baseline", tuple(first))), "", grows=True)


def _describe(options: SweepOptions, schedule_of: ScheduleOf, console: Console) -> None:
    """Print what is searched, and how."""
    spec, folder = options.spec, options.output
    for sentence in options.about:
        console.print(sentence, soft_wrap=True)
    state = SweepState(spec, folder, schedule_of)
    table = Table("field", "values", "baseline", title=f"{folder}: {spec.config.name}", title_justify="left")
    values = baseline(spec.space, spec.stages())
    for one in spec.space:
        table.add_row(one.name, one.text(), f"{values[one.name]}")
    console.print(table)
    first = Trial(0, {})
    schedule = schedule_of(state.runs.run_of(first, spec.seeds[0]))
    how = f"{search.trial_count(spec)} trials by {spec.search}"
    if spec.scheduler == "asha" and (rungs := list(filter(None, state.rungs(first)))):
        steps = " and ".join(map(str, rungs))
        how += f", ASHA at steps {steps} of {schedule.total} (1 in {spec.reduction} continues)"
    elif spec.scheduler == "asha":
        how += f"; too few evaluations in {schedule.total} steps for ASHA: no trial of this length is stopped early"
    elif spec.scheduler == "pbt":
        how = f"a population of {spec.trials} over {spec.generations} generations of {schedule.total} steps"
    seeds = " ".join(map(str, spec.seeds))
    console.print(f"{how}; {spec.metric} on validation, seeds {seeds}")
    if spec.confirm:
        fresh = " ".join(map(str, spec.fresh_seeds))
        console.print(f"then the best {spec.confirm} and the baseline on fresh seeds {fresh}")


def report(arguments: Sequence[str]) -> int:
    """Write a sweep's report and print its findings."""
    from pfcluster.sweep.report.write import terminal_table, write_sweep_report

    options = parse(SweepReportOptions, arguments, prog="pfcluster sweep report")
    files = write_sweep_report(options.folder)
    console = plain_console()
    console.print(terminal_table(files.data))
    for sentence in files.findings:
        console.print(f"- {sentence}")
    console.print(f"report: {files.html}", soft_wrap=True)
    return 0
