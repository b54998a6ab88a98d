"""The batch script of a stage: submitit's executor with the settings of the site, the layout, and our setup and end."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfcluster.config import ConfigError
from pfcluster.launch import slurm_client
from pfcluster.launch.code_snapshot import CODE_DIR
from pfcluster.launch.options import Cluster
from pfcluster.launch.plan import Plan, Stage
from pfcluster.launch.site import Site
from pfcluster.launch.slurm.diagnosis import ATTEMPT_MARK
from pfcluster.launch.slurm_client import SlurmError, UnreachableError
from pfcluster.system.os_errors import describe
from pfcluster.system.redaction import VARIABLE

SCRIPTS_DIR = "slurm"
"""Folder of submitit's files in the plan's folder."""
FOLDERS_FILE = "folders.txt"
"""The folders of an array's tasks, one per line."""
MINUTES_PER_DAY = 24 * 60
FREE_PORT = "from pfcluster.distributed.hosts import free_port; print(free_port())"


@dataclass(frozen=True)
class Layout:
    """Nodes, processes and time limit of a stage's jobs."""

    nodes: int
    per_node: int
    minutes: int
    note: str | None = None
    """Message for the user if the partition allows less time than requested."""


def layout_of(stage: Stage, site: Site, processes: int, *, query: bool = True) -> Layout:
    """The layout of a stage's jobs. Without `query`, SLURM is not asked for the limits of the partition.

    Raises ConfigError for a partition that does not exist or has too few nodes, and for a time limit without time
    before the signal; UnreachableError.
    """
    settings = site.for_run(stage.name)
    nodes = 1 if stage.single_process else settings.nodes or 1
    per_node = 1 if stage.single_process else settings.gpus_per_node or processes
    try:
        partition = settings.partition or os.environ.get("SBATCH_PARTITION")
        limits = slurm_client.partition(partition) if query else {}
        allowed = slurm_client.minutes(limits.get("MaxTime", "UNLIMITED"))
        requested = slurm_client.minutes(settings.time) if settings.time else None
    except UnreachableError:
        raise
    except SlurmError as error:
        raise ConfigError(f"--partition {settings.partition or '(default)'}: {error}") from error
    total = limits.get("TotalNodes", "")
    if total.isdecimal() and int(total) < nodes:
        raise ConfigError(
            f"{stage.name} needs --nodes {nodes}, but partition {limits['PartitionName']} has {total}: request fewer"
        )
    longest = allowed if allowed is not None else requested or MINUTES_PER_DAY
    time = min(requested or min(longest, MINUTES_PER_DAY), longest)
    if 60 * time <= settings.signal_seconds:
        raise ConfigError(
            f"{stage.name}: jobs of {time} minutes would be signalled to stop as soon as they begin, because that is"
            f" {settings.signal_seconds} s before their end: use a longer --time or another partition, or a smaller"
            " signal_seconds in the site file"
        )
    note = None
    if requested is not None and requested > time:
        note = (
            f"partition {limits['PartitionName']} allows {time} minutes of the {requested}: longer runs continue in"
            " further jobs"
        )
    return Layout(nodes, per_node, time, note)


