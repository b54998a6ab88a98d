"""What the commands that write a file have in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from pfcluster.runs.folder import RESULT_FILE, find_runs
from pfcluster.runs.output_inputs import input_states, record_inputs
from pfcluster.system.terminal import plain_console


@dataclass(frozen=True)
class Output:
    """A file that was written, and what is printed of its content."""

    path: Path
    notes: Sequence[str] = ()
    table: Table | None = None


def write_output(name: str, inputs: Iterable[Path], write: Callable[[], Output]) -> Path:
    """Write an output, record beside it which inputs it was made from, and print its table, its notes, and its path
    after `name`; returns the path.
    """
    states = input_states(inputs)
    output = write()
    record_inputs(output.path, states)
    console = plain_console()
    if output.table is not None:
        console.print(output.table)
    for note in output.notes:
        console.print(f"- {note}")
    console.print(f"{name}: {output.path}", soft_wrap=True)
    return output.path


def results_below(folder: Path) -> list[Path]:
    """The result files of all runs below a folder."""
    return [run / RESULT_FILE for run in find_runs(folder)]


def require_writable(option: str, path: Path) -> None:
    """Checks, before the work begins, that the file of an option can be written, and creates its folder. Raises
    ValueError, OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; pass the path of a file in it")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{option} {path}: {path.parent} cannot be written; check its permissions, or use another")
