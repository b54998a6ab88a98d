"""AffectNet (Mollahosseini, Hasani and Mahoor 2017): the older CSV layout, and the newer layout of .npy files.

AffectNet's test set is not public, so its validation set is used as the "test" split, as in the literature.
"""

from __future__ import annotations

import csv
import io
import math
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pfcluster.data.labels import name_of
from pfcluster.data.raw.base import (
    OfficialSplit,
    Point,
    RawDataError,
    RawDataset,
    RawPhoto,
    ReadOptions,
    below,
    file_size,
    find_images,
    leaves_folder,
)
from pfcluster.data.raw.landmarks import five_points
from pfcluster.data.raw.tables import read_text

Box = tuple[float, float, float, float]

NAME, EXPRESSION, LANDMARKS = "subDirectory_filePath", "expression", "facial_landmarks"
BOX = ("face_x", "face_y", "face_width", "face_height")
HEADER = (NAME, *BOX, LANDMARKS, EXPRESSION, "valence", "arousal")
MISSING = ("", "null", "nan")
"""Cells, in lower case, that mean a missing value."""

MANUAL: Mapping[str, OfficialSplit] = {"training.csv": "train", "validation.csv": "test"}
AUTOMATIC: Mapping[str, OfficialSplit] = {"automatically_annotated.csv": "train"}
"""Used only if there are no manual annotations."""
LIST_FOLDERS = ("", "Manually_Annotated_file_lists", "Automatically_annotated_file_list")
PHOTO_FOLDERS = ("Manually_Annotated/Manually_Annotated_Images", "Manually_Annotated_Images")
AUTOMATIC_FOLDERS = ("Automatically_Annotated/Automatically_Annotated_Images", "Automatically_Annotated_Images")
NPY_FOLDERS: Mapping[str, OfficialSplit] = {"train_set": "train", "val_set": "test"}
ARRAY_ERRORS = (
    *(OSError, ValueError, TypeError, EOFError, AttributeError, SyntaxError, OverflowError, MemoryError),
    *(SystemError, tokenize.TokenError),
)
"""Raised by numpy for files that are damaged or not arrays."""


def recognises(source: Path) -> bool:
    """Whether a folder has both manual CSV files, the automatic one, or `train_set`/`val_set` with annotations; with
    AffectNet's columns and array files, as others use these names too.
    """
    lists = _lists(source, MANUAL)
    lists = lists if len(lists) == len(MANUAL) else _lists(source, AUTOMATIC)
    if lists:
        return all(_has_columns(table) for table, _ in lists)
    folders = _npy_folders(source)
    return any(next((source / name / "annotations").glob("*_exp.npy"), None) is not None for name, _ in folders)


def _has_columns(table: Path) -> bool:
    """Whether the first row of a CSV is AffectNet's header, or may be a row of a file without one. A damaged file may
    be AffectNet's: reading it explains the damage.
    """
    try:
        first = next(csv.reader(io.StringIO(next(iter(read_text(table).splitlines()), ""))), [])
    except (RawDataError, csv.Error):
        return True
    names = [cell.strip() for cell in first]
    return not names or NAME in names or len(names) == len(HEADER) or {EXPRESSION, LANDMARKS} <= set(names)


def read(source: Path, _options: ReadOptions) -> RawDataset:
    """List the photos in CSV order, or by name in the newer layout. Raises RawDataError."""
    if _npy_folders(source):
        return _read_npy(source)
    for names, folders in ((MANUAL, PHOTO_FOLDERS), (AUTOMATIC, AUTOMATIC_FOLDERS)):
        lists = _lists(source, names)
        if lists:
            folder = next((source / name for name in folders if (source / name).is_dir()), source)
            photos = [_photo(location, row, folder, split) for table, split in lists for location, row in _rows(table)]
            return RawDataset("affectnet", "affectnet", tuple(photos), {}, str(folder))
    raise RawDataError(
        f"{source} is not AffectNet: it has neither {' and '.join(MANUAL)} nor train_set/annotations;"
        " pass the folder that contains them"
    )


def _lists(source: Path, names: Mapping[str, OfficialSplit]) -> list[tuple[Path, OfficialSplit]]:
    """The CSV files with these names that exist, each with its split."""
    tables = []
    for name, split in names.items():
        table = next((source / folder / name for folder in LIST_FOLDERS if (source / folder / name).is_file()), None)
        if table is not None:
            tables.append((table, split))
    return tables


def _npy_folders(source: Path) -> list[tuple[str, OfficialSplit]]:
    return [
        (name, split)
        for name, split in NPY_FOLDERS.items()
        if (source / name / "images").is_dir() and (source / name / "annotations").is_dir()
    ]


