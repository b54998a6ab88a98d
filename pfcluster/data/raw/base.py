"""Types and helpers that all readers of raw datasets share. A reader lists photos without opening them.

A `RawPhoto` holds the location of one photo's bytes, so any process can read them later. Labels are kept as written;
numeric labels become the names of the dataset's vocabulary in `data/labels.py`. Listings have the same order on every
machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pfcluster.data.labels import UnknownEmotionError, canonical_name

OfficialSplit = Literal["train", "validation", "test"]
Form = Literal["file", "pixels", "parquet"]
VotingMode = Literal["majority", "probability", "multi-target", "argmax"]
Point = tuple[float, float]

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
)
"""File name suffixes of images; decoding decides what a file really contains."""
MAX_FILE_BYTES = 256 * 2**20
"""Larger image files are refused without reading them."""


class RawDataError(ValueError):
    """A raw dataset cannot be read: names the file, the reason and the remedy."""


@dataclass(frozen=True)
class RawPhoto:
    """One photo of a raw dataset, as listed."""

    source: str
    """Name within the dataset, with forward slashes: path below the folder or in the tar, or the CSV's cell."""
    label: str
    """As written, or the name of a numeric label; empty if there is none."""
    identity: str | None
    """Person, if the listing names one."""
    path: str
    """File that contains the bytes; empty if a CSV row names no image."""
    offset: int = 0
    """Position of the photo in that file, in bytes; for "parquet" its row."""
    size: int = -1
    """Bytes of the photo; -1 if the file is missing."""
    form: Form = "file"
    """"pixels": grey values as text, as in FER2013's CSV. "parquet": a row of a parquet file (see spool.py)."""
    split: OfficialSplit | None = None
    """The dataset's official split, if it has one."""
    votes: tuple[float, ...] = ()
    """Fraction of the annotators' votes for each emotion of `labels.CANONICAL`; empty if there are none."""
    box: tuple[float, float, float, float] | None = None
    """Left, top, right, bottom of the labelled face in pixels of the photo, if listed."""
    landmarks: tuple[Point, ...] = ()
    """Both eyes, nose and both mouth corners as (x, y) in pixels of the photo, if listed."""


@dataclass(frozen=True)
class RawDataset:
    """The listing of a raw dataset."""

    kind: str
    """Name of its reader in `readers.READERS`."""
    name: str
    """Base name of the folder, CSV or tar."""
    photos: tuple[RawPhoto, ...]
    other_files: int = 0
    """Number of skipped files without an image suffix."""
    folder: str = ""
    """Folder of its photos, for messages."""
    votes: VotingMode | None = None
    """How annotators' votes were turned into labels. Accuracies under different modes are not comparable."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Options of the readers; the docstring of each field names the readers that use it."""

    images: Path | None = None
    """csv, ferplus: folder of the photos, if it is not next to the listing."""
    votes: VotingMode = "majority"
    """ferplus: how votes are turned into a label."""
    peak_frames: int = 1
    """ckplus: number of last frames of a sequence that get its label; the first frame is neutral."""
    originals: bool = False
    """rafdb, sfew: original photos instead of the aligned crops of the dataset's authors."""


def read_bytes(photo: RawPhoto) -> bytes:
    """The bytes of a photo's file; grey values as text become a PGM file.

    Raises OSError if the file is missing, larger than MAX_FILE_BYTES, not as long as listed, or holds no valid grey
    values.
    """
    assert photo.form != "parquet", "spool.py extracts parquet rows first"
    if photo.size > MAX_FILE_BYTES:
        raise OSError(f"{photo.size / 2**20:.0f} MiB; the limit of an image file is {MAX_FILE_BYTES // 2**20} MiB")
    with open(photo.path, "rb") as file:
        file.seek(photo.offset)
        data = file.read(photo.size if photo.size >= 0 else MAX_FILE_BYTES)
    if photo.size >= 0 and len(data) != photo.size:
        raise OSError(f"expected {photo.size} bytes as listed, got {len(data)}")
    return _pgm_from_text(data) if photo.form == "pixels" else data


def _pgm_from_text(text: bytes) -> bytes:
    """A PGM file from grey values 0..255 as text, which must form a square."""
    try:
        values = bytes(map(int, text.split()))
    except ValueError as error:
        raise OSError("the pixels are not integers in 0..255") from error
    side = round(len(values) ** 0.5)
    if not values or side * side != len(values):
        raise OSError(f"{len(values)} pixels do not form a square")
    return b"P5 %d %d 255\n" % (side, side) + values


def file_size(path: Path) -> int:
    """Bytes of a file; -1 if there is none."""
    return path.stat().st_size if path.is_file() else -1


def is_hidden(name: PurePosixPath) -> bool:
    """Whether any part of the path starts with a dot, e.g. `__MACOSX/._x.jpg`."""
    return any(part.startswith(".") for part in name.parts)


def find_images(root: Path) -> tuple[list[tuple[str, Path]], int]:
    """All images below a folder as (relative name, path), sorted by name; and the number of other files."""
    images, others = [], 0
    for folder, below, files in os.walk(root):
        below.sort()
        for file in sorted(files):
            path = Path(folder, file)
            name = PurePosixPath(path.relative_to(root).as_posix())
            if is_hidden(name) or name.suffix.lower() not in IMAGE_SUFFIXES:
                others += 1
            else:
                images.append((str(name), path))
    return sorted(images), others


def leaves_folder(name: str) -> bool:
    """Whether a relative name is absolute or contains `..`, and so may point outside its folder."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def label_from_folders(folders: Sequence[str]) -> str:
    """The label of a path: its innermost folder that names an emotion; else its innermost folder; else "".

    `train/happy/person_7` gives `happy`; `train/grinning` gives `grinning`, which is in no vocabulary.
    """
    for name in reversed(folders):
        try:
            canonical_name(name)
        except UnknownEmotionError:
            continue
        return name
    return folders[-1] if folders else ""


SPLIT_FOLDERS: dict[str, OfficialSplit] = {
    "train": "train",
    "training": "train",
    "trainset": "train",
    "train_set": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "val_set": "validation",
    "publictest": "validation",
    "test": "test",
    "testing": "test",
    "test_set": "test",
    "privatetest": "test",
}
"""Split by name of a folder or a CSV cell, in lower case."""


def split_from_name(name: str) -> OfficialSplit | None:
    """The split that a folder or a CSV cell names; None if it names none."""
    return SPLIT_FOLDERS.get(name.strip().lower())


def read_text(path: Path) -> str:
    """Content of a UTF-8 text file, with or without a byte order mark. Raises RawDataError."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RawDataError(f"{path} is not UTF-8 text ({error}); convert it to UTF-8") from error


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Non-blank lines of a text file, stripped, with their line numbers from 1. Raises RawDataError."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            yield number, line.strip()
