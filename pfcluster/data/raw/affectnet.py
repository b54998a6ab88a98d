"""AffectNet (Mollahosseini et al. 2017): the first release's CSVs, and the later one's arrays beside each photo.

Its validation set is the test split here, as in the literature: the authors' own test set was never published. Labels 8
to 10 (none, uncertain, no face) are no emotions; a build without labels takes those photos as well.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pfcluster.data.raw.base import (
    OwnSplit,
    Point,
    RawDataError,
    RawDataset,
    RawPhoto,
    ReadOptions,
    file_size,
    pictures_below,
    text_of,
)
from pfcluster.data.raw.landmarks import five_points
from pfcluster.emotions import name_of

TABLES: dict[str, OwnSplit] = {"training.csv": "train", "validation.csv": "test"}
AUTOMATIC = "automatically_annotated.csv"
TABLE_FOLDERS = ("", "Manually_Annotated_file_lists", "Manually_Annotated/Manually_Annotated_file_lists")
PHOTO_FOLDERS = (
    "Manually_Annotated/Manually_Annotated_Images",
    "Manually_Annotated_Images",
    "Manually_Annotated",
    "Automatically_Annotated/Automatically_Annotated_Images",
    "Automatically_Annotated_Images",
    "",
)
SETS: dict[str, OwnSplit] = {"train_set": "train", "val_set": "test"}
NAME, LABEL, POINTS = "subDirectory_filePath", "expression", "facial_landmarks"
BOX = ("face_x", "face_y", "face_width", "face_height")


def recognises(source: Path) -> bool:
    """Whether a folder has one of AffectNet's two layouts."""
    if any((source / name / "images").is_dir() and (source / name / "annotations").is_dir() for name in SETS):
        return True
    return bool(_tables(source))


def read(source: Path, options: ReadOptions) -> RawDataset:
    """The photos with their own splits, boxes and landmarks; no persons are known. Raises RawDataError."""
    tables = _tables(source)
    if tables:
        photos = [photo for table, split in tables for photo in _table_photos(source, table, split)]
        return RawDataset("affectnet", "affectnet", tuple(photos), 0, str(source))
    photos, others = [], 0
    for name, split in SETS.items():
        found, more = pictures_below(source / name / "images")
        others += more
        photos += [_annotated(source / name, f"{name}/images/{below}", path, split) for below, path in found]
    return RawDataset("affectnet", "affectnet", tuple(photos), others, str(source))


def _tables(source: Path) -> list[tuple[Path, OwnSplit | None]]:
    """The tables that are there, with their splits. The automatic labels count only where there are no others."""
    for folder in TABLE_FOLDERS:
        found: list[tuple[Path, OwnSplit | None]] = []
        for name, split in TABLES.items():
            if (source / folder / name).is_file() and NAME in _first_line(source / folder / name):
                found.append((source / folder / name, split))
        if found:
            return found
    automatic = source / AUTOMATIC
    return [(automatic, None)] if automatic.is_file() and NAME in _first_line(automatic) else []


def _first_line(table: Path) -> str:
    with open(table, "rb") as file:
        return file.readline(1000).decode("utf-8", "replace")


def _table_photos(source: Path, table: Path, split: OwnSplit | None) -> list[RawPhoto]:
    rows = csv.DictReader(io.StringIO(text_of(table), newline=""))
    missing = [name for name in (NAME, LABEL) if name not in (rows.fieldnames or ())]
    if missing:
        raise RawDataError(f"{table} has no column {missing[0]}: it is no table of AffectNet's")
    photos = []
    folders = [source / folder for folder in PHOTO_FOLDERS if (source / folder).is_dir()]
    for number, row in enumerate(rows, start=2):
        name = (row[NAME] or "").replace("\\", "/")
        path = next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)
        try:
            box, points = _box(row), _points(row)
        except ValueError as error:
            raise RawDataError(f"{table}, line {number}: box or landmarks are garbled ({error})") from error
        label = name_of("affectnet", row[LABEL] or "")
        size = file_size(path) if name else -1
        photos.append(
            RawPhoto(name, label, None, str(path) if name else "", 0, size, split=split, box=box, landmarks=points)
        )
    return photos


def _box(row: dict[str, str]) -> tuple[float, float, float, float] | None:
    if not all((row.get(name) or "").strip() for name in BOX):
        return None
    left, top, width, height = (float(row[name]) for name in BOX)
    return (left, top, left + width, top + height) if width > 0 and height > 0 else None


def _points(row: dict[str, str]) -> tuple[Point, ...]:
    """`x;y;x;y...` of 68 points; none where the cell is empty or holds a placeholder."""
    numbers = [float(part) for part in (row.get(POINTS) or "").split(";") if part.strip()]
    return five_points(_pairs(numbers)) if len(numbers) > 2 else ()


def _pairs(numbers: Sequence[float]) -> list[Point]:
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _annotated(folder: Path, source: str, path: Path, split: OwnSplit) -> RawPhoto:
    """A photo of the later release. What its annotations lack or garble, it has not."""
    label, points = "", ()  # type: tuple[str, tuple[Point, ...]]
    expression = _array(folder / "annotations" / f"{path.stem}_exp.npy")
    if expression is not None and expression.size == 1:
        written = str(expression.reshape(-1)[0]).strip()
        label = name_of("affectnet", written.removesuffix(".0"))
    landmarks = _array(folder / "annotations" / f"{path.stem}_lnd.npy")
    if landmarks is not None and landmarks.size == 136 and np.issubdtype(landmarks.dtype, np.number):
        points = five_points(_pairs(landmarks.reshape(-1).tolist()))
    return RawPhoto(source, label, None, str(path), 0, file_size(path), split=split, landmarks=points)


def _array(path: Path) -> np.ndarray[Any, Any] | None:
    """A stored array, never unpickled; None where there is none."""
    try:
        return np.load(path, allow_pickle=False) if path.stat().st_size < 2**20 else None
    except (OSError, ValueError, EOFError, SyntaxError):
        return None
