"""CSV files that may be opened in spreadsheets: no cell is interpreted as a formula, whatever its text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\n")
"""A spreadsheet runs a text that begins with one of these as a formula, which may start programs."""


def csv_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A header and rows as CSV. None is an empty cell; text that a spreadsheet would run begins with an apostrophe."""
    return csv_rows([header]) + csv_rows(rows)


def csv_rows(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV, with cells as in `csv_table`."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue()


def _cell(value: object) -> object:
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    text = value.replace("\r\n", "\n").replace("\r", "\n")  # csv does not quote a carriage return, which ends a row
    return f"'{text}" if text.startswith(FORMULA_STARTS) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
