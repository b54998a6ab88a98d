"""An overview (status.py) as a table, once or until all has ended."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pfcluster.launch.status import BAD, Line, Overview, overview

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
"""Least widths."""
WIDE = 100
WATCH_SECONDS = 5.0


def table(found: Overview, width: int = 120) -> RenderableType:
    """The overview as a table, with the errors below it. Narrow screens do without images/s and job."""
    shown = Table(title=f"{found.name}  ({found.folder})", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    columns = [name for name in COLUMNS if width >= WIDE or name not in ("images/s", "job")]
    for name in columns:
        right = name in ("step", "loss", "images/s", "left", "restarts")
        shown.add_column(name, justify="right" if right else "left", no_wrap=name != "state", min_width=COLUMNS[name])
    for line in found.lines:
        cells = _cells(line)
        shown.add_row(*(cells[name] for name in columns))
    below: list[RenderableType] = [shown]
    for line in found.lines:
        if line.error:
            below.append(Text(f"{line.label}: {line.error}", style="red" if line.state in BAD else "yellow"))
    if found.warning:
        below.append(Text(f"warning: {found.warning}", style="yellow"))
    words = f"logs: {found.folder}/RUN/seed-N/logs/rank-N.log, or `jobs/launch.py logs {found.folder}`"
    below.append(Text(words, style="dim"))
    return Group(*below)


def _cells(line: Line) -> dict[str, Text | str]:
    """A task's row by columns."""
    state = Text(line.state, style=COLORS.get(line.state, ""))
    if line.why:
        state.append(f"  {line.why}", style="dim")
    failed = f" ({line.failures} failed)" if line.failures else ""
    return {
        "stage": line.label,
        "state": state,
        "step": "" if line.step is None else f"{line.step:,}" + (f" / {line.total:,}" if line.total else ""),
        "loss": "" if line.loss is None else f"{line.loss:.3f}",
        "images/s": "" if line.rate is None else f"{line.rate:,.0f}",
        "left": "" if line.seconds_left is None else duration(line.seconds_left),
        "restarts": f"{line.restarts}{failed}" if line.restarts else "",
        "nodes": line.nodes,
        "job": line.job,
    }


def duration(seconds: float) -> str:
    """1:02:03, or 4:05."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, second = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{second:02}" if hours else f"{minutes}:{second:02}"


def watch(folder: Path, console: Console) -> Overview:
    """Show the overview until all has ended or Ctrl-C. Jobs go on either way."""
    found = overview(folder)
    if not console.is_terminal:
        states = [line.state for line in found.lines]
        while not found.over:
            time.sleep(WATCH_SECONDS)
            found = overview(folder)
            for line, before in zip(found.lines, states, strict=True):
                if line.state != before:
                    console.print(f"{_clock()} {line.label}: {line.state}  {line.why}", highlight=False, soft_wrap=True)
            states = [line.state for line in found.lines]
        console.print(table(found, console.width))
        return found
    with Live(table(found, console.width), console=console, auto_refresh=False) as live:
        while not found.over:
            time.sleep(WATCH_SECONDS)
            found = overview(folder)
            live.update(table(found, console.width), refresh=True)
    return found


def _clock() -> str:
    return datetime.now(timezone.utc).astimezone().strftime("%H:%M:%S")
