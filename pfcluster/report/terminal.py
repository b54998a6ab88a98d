"""Tables for the terminal, drawn by rich."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Container
from typing import TYPE_CHECKING, Literal

from pfcluster.report import tables
from pfcluster.report.rendering import Table
from pfcluster.report.study import Report
from pfcluster.system.terminal import plain_console

if TYPE_CHECKING:
    from rich.table import Table as RichTable

DROPPED_COLUMNS = (
    "parameters at test",
    "objective",
    "samples",
    "selected on",
    "mean class accuracy %",
    "macro F1 %",
)
"""Columns of the main table that a narrow terminal omits, in this order."""


def main_table(report: Report, width: int | None = None) -> RichTable:
    """The main table for a terminal of `width` columns (default: the current one); 80 columns fit both intervals.

    Without classification runs: the table of pre-training runs, else of all runs.
    """
    table = tables.main_table(report.groups) or tables.mae_table(report.groups) or tables.runs_table(report.runs, ())
    on_test = any(group.selection_split == "test" for group in report.groups)
    droppable = [name for name in DROPPED_COLUMNS if not (on_test and name == "selected on")]
    available = width or shutil.get_terminal_size().columns
    ruler = plain_console(width=10_000)
    for n_dropped in range(2, len(droppable) + 1):
        fitted = rich_table(table, droppable[:n_dropped])
        if ruler.measure(fitted).maximum <= available:
            break
    return fitted


def rich_table(table: Table, omitted: Container[str] = (), *, tight: bool = False) -> RichTable:
    """A table without the `omitted` columns. Headers wrap instead of widening a column. tight: without a frame."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    frame = box.SIMPLE_HEAD if tight else box.HEAVY_HEAD
    result = RichTable(title=Text(table.caption), caption=Text(table.note), box=frame, pad_edge=not tight)
    kept = [index for index, column in enumerate(table.columns) if column not in omitted]
    for index in kept:
        justify: Literal["left", "right"] = "left" if index < table.labels else "right"
        widest = max((len(row[index]) for row in table.rows), default=0)
        head = textwrap.fill(table.columns[index], max(widest, 8), break_long_words=False)
        result.add_column(Text(head), justify=justify, no_wrap=True)
    for row in table.rows:
        result.add_row(*(Text(row[index]) for index in kept))
    return result
