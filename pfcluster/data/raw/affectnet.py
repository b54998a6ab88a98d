"""AffectNet (Mollahosseini, Hasani and Mahoor 2017): the older CSV files, and the newer folders of .npy files.

AffectNet's real test set is not public, so its validation set is the "test" split here, as in the literature.
"""

from __future__ import annotations

import csv
import io
import math
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pfcluster.data.labels import name_of
from pfcluster.data.raw.base import (
    OwnSplit,
    Point,
    RawDataError,
    RawDataset,
    RawPhoto,
    ReadOptions,
    file_size,
    leads_out,
    pictures_below,
    text_of,
)
from pfcluster.data.raw.landmarks import five_points

Box = tuple[float, float, float, float]

NAME, EXPRESSION, LANDMARKS = "subDirectory_filePath", "expression", "facial_landmarks"
BOX = ("face_x", "face_y", "face_width", "face_height")
HEADER = (NAME, *BOX, LANDMARKS, EXPRESSION, "valence", "arousal")
NOTHING = ("", "null", "nan")
"""Cells, in small letters, that stand for no value."""

MANUAL: Mapping[str, OwnSplit] = {"training.csv": "train", "validation.csv": "test"}
AUTOMATIC: Mapping[str, OwnSplit] = {"automatically_annotated.csv": "train"}
"""Read only where there is nothing that people annotated."""
LIST_FOLDERS = ("", "Manually_Annotated_file_lists", "Automatically_annotated_file_list")
PHOTO_FOLDERS = ("Manually_Annotated/Manually_Annotated_Images", "Manually_Annotated_Images")
AUTOMATIC_FOLDERS = ("Automatically_Annotated/Automatically_Annotated_Images", "Automatically_Annotated_Images")
NPY_FOLDERS: Mapping[str, OwnSplit] = {"train_set": "train", "val_set": "test"}
BROKEN_ARRAY = (
    *(OSError, ValueError, TypeError, EOFError, AttributeError, SyntaxError, OverflowError, MemoryError),
    *(SystemError, tokenize.TokenError),
)
"""What numpy raises on files that are no arrays, or damaged ones."""


def recognises(source: Path) -> bool:
    """Whether a folder holds both CSV files, or the automatic one, or a `train_set` or `val_set` with annotations."""
    lists = _lists(source, MANUAL)
    return len(lists) == len(MANUAL) or bool(_lists(source, AUTOMATIC)) or bool(_npy_folders(source))


def read(source: Path, options: ReadOptions) -> RawDataset:
    """The photos in the order of the lists, or by name in the newer layout. Raises RawDataError."""
    if _npy_folders(source):
        return _read_npy(source)
    for names, folders in ((MANUAL, PHOTO_FOLDERS), (AUTOMATIC, AUTOMATIC_FOLDERS)):
        lists = _lists(source, names)
        if lists:
            folder = next((source / name for name in folders if (source / name).is_dir()), source)
            photos = [_listed(where, row, folder, split) for table, split in lists for where, row in _rows(table)]
            return RawDataset("affectnet", "affectnet", tuple(photos), 0, str(folder))
    raise RawDataError(
        f"{source} is no AffectNet: it has neither {' and '.join(MANUAL)} nor train_set/annotations;"
        " give the folder that holds them"
    )


def _lists(source: Path, names: Mapping[str, OwnSplit]) -> list[tuple[Path, OwnSplit]]:
    """The lists of these names that are there, each with its split."""
    found = []
    for name, split in names.items():
        place = next((source / folder / name for folder in LIST_FOLDERS if (source / folder / name).is_file()), None)
        if place is not None:
            found.append((place, split))
    return found


def _npy_folders(source: Path) -> list[tuple[str, OwnSplit]]:
    return [
        (name, split)
        for name, split in NPY_FOLDERS.items()
        if (source / name / "images").is_dir() and (source / name / "annotations").is_dir()
    ]


