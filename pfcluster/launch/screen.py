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

from pfcluster.launch.status import BAD, Overview, overview

COLORS = {
    "finished": "green",
    "running": "cyan",
    "evaluating": "cyan",
    "failed": "red",
    "lost": "red",
    "timed out": "red",
}
WATCH_SECONDS = 5.0


def table(found: Overview) -> RenderableType:
    """The overview as a table, with the errors below it."""
    shown = Table(title=f"{found.name}  ({found.folder})", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("stage", "state", "step", "loss", "images/s", "left", "restarts", "nodes", "job"):
        right = name in ("step", "loss", "images/s", "left", "restarts")
        shown.add_column(name, justify="right" if right else "left", no_wrap=name != "state")
    for line in found.lines:
        step = "" if line.step is None else f"{line.step:,}" + (f" / {line.total:,}" if line.total else "")
        restarts = f"{line.restarts}" + (f" ({line.failures} failed)" if line.failures else "") if line.restarts else ""
        state = Text(line.state, style=COLORS.get(line.state, ""))
        if line.why:
            state.append(f"  {line.why}", style="dim")
        shown.add_row(
            line.label,
            state,
            step,
            "" if line.loss is None else f"{line.loss:.3f}",
            "" if line.rate is None else f"{line.rate:,.0f}",
            "" if line.seconds_left is None else duration(line.seconds_left),
            restarts,
            line.nodes,
            line.job,
        )
    below: list[RenderableType] = [shown]
    for line in found.lines:
        if line.error:
            below.append(Text(f"{line.label}: {line.error}", style="red" if line.state in BAD else "yellow"))
    if found.warning:
        below.append(Text(f"warning: {found.warning}", style="yellow"))
    below.append(
        Text(f"logs: {found.folder}/RUN/seed-N/logs/rank-N.log, or `jobs/launch.py logs {found.folder}`", style="dim")
    )
    return Group(*below)


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
        console.print(table(found))
        return found
    with Live(table(found), console=console, auto_refresh=False) as live:
        while not found.over:
            time.sleep(WATCH_SECONDS)
            found = overview(folder)
            live.update(table(found), refresh=True)
    return found


def _clock() -> str:
    return datetime.now(timezone.utc).astimezone().strftime("%H:%M:%S")
