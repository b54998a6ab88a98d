"""The state of a plan as a table, printed once or until all tasks have ended."""

from __future__ import annotations

import shlex
import time
from datetime import datetime, timezone
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pfcluster.launch.status import BAD, Overview, TaskStatus, overview

COLORS = {
    "finished": "green",
    "running": "cyan",
    "evaluating": "cyan",
    "failed": "red",
    "lost": "red",
    "timed out": "red",
}
COLUMNS = {
    "stage": 5,
    "state": 12,
    "step": 4,
    "loss": 4,
    "images/s": 8,
    "left": 4,
    "restarts": 8,
    "nodes": 5,
    "job": 3,
}
"""Columns and their smallest widths."""
NUMBERS = ("step", "loss", "images/s", "left", "restarts")
WIDE = 100
"""Terminals narrower than this omit images/s and job."""
WATCH_SECONDS = 5.0


def table(plan: Overview, width: int = 120) -> RenderableType:
    """The state of a plan's tasks, with error messages below."""
    rows = Table(title=f"{plan.name}  ({plan.folder})", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    columns = [name for name in COLUMNS if width >= WIDE or name not in ("images/s", "job")]
    for name in columns:
        justify = "right" if name in NUMBERS else "left"
        rows.add_column(name, justify=justify, no_wrap=name != "state", min_width=COLUMNS[name])  # type: ignore[arg-type]
    for task in plan.tasks:
        cells = _cells(task)
        rows.add_row(*(cells[name] for name in columns))
    parts: list[RenderableType] = [rows]
    for task in plan.tasks:
        if task.error:
            parts.append(Text(f"{task.label}: {task.error}", style="red" if task.state in BAD else "yellow"))
    if plan.warning:
        parts.append(Text(f"warning: {plan.warning}", style="yellow"))
    parts.append(Text(f"logs: `pfcluster logs {shlex.quote(str(plan.folder))}`", style="dim"))
    return Group(*parts)


def _cells(task: TaskStatus) -> dict[str, Text | str]:
    """The cells of a task by column."""
    state = Text(task.state, style=COLORS.get(task.state, ""))
    if task.reason:
        state.append(f"  {task.reason}", style="dim")
    failures = f" ({task.failures} failed)" if task.failures else ""
    total = f" / {task.total_steps:,}" if task.total_steps else ""
    return {
        "stage": task.label,
        "state": state,
        "step": "" if task.step is None else f"{task.step:,}{total}",
        "loss": "" if task.loss is None else f"{task.loss:.3f}",
        "images/s": "" if task.images_per_second is None else f"{task.images_per_second:,.0f}",
        "left": "" if task.seconds_left is None else duration(task.seconds_left),
        "restarts": f"{task.restarts}{failures}" if task.restarts else "",
        "nodes": task.nodes,
        "job": task.job,
    }


def duration(seconds: float) -> str:
    """1:02:03, or 4:05."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, second = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{second:02}" if hours else f"{minutes}:{second:02}"


def watch(folder: Path, console: Console) -> Overview:
    """Show the state until all tasks and the launcher have ended or Ctrl-C; the tasks continue either way."""
    plan = overview(folder)
    if not console.is_terminal:
        return _print_changes(plan, console)
    with Live(table(plan, console.width), console=console, auto_refresh=False) as live:
        while not plan.all_ended:
            time.sleep(WATCH_SECONDS)
            plan = overview(folder)
            live.update(table(plan, console.width), refresh=True)
    return plan


def _print_changes(plan: Overview, console: Console) -> Overview:
    """Print a line whenever the state of a task changes, and the table at the end."""
    while not plan.all_ended:
        states = {task.folder: task.state for task in plan.tasks}
        time.sleep(WATCH_SECONDS)
        plan = overview(plan.folder)
        for task in plan.tasks:  # those of a sweep become more
            if task.state != states.get(task.folder):
                console.print(f"{_clock()} {task.label}: {task.state}  {task.reason}", soft_wrap=True)
    console.print(table(plan, console.width))
    return plan


def _clock() -> str:
    return datetime.now(timezone.utc).astimezone().strftime("%H:%M:%S")
