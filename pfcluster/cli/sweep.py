"""The command line of sweeps. `tune/sweep.py` is its front door."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pfcluster.cli.main import INTERRUPTED, telling_errors
from pfcluster.config import DataConfig
from pfcluster.distributed.signals import StopRequest
from pfcluster.launch.plan import Plan, Stage, TrainRun, groups_of
from pfcluster.launch.planning import preflight
from pfcluster.launch.redaction import conceal, conceal_output
from pfcluster.runs.atomic_files import write_atomically
from pfcluster.sweep import search
from pfcluster.sweep.asha import EvalSchedule
from pfcluster.sweep.driver import Sweep
from pfcluster.sweep.executor import Executor
from pfcluster.sweep.executors import executor_of
from pfcluster.sweep.options import read
from pfcluster.sweep.report.data import COMMAND
from pfcluster.sweep.space import baseline
from pfcluster.sweep.spec import Spec, save
from pfcluster.sweep.state import SweepState
from pfcluster.sweep.trials import Runs, Trial, forget_failures

HELP = """Sweeps that know about luck: search on few seeds, confirm on fresh ones, report both.

    python tune/sweep.py                                        PF-MAG's loss weights on the embedded faces
    python tune/sweep.py --space learning_rates --trials 30     a named space (pfcluster/sweep/spaces.toml)
    python tune/sweep.py --space optim.lr=loguniform:1e-4,1e-2 --role mae-vit --data.shards data/mine
    python tune/sweep.py --executor ray | slurm | local         the same trials, wherever they run
    python tune/sweep.py report FOLDER                          the report again

Stopped or killed: the same command goes on. `python tune/sweep.py --help` lists the options.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or report a sweep; the process's exit code: 0 done, 1 nothing can follow, 2 the call was wrong, 130 stopped
    by a signal.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    conceal_output()
    if arguments[:1] == ["report"]:
        return telling_errors(lambda: report(arguments[1:]))
    return telling_errors(lambda: sweep(arguments))


def sweep(arguments: Sequence[str]) -> int:
    """Search, confirm, report."""
    if any(word in ("-h", "--help") for word in arguments):
        print(HELP)
    options = read(arguments)
    console = Console()
    spec, folder = options.spec, options.output
    courses = course_of()
    preflight(_first_runs(spec, folder), options.cluster)
    if options.dry_run:
        _describe(spec, folder, courses, console)
        return 0
    command = conceal(shlex.join(["python", "tune/sweep.py", *arguments]))
    with executor_of(options, command) as executor:
        save(spec, folder)
        if not (folder / COMMAND).exists():
            write_atomically(folder / COMMAND, command + "\n")
        if options.retry_failed and (count := forget_failures(folder)):
            console.print(f"{count} failed runs are tried again")
        _describe(spec, folder, courses, console)
        if spec.search == "tpe" and spec.scheduler != "pbt" and spec.lag < executor.at_once < spec.trials:
            console.print(
                f"there is room for {executor.at_once} runs, and TPE with --lag {spec.lag} has no more than"
                f" {spec.lag} trials under way; --lag {executor.at_once} in a new sweep would use all",
                highlight=False,
            )
        if not run(spec, folder, executor, courses, console):
            console.print("stopped; the same command goes on from here")
            return INTERRUPTED
    return report([str(folder)])


def run(
    spec: Spec, folder: Path, executor: Executor, courses: Callable[[TrainRun], EvalSchedule], console: Console
) -> bool:
    """Drive a sweep to its end; False where a signal stopped it, with all runs' checkpoints written."""
    began = time.monotonic()

    def say(words: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - began), 60)
        console.print(f"{minutes:3d}:{seconds:02d}  {words}", highlight=False, markup=False, soft_wrap=True)

    under_way = Sweep(SweepState(spec, folder, courses), executor, say)
    with StopRequest() as stop:
        over = False
        try:
            while not stop.requested and not (over := under_way.tick()):
                time.sleep(executor.poll_seconds)
        finally:
            if not over:
                executor.stop()
    return over


def course_of() -> Callable[[TrainRun], EvalSchedule]:
    """When a run is evaluated, and how long it is: from its config and the size of its data."""
    from pfcluster.data.dataset import open_dataset
    from pfcluster.training.trainer import evaluation_steps, total_steps

    @cache
    def samples(data: DataConfig, seed: int) -> int:
        return len(open_dataset(data, seed).train)

    def course(job: TrainRun) -> EvalSchedule:
        config = job.config
        count = samples(config.data, config.seed if config.data.limit is not None else 0)
        return EvalSchedule(total_steps(config, count), evaluation_steps(config, count))

    return course


def _first_runs(spec: Spec, folder: Path) -> Plan:
    """The shared runs and the baseline's, for a check of all that they need."""
    runs = Runs(spec, folder)
    shared = groups_of(list(runs.shared.values()))
    first = [leg.job for leg in runs.explored(Trial(0, {}), spec.seeds[0])]
    return Plan(folder.name, folder, (*shared, Stage("baseline", tuple(first))), "")


def _describe(spec: Spec, folder: Path, courses: Callable[[TrainRun], EvalSchedule], console: Console) -> None:
    """What will be searched, and how."""
    board = SweepState(spec, folder, courses)
    table = Table("field", "values", "baseline", title=f"{folder}: {spec.config.name}", title_justify="left")
    values = baseline(spec.space, spec.stages())
    for one in spec.space:
        table.add_row(one.name, one.text(), f"{values[one.name]}")
    console.print(table)
    first = Trial(0, {})
    course = courses(board.runs.job(first, spec.seeds[0]))
    how = f"{search.count(spec)} trials by {spec.search}"
    if spec.scheduler == "asha" and (rungs := board.rungs(first)):
        how += f", ASHA at steps {' and '.join(map(str, rungs))} of {course.total} (1 in {spec.reduction} goes on)"
    elif spec.scheduler == "asha":
        how += f"; too few evaluations in {course.total} steps for ASHA: no trial is stopped early"
    elif spec.scheduler == "pbt":
        how = f"a population of {spec.trials} over {spec.generations} generations of {course.total} steps"
    seeds = " ".join(map(str, spec.seeds))
    console.print(f"{how}; {spec.metric} on validation, seeds {seeds}", highlight=False)
    if spec.confirm:
        fresh = " ".join(map(str, spec.fresh_seeds))
        console.print(f"then the best {spec.confirm} and the baseline on fresh seeds {fresh}", highlight=False)


def report(arguments: Sequence[str]) -> int:
    """Write a sweep's report and print what it found."""
    from pfcluster.sweep.report.write import terminal_table, write_sweep_report

    parser = argparse.ArgumentParser(prog="tune/sweep.py report")
    parser.add_argument("folder", type=Path, help="the sweep's folder")
    files = write_sweep_report(parser.parse_args(arguments).folder)
    console = Console()
    console.print(terminal_table(files.data))
    for sentence in files.findings:
        console.print(f"- {sentence}", highlight=False, markup=False)
    console.print(f"report: {files.html}", highlight=False, soft_wrap=True)
    return 0
