"""The metadata tables of Hugging Face's `imagefolder`, beside the photos that they describe."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pfcluster.data.raw.base import OfficialSplit, RawDataError, RawPhoto, ReadOptions, leaves_folder
from pfcluster.data.raw.split_columns import table_splits
from pfcluster.data.raw.split_names import IGNORE, OTHER
from pfcluster.data.raw.tables import Table, read_table

METADATA = ("metadata.csv", "metadata.jsonl")
Splits = Sequence[OfficialSplit | None]


def metadata_tables(root: Path, images: Sequence[tuple[str, Path]]) -> list[Table]:
    """Tables of this name in the folders of the images and in those above, if they name images."""
    folders = {root}
    for _, path in images:
        for folder in path.parents:
            if folder in folders:
                break
            folders.add(folder)
    paths = sorted(folder / name for folder in folders for name in METADATA if (folder / name).is_file())
    return [table for table in map(read_table, paths) if table.find("image") is not None]


def metadata_splits(
    tables: Sequence[Table], photos: Sequence[RawPhoto], options: ReadOptions, root: Path
) -> tuple[Splits | None, str, ReadOptions]:
    """The splits that the tables give their rows, and a sentence on them, as `table_splits`; and the options for the
    folders: each name of --splits is that of a cell or of a folder. Raises RawDataError.
    """
    folders = {folder for photo in photos for folder in PurePosixPath(photo.source).parents}
    names = {name for folder in folders for name in (str(folder), folder.name)} | {OTHER, IGNORE}
    cells = {cell for table in tables for row in table.rows for cell in map(str.strip, row)}
    of_cells = {name: value for name, value in options.splits.items() if name in cells or name not in names - cells}
    of_cells |= {name: value for name, value in options.splits.items() if name in (OTHER, IGNORE)}
    source = tables[0].path if len(tables) == 1 else root
    splits, note = table_splits(tables, of_cells, source)
    if splits is None or not any(splits):
        return splits, note, options
    of_folders = {name: value for name, value in options.splits.items() if name in names or name not in cells}
    return splits, note, dataclasses.replace(options, splits=of_folders)


class MetadataRow(NamedTuple):
    """A table's row of an image; cells without a value are empty."""

    label: str
    identity: str
    split: OfficialSplit | None


def with_metadata(
    photos: Sequence[RawPhoto], root: Path, tables: Sequence[Table], splits: Splits | None
) -> Iterator[RawPhoto]:
    """Photos with the labels, identities and splits of their rows in metadata tables, once for each row, as in a CSV;
    photos without a row are left out if the tables have labels. `splits`: of the rows of all tables. Raises
    RawDataError.
    """
    labelled = any(table.find("label") is not None for table in tables)
    rows = _rows_by_image(root, tables, splits)
    for photo in photos:
        if photo.source not in rows:
            missing = ("no row in the metadata", "") if labelled else photo.left_out
            yield dataclasses.replace(photo, left_out=missing)
        for row in rows.pop(photo.source, ()):
            values = {"identity": row.identity or None, "split": row.split or photo.split}
            values |= {"label": row.label, "left_out": None} if labelled else {}
            yield dataclasses.replace(photo, **values)  # type: ignore[arg-type]
    of_folder = {PurePosixPath(photo.source).parent: photo.split for photo in photos}
    for name, of_image in rows.items():
        folder = next((folder for folder in PurePosixPath(name).parents if folder in of_folder), None)
        for row in of_image:
            split = row.split or (of_folder[folder] if folder is not None else None)
            yield RawPhoto(name, row.label, row.identity or None, str(root / name) if name else "", split=split)


def _rows_by_image(root: Path, tables: Sequence[Table], splits: Splits | None) -> dict[str, list[MetadataRow]]:
    """The rows of each image, by its name below `root`: all of one table; "" for rows without an image. Raises
    RawDataError for a row outside the table's folder, and if two tables differ about an image.
    """
    rows: dict[str, list[MetadataRow]] = {}
    table_of: dict[str, Path] = {}
    of_rows = iter(splits if splits is not None else [None] * sum(len(table.rows) for table in tables))
    for table in tables:
        of_table: dict[str, list[MetadataRow]] = {}
        columns = [table.cells(table.find(column)) for column in ("label", "identity")]
        below = table.path.parent.relative_to(root)
        for image, label, identity in zip(table.cells(table.require("image")), *columns, strict=True):
            name = image.replace("\\", "/")
            if leaves_folder(name):
                raise RawDataError(f"{table.path} names an image outside its folder, {name!r}; correct the row")
            place = (below / name).as_posix() if name else ""
            of_table.setdefault(place, []).append(MetadataRow(label, identity, next(of_rows)))
        rows.setdefault("", []).extend(of_table.pop("", []))
        for name, of_image in of_table.items():
            if of_image != rows.setdefault(name, of_image):
                raise RawDataError(
                    f"{table_of[name]} and {table.path} both have rows of {name}, and differ in them; remove one of the"
                    " tables, or its rows of the same images"
                )
            table_of.setdefault(name, table.path)
    return rows
