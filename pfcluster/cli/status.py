"""`pfcluster status | logs | cancel`: runs that were started by any launcher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pfcluster.cli.watch import table, watch
from pfcluster.config.json_files import JsonFileError
from pfcluster.launch import status as plans
from pfcluster.launch.command_line import parse
from pfcluster.system.terminal import plain_console


@dataclass(frozen=True, kw_only=True)
class StatusOptions:
    """Print state, step, loss and speed of the runs of one plan, or of all plans."""

    name: tyro.conf.Positional[str | None] = None
    """Name or folder of a plan; default: all plans."""
    output: Path = Path("runs")
    """Folder that is searched for plans."""
    watch: bool = False
    """Update the table until all runs have ended."""


def status(arguments: list[str]) -> int:
    """Print the state of plans. Plans with a damaged record are named, and the exit code is then 1."""
    options = parse(StatusOptions, arguments, prog="pfcluster status")
    console = plain_console()
    if options.name is None:
        folders = plans.plan_folders(options.output)
        if not folders:
            raise plans.StatusError(f"nothing was started under {options.output}; --output names another folder")
    else:
        folders = [plans.find_plan(options.name, options.output)]
    if options.watch:
        return 0 if watch(folders[-1], console).all_finished else 1
    damaged = False
    for folder in folders:
        try:
            console.print(table(plans.overview(folder), console.width))
        except (plans.StatusError, JsonFileError) as error:
            if options.name is not None:
                raise
            console.print(f"error: {error}", style="red", soft_wrap=True)
            damaged = True
    return 1 if damaged else 0


@dataclass(frozen=True, kw_only=True)
class LogsOptions:
    """Print the end of a rank's log."""

    name: tyro.conf.Positional[str]
    """Name or folder of a plan."""
    task: str | None = None
    """Stage or run, such as mae-vit or "mae-vit seed 1"; default: a failed one, else one that is running."""
    rank: int = 0
    """Rank whose log is printed."""
    lines: int = 40
    """Number of lines."""
    follow: Annotated[bool, tyro.conf.arg(aliases=["-f"])] = False
    """Keep printing what is appended."""
    output: Path = Path("runs")
    """Folder that is searched for plans."""


def logs(arguments: list[str]) -> int:
    """Print the end of a rank's log."""
    options = parse(LogsOptions, arguments, prog="pfcluster logs")
    path = plans.log_of(plans.find_plan(options.name, options.output), options.rank, options.task)
    plain_console(stderr=True).print(f"{path}", style="dim", soft_wrap=True)
    plans.show_log(path, options.lines, options.follow)
    return 0


@dataclass(frozen=True, kw_only=True)
class CancelOptions:
    """Stop a plan. Runs write a checkpoint first; the same command continues them."""

    name: tyro.conf.Positional[str]
    """Name or folder of a plan."""
    output: Path = Path("runs")
    """Folder that is searched for plans."""


def cancel(arguments: list[str]) -> int:
    """Stop what is queued or running."""
    options = parse(CancelOptions, arguments, prog="pfcluster cancel")
    cancelled = plans.cancel(plans.find_plan(options.name, options.output))
    message = f"cancelled: {', '.join(cancelled.tasks)}"
    if not cancelled.tasks:
        message = "its launcher was ended; no run was in progress" if cancelled.launcher else "nothing was in progress"
    plain_console().print(message, soft_wrap=True)
    return 0
