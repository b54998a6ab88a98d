"""Submit a plan or a single command to SLURM, and print what was submitted."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pfcluster.cli.main import load_command
from pfcluster.cli.train import INTERRUPTED
from pfcluster.cli.watch import watch
from pfcluster.config import ConfigError
from pfcluster.data.build.options import BuildOptions
from pfcluster.launch.command_line import parse, parse_known
from pfcluster.launch.options import Cluster, ClusterOptions, InlineCluster, resolve_cluster
from pfcluster.launch.plan import Command, Plan, Stage
from pfcluster.launch.slurm.submit import submit as submit_to_slurm
from pfcluster.launch.study_plan import BUILD_COMMAND, build_stage
from pfcluster.launch.training_options import command_text
from pfcluster.system.terminal import plain_console


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """Run a command as a SLURM job."""

    job_name: str | None = None
    """Name of the job; default: the command, its first argument and a digest of the others."""
    cluster: InlineCluster = field(default_factory=lambda: ClusterOptions(executor="local"))


def run_or_submit(command: str, arguments: list[str]) -> int:
    """Run a command that does not train on this machine, or as a job with --executor slurm; returns the exit code.
    Raises ConfigError with --executor ray, which runs only what trains.
    """
    options, rest = parse_known(SubmitOptions, arguments, prog=f"pfcluster {command}")
    if options.cluster.executor == "ray":
        raise ConfigError(
            f"--executor ray runs only commands that train, not {command}: leave it out, or use --executor slurm"
        )
    cluster = resolve_cluster(options.cluster)
    if cluster.executor != "slurm":
        return load_command(command)(rest)
    name = options.job_name or job_name(command, rest)
    folder = Path("runs") / name
    if command == BUILD_COMMAND:
        stage = build_stage(rest, folder, cluster.nodes)
    elif command == "doctor":
        stage = Stage(command, (Command(command, folder / command, tuple(rest), module="pfcluster.cli.doctor"),))
    else:
        stage = Stage(command, (Command(command, folder / command, (command, *rest)),), single_process=True)
    return submit(Plan(name, folder, (stage,), command_text(command, arguments)), cluster, plain_console())


def job_name(command: str, arguments: Sequence[str]) -> str:
    """A name that distinguishes commands: the command, its first argument and, if there are others, a digest of them;
    for a build, the folder that it writes.
    """
    first, others = (arguments[0], arguments[1:]) if arguments and not arguments[0].startswith("-") else ("", arguments)
    if command == BUILD_COMMAND:
        first, others = str(parse(BuildOptions, arguments, prog=f"pfcluster {BUILD_COMMAND}").output), ()
    digest = hashlib.sha256("\0".join(others).encode()).hexdigest()[:6] if others else ""
    return "-".join(part for part in (command, re.sub(r"[^A-Za-z0-9.]+", "-", first).strip("-."), digest) if part)


def submit(plan: Plan, cluster: Cluster, console: Console) -> int:
    """Submit a plan and print its jobs; with --wait follow them to their end. Returns the exit code."""
    stages = submit_to_slurm(plan, cluster.site, processes=cluster.processes, retries=cluster.retries)
    table = Table(
        "stage", "tasks", "nodes x processes", "after", "job", title=f"{plan.name} on SLURM", title_justify="left"
    )
    for stage in stages:
        jobs = {
            action: [task.job for task in stage.tasks if task.action == action]
            for action in ("submitted", "attached", "finished")
        }
        counts = ", ".join(f"{len(numbers)} {action}" for action, numbers in jobs.items() if numbers)
        arrays = dict.fromkeys(job.split("_")[0] for numbers in jobs.values() for job in numbers if job)
        layout = f"{stage.layout.nodes} x {stage.layout.per_node}"
        table.add_row(stage.name, counts, layout, " ".join(stage.after), " ".join(arrays))
    console.print(table)
    for note in dict.fromkeys(stage.layout.note for stage in stages if stage.layout.note):
        console.print(note)
    for command in ("status", "logs", "cancel"):
        console.print(f"pfcluster {command} {plan.folder}", style="dim", soft_wrap=True)
    if not cluster.wait:
        return 0
    try:
        return 0 if watch(plan.folder, console).all_finished else 1
    except KeyboardInterrupt:
        console.print("the jobs continue; `pfcluster status` shows them, `pfcluster cancel` stops them")
        return INTERRUPTED
