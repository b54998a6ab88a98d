"""The metadata tables of Hugging Face's `imagefolder`, beside the photos that they describe."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

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


def with_metadata(
    photos: Sequence[RawPhoto], root: Path, tables: Sequence[Table], splits: Splits | None
) -> Iterator[RawPhoto]:
    """Photos with the labels, persons and splits of their rows in metadata tables; photos without a row are left out
    if the tables have labels. `splits`: of the rows of all tables. Raises RawDataError.
    """
    rows: dict[str, tuple[str, str, OfficialSplit | None]] = {}
    labelled = False
    of_rows = iter(splits if splits is not None else [None] * sum(len(table.rows) for table in tables))
    for table in tables:
        labelled |= table.find("label") is not None
        columns = [table.cells(table.find(column)) for column in ("label", "identity")]
        below = table.path.parent.relative_to(root)
        for image, label, person in zip(table.cells(table.require("image")), *columns, strict=True):
            name = image.replace("\\", "/")
            if leaves_folder(name):
                raise RawDataError(f"{table.path} names an image outside its folder, {name!r}; correct the row")
            rows[(below / name).as_posix()] = (label, person, next(of_rows))
    for photo in photos:
        row = rows.pop(photo.source, None)
        if row is None:
            missing = ("no row in the metadata", "") if labelled else photo.left_out
            yield dataclasses.replace(photo, left_out=missing)
            continue
        label, person, split = row
        values = {"identity": person or None, "split": split or photo.split}
        yield dataclasses.replace(photo, **values, **({"label": label, "left_out": None} if labelled else {}))  # type: ignore[arg-type]
    of_folder = {PurePosixPath(photo.source).parent: photo.split for photo in photos}
    for name, (label, person, split) in rows.items():
        folder = next((folder for folder in PurePosixPath(name).parents if folder in of_folder), None)
        split = split or (of_folder[folder] if folder is not None else None)
        yield RawPhoto(name, label, person or None, str(root / name), split=split)