def _rows(table: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A list's rows by column, each with where it stands. Copies whose header is lost have AffectNet's own columns."""
    rows = csv.reader(io.StringIO(text_of(table), newline=""), strict=True)
    header: Sequence[str] = ()
    try:
        for row in rows:
            where = f"{table}, line {rows.line_num}"
            if not row:
                continue
            if not header:
                header = _header(table, row)
                if NAME in header and header[0] == row[0].strip():
                    continue
            if len(row) != len(header):
                raise RawDataError(f"{where}: {len(row)} cells, not {len(header)}; correct it or fetch the file again")
            yield where, {name: cell.strip() for name, cell in zip(header, row, strict=True)}
    except csv.Error as error:
        raise RawDataError(f"{table}, line {rows.line_num}: no readable CSV ({error}); fetch the file again") from error


def _header(table: Path, first: Sequence[str]) -> Sequence[str]:
    """The names of the columns, which a first row of nine cells with a file's name in it does not say."""
    names = [cell.strip() for cell in first]
    missing = [name for name in HEADER[:7] if name not in names]
    if len(missing) == 7 and len(names) == len(HEADER) and "." in names[0]:
        return HEADER
    if missing:
        raise RawDataError(f"{table}, line 1: no column {', '.join(missing)}; its header must be {','.join(HEADER)}")
    if len(set(names)) != len(names):
        raise RawDataError(f"{table}, line 1: two columns of one name; its header must be {','.join(HEADER)}")
    return names


def _listed(where: str, row: Mapping[str, str], folder: Path, split: OwnSplit) -> RawPhoto:
    name = row[NAME].replace("\\", "/")
    if not name or "\0" in name or leads_out(name):
        raise RawDataError(
            f"{where}: no name of a photo below the folder in {NAME}; correct it or fetch the file again"
        )
    try:
        box, landmarks = _box([row[name] for name in BOX]), _landmarks(row[LANDMARKS])
    except ValueError as error:
        raise RawDataError(
            f"{where}: the face's box or landmarks are not the numbers that they should be ({error});"
            " correct the line or fetch the file again"
        ) from error
    label, path = name_of("affectnet", row[EXPRESSION]), folder / name
    size = file_size(path)
    return RawPhoto(name, label, None, str(path), 0, size, split=split, box=box, landmarks=landmarks)


def _box(cells: Sequence[str]) -> Box | None:
    if any(cell.lower() in NOTHING for cell in cells):
        return None
    x, y, width, height = _numbers(cells)
    return (x, y, x + width, y + height) if width > 0 and height > 0 else None


def _landmarks(cell: str) -> tuple[Point, ...]:
    if cell.lower() in NOTHING:
        return ()
    numbers = _numbers(cell.rstrip(";").split(";"))
    if len(numbers) % 2:
        raise ValueError(f"{len(numbers)} numbers are no pairs")
    return five_points(list(zip(numbers[::2], numbers[1::2], strict=True)))


def _numbers(cells: Sequence[str]) -> list[float]:
    numbers = [float(cell) for cell in cells]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a number is not finite")
    return numbers


def _read_npy(source: Path) -> RawDataset:
    photos, others = [], 0
    for folder, split in _npy_folders(source):
        found, passed_over = pictures_below(source / folder / "images")
        others += passed_over
        for name, path in found:
            annotation = source / folder / "annotations" / path.stem
            label, landmarks = _npy_label(Path(f"{annotation}_exp.npy")), _npy_landmarks(Path(f"{annotation}_lnd.npy"))
            size, written = file_size(path), f"{folder}/images/{name}"
            photos.append(RawPhoto(written, label, None, str(path), 0, size, split=split, landmarks=landmarks))
    return RawDataset("affectnet", "affectnet", tuple(photos), others, str(source))


def _npy_numbers(path: Path) -> list[float]:
    """An array's numbers, which may be written as text; none where the file is missing or broken."""
    try:
        with open(path, "rb") as file:
            return _numbers(np.lib.format.read_array(file, allow_pickle=False).reshape(-1).tolist())
    except BROKEN_ARRAY:
        return []


def _npy_label(path: Path) -> str:
    """The emotion's name; empty where the file does not hold one whole number."""
    numbers = _npy_numbers(path)
    return name_of("affectnet", str(int(numbers[0]))) if len(numbers) == 1 and numbers[0].is_integer() else ""


def _npy_landmarks(path: Path) -> tuple[Point, ...]:
    numbers = _npy_numbers(path)
    return five_points(list(zip(numbers[::2], numbers[1::2], strict=True))) if len(numbers) == 136 else ()
