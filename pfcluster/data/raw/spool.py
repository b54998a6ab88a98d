"""Photos of parquet files, written one after another into one plain file that any process can read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from pfcluster.data.raw.base import RawDataError, RawDataset, RawPhoto, file_size
from pfcluster.data.raw.parquet import pictures
from pfcluster.runs.atomic_files import write_via_temporary

Rows = Mapping[int, int]
"""Row of a parquet file -> bytes of its photo."""


def spool(dataset: RawDataset, target: Path) -> RawDataset:
    """The dataset with its parquet photos' bytes in `target`; other photos stay as they are.

    A target that has the right size already is taken as it is. Raises RawDataError.
    """
    files = _wanted(dataset)
    starts, total = _starts(files)
    photos = tuple(_spooled(photo, starts, target) if photo.form == "parquet" else photo for photo in dataset.photos)
    if files and file_size(target) != total:
        write_via_temporary(target, lambda file: _fill(file, files))
    return replace(dataset, photos=photos)


def _wanted(dataset: RawDataset) -> dict[str, Rows]:
    """Parquet file -> its rows that the dataset lists, sorted."""
    listed = sorted({(p.path, p.offset, p.size) for p in dataset.photos if p.form == "parquet" and p.size >= 0})
    files: dict[str, dict[int, int]] = {}
    for path, row, size in listed:
        files.setdefault(path, {})[row] = size
    return dict(files)


def _starts(files: Mapping[str, Rows]) -> tuple[dict[tuple[str, int], int], int]:
    """Where each photo begins in the spooled file, and that file's size."""
    starts, at = {}, 0
    for path, rows in files.items():
        for row, size in rows.items():
            starts[path, row] = at
            at += size
    return starts, at


def _spooled(photo: RawPhoto, starts: Mapping[tuple[str, int], int], target: Path) -> RawPhoto:
    if photo.size < 0:
        return replace(photo, form="file", path="", offset=0)
    return replace(photo, form="file", path=str(target), offset=starts[photo.path, photo.offset])


def _fill(target: BinaryIO, files: Mapping[str, Rows]) -> None:
    for path, rows in files.items():
        left = len(rows)
        for row, data in enumerate(pictures(Path(path))):
            if row not in rows:
                continue
            if data is None or len(data) != rows[row]:
                raise RawDataError(f"{path}, row {row} has changed since it was listed; start again")
            target.write(data)
            left -= 1
        if left:
            raise RawDataError(f"{path} has lost {left} rows since it was listed; start again")
