"""ExpW (Zhang et al. 2015): photos with the boxes of the faces that are labelled, several in some of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pfcluster.data.raw.base import (
    RawDataError,
    RawDataset,
    RawPhoto,
    ReadOptions,
    file_size,
    numbered_lines,
)
from pfcluster.emotions import name_of

LISTINGS = ("label/label.lst", "label.lst")
FOLDERS = ("image", "origin", "images")
COLUMNS = 8


def recognises(source: Path) -> bool:
    """Whether a folder holds ExpW's listing."""
    return any((source / listing).is_file() for listing in LISTINGS)


def read(source: Path, options: ReadOptions) -> RawDataset:
    """A photo for each labelled face, with its box. Raises RawDataError."""
    listing = next((source / name for name in LISTINGS if (source / name).is_file()), None)
    folder = next((source / name for name in FOLDERS if (source / name).is_dir()), None)
    if listing is None or folder is None:
        missing = " or ".join(LISTINGS) if listing is None else " or ".join(FOLDERS)
        raise RawDataError(f"{source} is no ExpW: it has no {missing}")
    rows = [(number, line.split()) for number, line in numbered_lines(listing)]
    faces = Counter(row[0] for _, row in rows)
    photos = tuple(_face(listing, folder, number, row, faces) for number, row in rows)
    return RawDataset("expw", "expw", photos, 0, str(folder))


def _face(listing: Path, folder: Path, number: int, row: list[str], faces: Counter[str]) -> RawPhoto:
    """`name face_id top left right bottom confidence label`."""
    try:
        if len(row) != COLUMNS or "/" in row[0]:
            raise ValueError(f"{len(row)} columns")
        top, left, right, bottom = map(float, row[2:6])
        if not (left < right and top < bottom):
            raise ValueError("the box is empty")
    except ValueError as error:
        raise RawDataError(
            f"{listing}, line {number}: it must be name, face, top, left, right, bottom, confidence, label ({error})"
        ) from error
    source = row[0] if faces[row[0]] == 1 else f"{row[0]}#{row[1]}"
    path = folder / row[0]
    label = name_of("expw", row[7])
    return RawPhoto(source, label, None, str(path), 0, file_size(path), box=(left, top, right, bottom))