def executor_of(
    plan: Plan,
    stage: Stage,
    site: Site,
    layout: Layout,
    code: Path,
    scripts: Path,
    more: Mapping[str, Any],
    *,
    dry_run: bool = False,
) -> Any:
    """submitit's executor for a stage. `code`: folder for PYTHONPATH; `scripts`: folder of submitit's files; `more`:
    further parameters. For a dry run srun need not be installed.
    """
    from submitit import SlurmExecutor

    kind = type("DryRunExecutor", (SlurmExecutor,), {"affinity": classmethod(lambda cls: 2)})
    settings = site.for_run(stage.name)
    executor = (kind if dry_run else SlurmExecutor)(folder=scripts, python=settings.python)
    options = ("partition", "account", "qos", "constraint", "exclude", "mem")
    given = {name: getattr(settings, name) for name in options if getattr(settings, name) is not None}
    cpus, gpus = settings.cpus_per_task, settings.gpus_per_node
    executor.update_parameters(
        job_name=f"{plan.name}.{stage.name}",
        nodes=layout.nodes,
        ntasks_per_node=layout.per_node,
        cpus_per_task=cpus,
        gpus_per_node=None if stage.single_process and gpus is None else gpus and layout.per_node,
        time=layout.minutes,
        signal_delay_s=settings.signal_seconds,
        setup=_setup(settings, code),
        teardown=_teardown(code, scripts),
        srun_args=["--kill-on-bad-exit=1", *([f"--cpus-per-task={cpus}"] if cpus else []), *settings.srun],
        stderr_to_stdout=True,
        wckey=None,
        additional_parameters={("requeue" if settings.requeue else "no-requeue"): True, **settings.sbatch},
        **given,
        **more,
    )
    return executor


def path_without_percent(folder: Path, *, create: bool) -> Path:
    """The folder, or a link to it if its path contains `%`: SLURM expands patterns in the paths of output files, those
    of arrays twice, so that they cannot be escaped. The link is beside the first folder whose name contains `%`; with
    `create` it is made. Raises ConfigError if that fails.
    """
    place = next((parent for parent in reversed([folder, *folder.parents]) if "%" in parent.name), None)
    if place is None:
        return folder
    link = place.parent / f".pfcluster-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}"
    if create and not link.is_symlink():
        try:
            link.symlink_to(folder)
        except FileExistsError:  # another launcher has just made it
            pass
        except OSError as error:
            raise ConfigError(
                f"--output: SLURM expands the % in {folder}, and a link without it cannot be made ({describe(error)});"
                " choose another name"
            ) from error
    return link


def scripts_folder(plan: Plan, stage: Stage, suffix: str = "", *, create: bool) -> Path:
    """Folder of submitit's files for a stage, as passed to SLURM. `create` as in `path_without_percent`."""
    parent = path_without_percent(plan.folder.resolve() / SCRIPTS_DIR, create=create)
    return parent / f"{stage.name.replace('%', '_')}{suffix}"


def script_of(plan: Plan, stage: Stage, cluster: Cluster) -> str:
    """The batch script of a stage, for --dry-run; nothing is written. A stage whose runs wait for those of their seeds
    is submitted with this script once for each seed.
    """
    layout = layout_of(stage, cluster.site, cluster.processes, query=cluster.slurm_answers)
    folder = plan.folder.resolve()
    kind = "afterany" if stage.always_run else "afterok"
    before = [*stage.after, *(f"{name} of the same seed" for name in stage.same_seed)]
    more = {"dependency": f"{kind}:<" + ">:<".join(before) + ">"} if before else {}
    code, scripts = folder / CODE_DIR / "DIGEST", scripts_folder(plan, stage, create=False)
    executor = executor_of(plan, stage, cluster.site, layout, code, scripts, more, dry_run=True)
    if len(stage.tasks) > 1 and not stage.same_seed:
        executor.parameters["map_count"] = len(stage.tasks)
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    return text


def _setup(site: Site, code: Path) -> list[str]:
    """Shell lines before srun. The values of secrets come with the submitter's environment; the script has only their
    names.
    """
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
        "trap '' TERM  # the lines after srun must run",
        f'echo "{ATTEMPT_MARK} $SLURM_JOB_ID, restart ${{SLURM_RESTART_COUNT:-0}}, on $SLURM_JOB_NODELIST"',
    ]


def _teardown(code: Path, scripts: Path) -> list[str]:
    """Shell lines after srun: the epilogue, with srun's exit status."""
    python, folders = shlex.quote(sys.executable), shlex.quote(str(scripts / FOLDERS_FILE))
    epilogue = f"{python} -m pfcluster.launch.slurm.epilogue {folders}"
    return ["status=$?", f"PYTHONPATH={shlex.quote(str(code))} {epilogue} --status $status", "exit $?"]
