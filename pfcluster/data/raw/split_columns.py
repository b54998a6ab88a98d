"""Split columns that are not called so: `set`, `fold`, `dataset`. They are recognised by their cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pfcluster.data.raw.base import OfficialSplit, RawDataError
from pfcluster.data.raw.split_names import IGNORE, cell_meanings, column_splits
from pfcluster.data.raw.tables import Table

MAX_CELLS = 50
"""Distinct cells of a column that may be one of splits: titles and names of files have more."""


Cells = Sequence[str | None]
"""Cells of a column, None for rows of tables without the column."""


def table_splits(
    tables: Sequence[Table], given: Mapping[str, str], source: object
) -> tuple[list[OfficialSplit | None] | None, str]:
    """As `splits_of_cells`, for the rows of all tables; a column that is called as in `tables.COLUMNS` comes first."""
    if IGNORE in given:
        return None, ""
    named: list[str | None] = []
    for table in tables:
        index = table.find("split")
        named += [None] * len(table.rows) if index is None else table.cells(index)
    if any(named):
        return _splits(named, given, source), ""
    others = [(table.others(), [None] * len(table.rows)) for table in tables]
    names = dict.fromkeys(name for columns, _ in others for name in columns)
    cells = {name: [cell for columns, none in others for cell in columns.get(name, none)] for name in names}
    return splits_of_cells(cells, given, source)


def _splits(cells: Cells, given: Mapping[str, str], source: object) -> list[OfficialSplit | None]:
    splits = iter(column_splits([cell for cell in cells if cell is not None], given, source))
    return [None if cell is None else next(splits) for cell in cells]


def splits_of_cells(
    columns: Mapping[str, Cells], given: Mapping[str, str], source: object
) -> tuple[list[OfficialSplit | None] | None, str]:
    """The splits that a column of any name gives the rows, and a sentence that names it; None and "" if none does.

    `columns`: cells of the columns without a meaning, by name. `given`: as `name_options.split_options` returns it.
    Raises RawDataError if cells of the column mean no split, or if two columns give different splits.
    """
    if IGNORE in given:
        return None, ""
    splits = {
        name: _splits(cells, given, f"{source}, column {name!r}")
        for name, cells in columns.items()
        if _are_splits(cells)
    }
    if not splits:
        return None, ""
    name, first = next(iter(splits.items()))
    for other, others in splits.items():
        differing = sum(one != two for one, two in zip(first, others, strict=True))
        if differing:
            raise RawDataError(
                f"{source}: columns {name!r} and {other!r} both name splits, and differ in {differing} rows; rename"
                f" the one to use to 'split', or split all photos anew with --splits {IGNORE}"
            )
    counts = Counter(split or "none" for split in first)
    return first, (
        f"its splits are those of column {name!r} ({', '.join(f'{split}: {n}' for split, n in counts.items())});"
        f" --splits {IGNORE} splits all photos anew"
    )


def _are_splits(cells: Cells) -> bool:
    """Whether most of the cells that are not empty mean a split, some the training split and some another."""
    counts = Counter(cell for cell in cells if cell)
    if len(counts) > MAX_CELLS:
        return False
    meanings = {cell: meaning for cell, meaning in cell_meanings(counts).items() if meaning is not None}
    named = sum(counts[cell] for cell in meanings)
    return "train" in meanings.values() and len(set(meanings.values())) > 1 and 2 * named > sum(counts.values())
