"""The command line: which command, on this machine or on a cluster. `jobs/launch.py` is its front door."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pfcluster.cli.tools import TOOLS, WATCHING
from pfcluster.launch import planning
from pfcluster.launch.local import LaunchError, run_plan
from pfcluster.launch.options import (
    STUDIES,
    TRAINING,
    Cluster,
    Options,
    add_cluster_options,
    cluster_of,
    command_text,
    parse_training,
)
from pfcluster.launch.plan import Command, Plan, Stage, TrainRun
from pfcluster.launch.redaction import conceal_output

HELP = """Train, evaluate and report, on this machine or on a SLURM cluster.

    python jobs/launch.py --nodes 4                             the pipeline: shards, pre-training, all seeds, report
    python jobs/launch.py demo                                  the whole method on embedded synthetic faces
    python jobs/launch.py study --data.shards DIR               the same on your own photos
    python jobs/launch.py reproduce --miniature                 the paper's tables, on faces of your own or synthetic
    python jobs/launch.py judge | pretrain | finetune | pf-mag  one stage of it
    python jobs/launch.py evaluate RUN [--split test]           scores of a run's best checkpoint
    python jobs/launch.py report STUDY [--baseline NAME]        mean ± std over seeds, tables and pictures
    python jobs/launch.py pictures RUN [RUN ...]                attention maps, features and failures side by side
    python jobs/launch.py tables OUTPUT                         the paper's tables of a reproduction, as far as it is
    python jobs/launch.py consolidate RUN [--output FILE]       a run's weights as one safetensors file
    python jobs/launch.py costs --preset vit-b                  parameters, FLOPs and speed at batch 1 and 64
    python jobs/launch.py shards --input DIR --output DIR       raw photos to shards (shards/build.py)
    python jobs/launch.py doctor [--processes N]                does every engine train right here
    python jobs/launch.py status | logs | cancel [NAME]         what runs, what it says, end it

`python jobs/launch.py COMMAND --help` lists the options. Stopped runs go on where they were: give the same command
again.
"""
COMMANDS = (*STUDIES, "reproduce", *TRAINING, *TOOLS, *WATCHING)
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit code: 0 done, 1 a run failed, 2 the call was wrong, 130 stopped by a
    signal.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    conceal_output()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)
        return 0 if arguments else 2
    command, rest = ("pipeline", arguments) if arguments[0].startswith("-") else (arguments[0], arguments[1:])
    return telling_errors(lambda: run_command(command, rest))


def telling_errors(run: Callable[[], int]) -> int:
    """What `run` returns; an error that users can mend, or a run that failed, is printed in a sentence and is its exit
    code.
    """
    try:
        return run()
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run_command(command: str, arguments: list[str]) -> int:
    """One command by its name. Raises ValueError, LaunchError."""
    if command not in COMMANDS:
        raise ValueError(f"no command {command!r}; there are {', '.join(COMMANDS)}")
    if command in WATCHING:
        return WATCHING[command](arguments)
    if command == "reproduce":
        return reproduce(arguments)
    if command in TOOLS:
        return tool(command, arguments)
    return train(command, arguments)


def train(command: str, arguments: list[str]) -> int:
    """The pipeline, demo, study and the single stages."""
    options = parse_training(command, arguments)
    plan = planning.make_plan(options)
    if options.dry_run:
        from pfcluster.cli.dry_run import dry_run

        if not planning.coming_shards(plan):
            dry_run(plan.jobs(), options, Console())
        print_plan(plan, options.cluster, Console())
        return 0
    return execute(command, plan, options, Console())


def reproduce(arguments: list[str]) -> int:
    """The paper's experiments."""
    from pfcluster.cli.reproduce import parse

    found, console = parse(arguments), Console()
    plan = found.plan()
    found.tell_missing(console)
    if found.options.dry_run:
        print_plan(plan, found.options.cluster, console)
        return 0
    return execute("reproduce", plan, found.options, console, before=found.record)


def execute(
    command: str, plan: Plan, options: Options, console: Console, before: Callable[[], None] = lambda: None
) -> int:
    """Run a plan where its options want it, once it is known to be sound; `before` is called in between."""
    cluster = options.cluster
    planning.preflight(plan, cluster)
    before()
    if cluster.executor == "slurm":
        return submit(plan, cluster, console)
    if cluster.executor == "ray":
        from pfcluster.launch.ray.run import run_plan as run_on_ray

        if not run_on_ray(plan, cluster, options.jobs, console):
            return INTERRUPTED
        return told(command, plan, console)
    if cluster.nodes > 1:
        console.print(
            f"--nodes {cluster.nodes}: {cluster.nodes} groups of {cluster.per_node} processes on this machine"
            f" ({cluster.reason})",
            highlight=False,
        )
    if not run_plan(plan, processes=cluster.world_size, at_once=options.jobs):
        return INTERRUPTED
    return told(command, plan, console)


