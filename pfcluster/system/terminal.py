"""Consoles that print text as it is. Names of runs, folders and classes, and errors of libraries, may look like rich's
markup (`exp[lr=1e-3]`, `[/tmp/x]`) or emoji codes (`:warning:`); nothing here interprets them. Styles are given as
`style=` or as `rich.text.Text`.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.progress import TextColumn
from rich.text import Text


def plain_console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console that interprets neither markup nor emoji codes, in tables and titles as well."""
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def plain_column(text_format: str) -> TextColumn:
    """A text column of a progress display, which would interpret markup whatever its console does."""
    return TextColumn(text_format, markup=False)


def print_warnings(warnings: Iterable[str], console: Console) -> None:
    """One line for each warning."""
    for warning in warnings:
        console.print(labelled("warning", "yellow", warning), soft_wrap=True)


def labelled(label: str, style: str, message: str) -> Text:
    """`LABEL: MESSAGE` with a coloured label, such as an error or a warning."""
    return Text.assemble((f"{label}:", style), " ", message)
