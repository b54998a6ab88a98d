"""What a raw dataset is, whatever its layout: a list of photos, none of them opened.

A `RawPhoto` says where the bytes of one photo lie, so any process can fetch them later without the listing. Labels stay
as they are written, or, where a dataset writes numbers, become the names that its vocabulary in `data/labels.py` gives
them. Listings have one order on every machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pfcluster.data.labels import UnknownEmotionError, canonical_name

OwnSplit = Literal["train", "validation", "test"]
Form = Literal["file", "pixels", "parquet"]
VotingMode = Literal["majority", "probability", "multi-target", "argmax"]
Point = tuple[float, float]

PICTURES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
)
"""File endings taken for pictures; what a file really holds is found out when it is decoded."""
LARGEST_FILE = 256 * 2**20
"""Bytes of a photo's file; larger ones are refused unread."""


class RawDataError(ValueError):
    """A raw dataset that cannot be read: says which, why, and what would do."""


@dataclass(frozen=True)
class RawPhoto:
    """One photo of a raw dataset, as its listing gives it."""

    source: str
    """Name within the dataset, with forward slashes: the path below the folder, in the tar, or the CSV's cell."""
    label: str
    """As written, or the name of a written number; empty where there is none."""
    identity: str | None
    """Person, where the listing names one."""
    path: str
    """File that holds the bytes; empty where a CSV's row names no image."""
    offset: int = 0
    """Where the photo begins in that file, in bytes; for "parquet" its row."""
    size: int = -1
    """Bytes of the photo; -1 where the file is missing."""
    form: Form = "file"
    """"pixels": grey values as text, as in FER2013's CSV. "parquet": a row of a parquet file (spool.py unpacks it)."""
    split: OwnSplit | None = None
    """The dataset's own split, where it has any."""
    votes: tuple[float, ...] = ()
    """Share of the annotators' votes for each emotion of `emotions.CANONICAL`; empty where there are none."""
    box: tuple[float, float, float, float] | None = None
    """Left, top, right, bottom of the labelled face in the photo's pixels, where the listing gives it."""
    landmarks: tuple[Point, ...] = ()
    """Both eyes, nose, corners of the mouth, (x, y) in the photo's pixels, where the listing gives them."""


@dataclass(frozen=True)
class RawDataset:
    """A listed raw dataset."""

    kind: str
    """Which reader listed it: a name of `readers.READERS`."""
    name: str
    """Base name of the folder, CSV or tar."""
    photos: tuple[RawPhoto, ...]
    other_files: int = 0
    """Files that are no pictures by their names, passed over."""
    folder: str = ""
    """Where its photos were looked for, for messages only."""
    votes: VotingMode | None = None
    """How annotators' votes became labels, where they did. Accuracies under different modes do not compare."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What readers can be asked for; each field names the readers that look at it."""

    images: Path | None = None
    """csv, ferplus: folder of the photos, where it is not beside the listing."""
    votes: VotingMode = "majority"
    """ferplus: how votes become a label."""
    peak_frames: int = 1
    """ckplus: last frames of a sequence that bear its label; the first frame is neutral."""
    originals: bool = False
    """rafdb, sfew: the original photos instead of the crops that the dataset's authors aligned."""


def read_bytes(photo: RawPhoto) -> bytes:
    """The photo's file as it is; grey values as text become a PGM file.

    Raises OSError where it is missing, larger than LARGEST_FILE, not as long as listed, or no list of grey values.
    """
    assert photo.form != "parquet", "spooled before anything is read"
    if photo.size > LARGEST_FILE:
        raise OSError(f"{photo.size / 2**20:.0f} MiB; a photo's file may have {LARGEST_FILE // 2**20}")
    with open(photo.path, "rb") as file:
        file.seek(photo.offset)
        data = file.read(photo.size if photo.size >= 0 else LARGEST_FILE)
    if photo.size >= 0 and len(data) != photo.size:
        raise OSError(f"{photo.size} bytes were listed, {len(data)} are there")
    return _grey_picture(data) if photo.form == "pixels" else data


def _grey_picture(text: bytes) -> bytes:
    """A PGM file of a square of grey values written as text, 0 to 255."""
    try:
        values = bytes(map(int, text.split()))
    except ValueError as error:
        raise OSError("the pixels are no list of whole numbers in 0..255") from error
    side = round(len(values) ** 0.5)
    if not values or side * side != len(values):
        raise OSError(f"{len(values)} pixels are no square")
    return b"P5 %d %d 255\n" % (side, side) + values


def find_picture(folder: Path, name: str, endings: Sequence[str] = (".jpg", ".png", ".jpeg", ".bmp")) -> Path:
    """`folder/name`, or where that is not there the file that has another of the endings; the first where none is."""
    wanted = folder / name
    if wanted.is_file():
        return wanted
    others = (wanted.with_suffix(ending) for ending in endings)
    return next((other for other in others if other.is_file()), wanted)


def file_size(path: Path) -> int:
    """Bytes of a file; -1 where it is none."""
    return path.stat().st_size if path.is_file() else -1


def is_hidden(name: PurePosixPath) -> bool:
    """Whether any part of the path begins with a dot, as `._x.jpg` and `__MACOSX/._x.jpg` do."""
    return any(part.startswith(".") for part in name.parts)


def pictures_below(root: Path) -> tuple[list[tuple[str, Path]], int]:
    """Every picture below a folder as (name below it, path), sorted by name; and how many other files there are."""
    found, others = [], 0
    for folder, below, files in os.walk(root):
        below.sort()
        for file in sorted(files):
            path = Path(folder, file)
            name = PurePosixPath(path.relative_to(root).as_posix())
            if is_hidden(name) or name.suffix.lower() not in PICTURES:
                others += 1
            else:
                found.append((str(name), path))
    return sorted(found), others


def leads_out(name: str) -> bool:
    """Whether a name would lead out of the folder below which it is looked for."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def class_folder(folders: Sequence[str]) -> str:
    """The label that a path's folders give: the innermost that names an emotion, else the innermost, else nothing.

    `train/happy/person_7` is `happy`; `train/grinning` is `grinning`, which no vocabulary knows.
    """
    for name in reversed(folders):
        try:
            canonical_name(name)
        except UnknownEmotionError:
            continue
        return name
    return folders[-1] if folders else ""


SPLIT_FOLDERS: dict[str, OwnSplit] = {
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
"""Names of folders and cells that name a split."""


def split_named(name: str) -> OwnSplit | None:
    """The split that a folder's or a cell's name means, if it means one."""
    return SPLIT_FOLDERS.get(name.strip().lower())


def text_of(path: Path) -> str:
    """A text file, UTF-8 with or without a mark. Raises RawDataError."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RawDataError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, stripped, with their numbers from 1. Raises RawDataError."""
    for number, line in enumerate(text_of(path).splitlines(), start=1):
        if line.strip():
            yield number, line.strip()