def told(command: str, plan: Plan, console: Console) -> int:
    """Say where the results are, where no report did."""
    if command in TRAINING:
        for job in plan.jobs()[-1]:
            console.print(f"{job.label}: {job.folder / 'result.json'}", highlight=False, soft_wrap=True)
    return 0


def tool(command: str, arguments: list[str]) -> int:
    """A command that does not train: here, or with --executor slurm as a job."""
    if not any(word.startswith("--executor") for word in arguments):
        return TOOLS[command](arguments)
    parser = argparse.ArgumentParser(prog=f"jobs/launch.py {command}", allow_abbrev=False, add_help=False)
    add_cluster_options(parser, "local")
    parser.add_argument("--job-name", default=None)
    known, rest = parser.parse_known_args(arguments)
    cluster = cluster_of(known)
    if cluster.executor != "slurm":
        return TOOLS[command](rest)
    paths = [word for word in rest if not word.startswith("-")]
    slug = (
        re.sub(r"[^A-Za-z0-9.]+", "-", paths[-1] if command == "shards" else paths[0]).strip("-.") if paths else "all"
    )
    name = known.job_name or f"{command}-{slug}"
    folder = Path("runs") / name
    if command == "shards":
        group = planning.slices(rest, folder, cluster.nodes)
    elif command == "doctor":
        group = Stage(command, (Command(command, folder / command, tuple(rest), module="pfcluster.cli.doctor"),))
    else:
        group = Stage(command, (Command(command, folder / command, (command, *rest)),), alone=True)
    return submit(Plan(name, folder, (group,), command_text()), cluster, Console())


def submit(plan: Plan, cluster: Cluster, console: Console) -> int:
    """Hand a plan to SLURM and say what was done; with --wait stay until all has ended."""
    from pfcluster.cli import watch
    from pfcluster.launch.slurm import submit as slurm

    rows = slurm.submit(plan, cluster.site, processes=cluster.processes, retries=cluster.retries)
    table = Table(
        "stage", "tasks", "nodes x processes", "after", "job", title=f"{plan.name} on SLURM", title_justify="left"
    )
    for row in rows:
        counts = {
            what: [job for _, done, job in row.tasks if done == what] for what in ("submitted", "attached", "finished")
        }
        words = ", ".join(f"{len(jobs)} {what}" for what, jobs in counts.items() if jobs)
        numbers = dict.fromkeys(job.split("_")[0] for jobs in counts.values() for job in jobs if job)
        table.add_row(
            row.group, words, f"{row.layout.nodes} x {row.layout.per_node}", " ".join(row.after), " ".join(numbers)
        )
    console.print(table)
    for words in dict.fromkeys(row.layout.shortened for row in rows if row.layout.shortened):
        console.print(words, highlight=False)
    place = plan.folder
    for what in ("status", "logs", "cancel"):
        console.print(f"python jobs/launch.py {what} {place}", highlight=False, style="dim", soft_wrap=True)
    if not cluster.wait:
        return 0
    try:
        return 0 if watch.watch(place, console).well else 1
    except KeyboardInterrupt:
        console.print("the jobs go on; status shows them, cancel ends them")
        return INTERRUPTED


def print_plan(plan: Plan, cluster: Cluster, console: Console) -> None:
    """Stages, and for SLURM their batch scripts."""
    table = Table(
        "stage", "tasks", "after", "folders", title=f"plan {plan.name}: {cluster.executor} ({cluster.reason})"
    )
    for group in plan.groups:
        folders = sorted(
            {str(task.folder.parent if isinstance(task, TrainRun) else task.folder) for task in group.tasks}
        )
        todo = sum(not task.finished() for task in group.tasks)
        table.add_row(group.name, f"{todo} of {len(group.tasks)} to do", " ".join(group.after), "\n".join(folders))
    console.print(table)
    if cluster.executor == "slurm":
        from pfcluster.launch.slurm.script import script_of

        for group in plan.groups:
            console.rule(group.name)
            print(script_of(plan, group, cluster.site, cluster.processes))


if __name__ == "__main__":
    sys.exit(main())
