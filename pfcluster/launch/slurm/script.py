"""The batch script of a group: submitit's executor, told what the site, the layout and the way jobs end want of it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfcluster.config import ConfigError
from pfcluster.launch.plan import Plan, Stage
from pfcluster.launch.redaction import VARIABLE
from pfcluster.launch.slurm import client
from pfcluster.launch.slurm.client import SlurmError
from pfcluster.launch.slurm.epilogue import MARK
from pfcluster.launch.slurm.site import Site

SCRIPTS = "slurm"
"""Folder of submitit's files in a plan's."""
A_DAY = 24 * 60
FREE_PORT = "from pfcluster.distributed.hosts import free_port; print(free_port())"


@dataclass(frozen=True)
class Layout:
    """Nodes and processes of a group's tasks."""

    nodes: int
    per_node: int
    minutes: int
    shortened: str | None = None
    """What to say where the partition allows less time than was asked for."""


def layout_of(group: Stage, site: Site, processes: int) -> Layout:
    """Nodes, processes and time of a group's jobs. Raises ConfigError for what the partition can never run."""
    own = site.for_run(group.name)
    nodes = 1 if group.alone else own.nodes or 1
    per_node = 1 if group.alone else own.gpus_per_node or processes
    try:
        limits = client.partition(own.partition)
        allowed = client.minutes(limits.get("MaxTime", "UNLIMITED"))
        wanted = client.minutes(own.time) if own.time else None
    except SlurmError as error:
        raise ConfigError(f"--partition {own.partition or '(default)'}: {error}") from error
    total = limits.get("TotalNodes", "")
    if total.isdecimal() and int(total) < nodes:
        raise ConfigError(
            f"{group.name} wants --nodes {nodes}, and partition {limits['PartitionName']} has {total}: ask for fewer"
        )
    longest = allowed if allowed is not None else wanted or A_DAY
    time = min(wanted or min(longest, A_DAY), longest)
    shortened = None
    if wanted is not None and wanted > time:
        shortened = f"partition {limits['PartitionName']} allows {time} minutes of the {wanted}: jobs chain themselves"
    return Layout(nodes, per_node, time, shortened)


def executor_of(
    plan: Plan, group: Stage, site: Site, layout: Layout, code: Path, scripts: Path, more: Mapping[str, Any]
) -> Any:
    """submitit's executor with all that the site, the layout and the way we end jobs want of the batch script."""
    from submitit import SlurmExecutor

    own = site.for_run(group.name)
    executor = SlurmExecutor(folder=scripts, python=own.python)
    named = {name: getattr(own, name) for name in ("partition", "account", "qos", "constraint", "exclude", "mem")}
    cpus = own.cpus_per_task
    executor.update_parameters(
        job_name=f"{plan.name}.{group.name}",
        nodes=layout.nodes,
        ntasks_per_node=layout.per_node,
        cpus_per_task=cpus,
        gpus_per_node=None if group.alone and own.gpus_per_node is None else own.gpus_per_node and layout.per_node,
        time=layout.minutes,
        signal_delay_s=own.signal_seconds,
        setup=_setup(own, code),
        teardown=_teardown(code, scripts),
        srun_args=["--kill-on-bad-exit=1", *([f"--cpus-per-task={cpus}"] if cpus else []), *own.srun],
        stderr_to_stdout=True,
        wckey=None,
        additional_parameters={("requeue" if own.requeue else "no-requeue"): True, **own.sbatch},
        **{name: value for name, value in named.items() if value is not None},
        **more,
    )
    return executor


def script_of(plan: Plan, group: Stage, site: Site, processes: int) -> str:
    """The batch script of a group, for --dry-run; nothing is written."""
    layout = layout_of(group, site, processes)
    scripts = plan.folder.resolve() / SCRIPTS / group.name
    kind = "afterany" if group.always_run else "afterok"
    more = {"dependency": f"{kind}:<" + ">:<".join(group.after) + ">"} if group.after else {}
    executor = executor_of(plan, group, site, layout, plan.folder.resolve() / ".code/DIGEST", scripts, more)
    if len(group.tasks) > 1:
        executor.parameters["map_count"] = len(group.tasks)
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    return text


def _setup(site: Site, code: Path) -> list[str]:
    """Shell lines before srun. Secrets come with the submitter's environment; only their names stand here."""
    lines = list(site.setup)
    lines += [f"export {name}={shlex.quote(value)}" for name, value in site.environment.items()]
    if site.secrets:
        lines.append(f"export {VARIABLE}={shlex.quote(','.join(site.secrets))}")
    if site.scratch:
        lines.append(f'export PFCLUSTER_CACHE="{site.scratch}"')
    return [
        *lines,
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        f"export MASTER_PORT=$({shlex.quote(sys.executable)} -c {shlex.quote(FREE_PORT)})",
        "trap '' TERM  # what follows the ranks' end must run",
        f'echo "{MARK} $SLURM_JOB_ID, restart ${{SLURM_RESTART_COUNT:-0}}, on $SLURM_JOB_NODELIST"',
    ]


def _teardown(code: Path, scripts: Path) -> list[str]:
    end = (
        f"{shlex.quote(sys.executable)} -m pfcluster.launch.slurm.epilogue {shlex.quote(str(scripts / 'folders.txt'))}"
    )
    return ["status=$?", f"PYTHONPATH={shlex.quote(str(code))} {end} --status $status", "exit $?"]