def _rows(table: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a CSV by column name, each with its location. Files without a header have AffectNet's default columns."""
    rows = csv.reader(io.StringIO(read_text(table), newline=""), strict=True)
    header: Sequence[str] = ()
    try:
        for row in rows:
            location = f"{table}, line {rows.line_num}"
            if not row:
                continue
            if not header:
                header = _header(table, row)
                if NAME in header and header[0] == row[0].strip():
                    continue
            if len(row) != len(header):
                raise RawDataError(
                    f"{location}: expected {len(header)} cells, got {len(row)}; correct it or download the file again"
                )
            yield location, {name: cell.strip() for name, cell in zip(header, row, strict=True)}
    except csv.Error as error:
        raise RawDataError(f"{table}, line {rows.line_num}: invalid CSV ({error}); download the file again") from error


def _header(table: Path, first: Sequence[str]) -> Sequence[str]:
    """Column names: the first row, or HEADER if the first row is data (nine cells, the first a file name)."""
    names = [cell.strip() for cell in first]
    missing = [name for name in HEADER[:7] if name not in names]
    if len(missing) == 7 and len(names) == len(HEADER) and "." in names[0]:
        return HEADER
    if missing:
        raise RawDataError(f"{table}, line 1: no column {', '.join(missing)}; the header must be {','.join(HEADER)}")
    if len(set(names)) != len(names):
        raise RawDataError(f"{table}, line 1: duplicate column names; the header must be {','.join(HEADER)}")
    return names


def _photo(location: str, row: Mapping[str, str], folder: Path, split: OfficialSplit) -> RawPhoto:
    name = row[NAME].replace("\\", "/")
    if not name or "\0" in name or leaves_folder(name):
        raise RawDataError(
            f"{location}: {NAME} is not a path below the photo folder; correct the line or download the file again"
        )
    try:
        box, landmarks = _box([row[name] for name in BOX]), _landmarks(row[LANDMARKS])
    except ValueError as error:
        raise RawDataError(
            f"{location}: invalid face box or landmarks ({error}); correct the line or download the file again"
        ) from error
    label, path = name_of("affectnet", row[EXPRESSION]), folder / name
    size = file_size(path)
    return RawPhoto(name, label, None, str(path), 0, size, split=split, box=box, landmarks=landmarks)


def _box(cells: Sequence[str]) -> Box | None:
    if any(cell.lower() in MISSING for cell in cells):
        return None
    x, y, width, height = _numbers(cells)
    return (x, y, x + width, y + height) if width > 0 and height > 0 else None


def _landmarks(cell: str) -> tuple[Point, ...]:
    if cell.lower() in MISSING:
        return ()
    numbers = _numbers(cell.rstrip(";").split(";"))
    if len(numbers) % 2:
        raise ValueError(f"{len(numbers)} numbers do not form pairs")
    return five_points(list(zip(numbers[::2], numbers[1::2], strict=True)))


def _numbers(cells: Sequence[str]) -> list[float]:
    numbers = [float(cell) for cell in cells]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a number is not finite")
    return numbers


def _read_npy(source: Path) -> RawDataset:
    photos: list[RawPhoto] = []
    skipped: Counter[str] = Counter()
    for folder, split in _npy_folders(source):
        images, others = find_images(source / folder / "images")
        skipped += below(f"{folder}/images", others)
        for name, path in images:
            annotation = source / folder / "annotations" / path.stem
            label, landmarks = _npy_label(Path(f"{annotation}_exp.npy")), _npy_landmarks(Path(f"{annotation}_lnd.npy"))
            size, relative = file_size(path), f"{folder}/images/{name}"
            photos.append(RawPhoto(relative, label, None, str(path), 0, size, split=split, landmarks=landmarks))
    return RawDataset("affectnet", "affectnet", tuple(photos), skipped, str(source))


def _npy_numbers(path: Path) -> list[float]:
    """Numbers of an array, which may be stored as text; empty if the file is missing or damaged."""
    try:
        with open(path, "rb") as file:
            return _numbers(np.lib.format.read_array(file, allow_pickle=False).reshape(-1).tolist())
    except ARRAY_ERRORS:
        return []


def _npy_label(path: Path) -> str:
    """Name of the emotion; empty if the file does not hold a single integer."""
    numbers = _npy_numbers(path)
    return name_of("affectnet", str(int(numbers[0]))) if len(numbers) == 1 and numbers[0].is_integer() else ""


def _npy_landmarks(path: Path) -> tuple[Point, ...]:
    numbers = _npy_numbers(path)
    return five_points(list(zip(numbers[::2], numbers[1::2], strict=True))) if len(numbers) == 136 else ()
