"""Extraction of the photos of parquet files into one flat file that any process can read by offset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from pfcluster.data.raw.base import RawDataError, RawDataset, RawPhoto, file_size
from pfcluster.data.raw.parquet import read_images
from pfcluster.system.atomic_files import write_via_temporary

Rows = Mapping[int, int]
"""Size of the photo in bytes, by row of a parquet file."""


def spool(dataset: RawDataset, target: Path) -> RawDataset:
    """Extract the photos of parquet files into `target`, and point the dataset to them. Other photos are unchanged.

    A target that already has the expected size is not written again. Raises RawDataError.
    """
    files = _parquet_rows(dataset)
    starts, total = _starts(files)
    photos = tuple(_spooled(photo, starts, target) if photo.form == "parquet" else photo for photo in dataset.photos)
    if files and file_size(target) != total:
        write_via_temporary(target, lambda file: _fill(file, files))
    return replace(dataset, photos=photos)


def _parquet_rows(dataset: RawDataset) -> dict[str, Rows]:
    """Rows that the dataset lists, by parquet file, sorted."""
    listed = sorted({(p.path, p.offset, p.size) for p in dataset.photos if p.form == "parquet" and p.size >= 0})
    files: dict[str, dict[int, int]] = {}
    for path, row, size in listed:
        files.setdefault(path, {})[row] = size
    return dict(files)


def _starts(files: Mapping[str, Rows]) -> tuple[dict[tuple[str, int], int], int]:
    """Offset of each photo, by parquet file and row, in the target file, and the size of that file."""
    starts, offset = {}, 0
    for path, rows in files.items():
        for row, size in rows.items():
            starts[path, row] = offset
            offset += size
    return starts, offset


def _spooled(photo: RawPhoto, starts: Mapping[tuple[str, int], int], target: Path) -> RawPhoto:
    if photo.size < 0:
        return replace(photo, form="file", path="", offset=0)
    return replace(photo, form="file", path=str(target), offset=starts[photo.path, photo.offset])


def _fill(target: BinaryIO, files: Mapping[str, Rows]) -> None:
    for path, rows in files.items():
        missing = len(rows)
        for row, data in enumerate(read_images(Path(path))):
            if row not in rows:
                continue
            if data is None or len(data) != rows[row]:
                raise RawDataError(f"{path}, row {row} has changed since it was listed; run the command again")
            target.write(data)
            missing -= 1
        if missing:
            raise RawDataError(f"{path} has lost {missing} rows since it was listed; run the command again")
