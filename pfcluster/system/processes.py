"""Processes of this machine."""

from __future__ import annotations

from pathlib import Path

START_TIME = 19
"""Position of the start time in /proc/PID/stat, counted from the field after the process's name."""


def process_started(pid: int) -> int | None:
    """When a process started, in clock ticks since the machine did; None if there is none. A number that is given again
    has another start.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[START_TIME])
