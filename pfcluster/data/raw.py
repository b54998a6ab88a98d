"""Readers of raw datasets: a folder of class folders, a CSV beside its photos, a tar of class folders.

A reader lists photos, it opens none: a `RawPhoto` says where the bytes of one photo lie (a file, or a span of a tar),
so any process can fetch them later without the listing. Labels stay as they are written; `emotions.py` maps them
elsewhere. Listings are sorted (CSV: in the order of rows), the same on every machine.
"""

from __future__ import annotations

import csv
import io
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pfcluster.emotions import UnknownEmotionError, canonical_name

Kind = Literal["folder", "csv", "tar"]

PICTURES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
)
"""File endings taken for pictures; what a file really holds is found out when it is decoded."""
IMAGE_COLUMNS = (
    "image",
    "images",
    "imagepath",
    "filename",
    "file",
    "filepath",
    "path",
    "img",
    "photo",
    "picture",
    "pic",
)
LABEL_COLUMNS = ("emotion", "emotions", "label", "labels", "expression", "class", "classname", "target")
IDENTITY_COLUMNS = ("identity", "identityid", "person", "personid", "subject", "subjectid", "celebrity", "actor")


class RawDataError(ValueError):
    """A raw dataset that cannot be read: says which, why, and what would do."""


@dataclass(frozen=True)
class RawPhoto:
    """One photo of a raw dataset, as its listing gives it."""

    source: str
    """Name within the dataset, with forward slashes: the path below the folder, in the tar, or the CSV's cell."""
    label: str
    """As written; empty where there is none."""
    identity: str | None
    """Person, where the listing names one."""
    path: str
    """File that holds the bytes; empty where a CSV's row names no image."""
    offset: int = 0
    """Where the photo begins in that file, in bytes."""
    size: int = -1
    """Bytes of the photo; -1 where the file is missing."""


@dataclass(frozen=True)
class RawDataset:
    """A listed raw dataset."""

    kind: Kind
    name: str
    """Base name of the folder, CSV or tar."""
    photos: tuple[RawPhoto, ...]
    other_files: int = 0
    """Files that are no pictures by their names, passed over."""
    folder: str = ""
    """Where its photos were looked for, for messages only."""


def read_raw(source: Path, *, images: Path | None = None) -> RawDataset:
    """List the photos of a folder, a CSV or a tar, whichever `source` is. `images`: folder of a CSV's photos.

    Raises RawDataError.
    """
    try:
        if source.is_dir():
            dataset = _read_folder(source)
        elif not source.is_file():
            raise RawDataError(f"{source} does not exist; give a folder of class folders, a .csv or a .tar")
        elif source.suffix.lower() in (".csv", ".tsv"):
            dataset = _read_csv(source, images)
        elif tarfile.is_tarfile(source):
            dataset = _read_tar(source)
        else:
            raise RawDataError(f"{source} is neither a folder, a .csv nor a tar; unpack archives of other kinds first")
    except OSError as error:
        raise RawDataError(f"{source} cannot be read: {error.strerror or error}") from error
    if not dataset.photos:
        raise RawDataError(
            f"{source} holds no photos ({dataset.other_files} files that are no pictures by their names)"
        )
    return dataset


def read_bytes(photo: RawPhoto) -> bytes:
    """The photo's file as it is. Raises OSError where it is missing or shorter than listed."""
    with open(photo.path, "rb") as file:
        file.seek(photo.offset)
        data = file.read(photo.size) if photo.size >= 0 else file.read()
    if photo.size >= 0 and len(data) != photo.size:
        raise OSError(f"{photo.size} bytes were listed, {len(data)} are there")
    return data


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


def _is_hidden(name: PurePosixPath) -> bool:
    """Whether any part of the path begins with a dot, as `._x.jpg` and `__MACOSX/._x.jpg` do."""
    return any(part.startswith(".") for part in name.parts)


def _read_folder(root: Path) -> RawDataset:
    photos, others = [], 0
    for folder, below, files in os.walk(root):
        below.sort()
        for file in sorted(files):
            path = Path(folder, file)
            name = PurePosixPath(path.relative_to(root).as_posix())
            if _is_hidden(name) or name.suffix.lower() not in PICTURES:
                others += 1
                continue
            size = path.stat().st_size if path.is_file() else -1
            photos.append(RawPhoto(str(name), class_folder(name.parts[:-1]), None, str(path), 0, size))
    photos.sort(key=lambda photo: photo.source)
    return RawDataset("folder", root.resolve().name, tuple(photos), others, str(root))


def _read_tar(source: Path) -> RawDataset:
    photos, others, total = [], 0, source.stat().st_size
    try:
        with tarfile.open(source, "r:") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if member.isdir():
                    continue
                if not member.isreg() or _is_hidden(name) or name.suffix.lower() not in PICTURES:
                    others += 1  # links are not followed
                    continue
                if member.offset_data + member.size > total:
                    raise RawDataError(f"{source} is cut off within {member.name}; copy it again")
                label = class_folder(name.parts[:-1])
                photos.append(RawPhoto(str(name), label, None, str(source), member.offset_data, member.size))
    except tarfile.TarError as error:
        hint = "unpack it first if it is compressed (.tar.gz), copy it again if it was cut off"
        raise RawDataError(f"{source} is no plain tar that can be read to its end ({error}); {hint}") from error
    photos.sort(key=lambda photo: photo.source)
    return RawDataset("tar", source.name, tuple(photos), others, str(source))


def _read_csv(source: Path, images: Path | None) -> RawDataset:
    try:
        text = source.read_bytes().decode("utf-8-sig")
        header_line = text.partition("\n")[0]
        delimiter = max(",;\t", key=header_line.count)
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except UnicodeDecodeError as error:
        raise RawDataError(f"{source} is not UTF-8 text ({error}); save it as UTF-8") from error
    except csv.Error as error:
        raise RawDataError(f"{source} is no readable CSV ({error})") from error
    if not rows:
        raise RawDataError(f"{source} is empty; its first row must name the columns, such as image,emotion,identity")
    image, label, identity = _columns(source, rows[0])
    folders = _image_folders(source, images)
    photos = []
    for row in rows[1:]:
        if not any(cell.strip() for cell in row):
            continue
        name = _cell(row, image)
        person = _cell(row, identity) if identity is not None else ""
        photos.append(_csv_photo(folders, name, _cell(row, label), person))
    return RawDataset("csv", source.name, tuple(photos), 0, " or ".join(str(folder) for folder in folders))


def _columns(source: Path, header: Sequence[str]) -> tuple[int, int, int | None]:
    """Where image, label and identity stand. Case, spaces, `_`, `-` and `.` in header names do not count."""
    plain = ["".join(letter for letter in cell.lower() if letter.isalnum()) for cell in header]

    def find(names: Sequence[str]) -> int | None:
        return next((plain.index(name) for name in names if name in plain), None)

    image, label = find(IMAGE_COLUMNS), find(LABEL_COLUMNS)
    if image is None or label is None:
        missing, names = ("image", IMAGE_COLUMNS) if image is None else ("label", LABEL_COLUMNS)
        raise RawDataError(
            f"{source} has no {missing} column: its header is {', '.join(header)!r};"
            f" name one of them {' or '.join(names)}"
        )
    return image, label, find(IDENTITY_COLUMNS)


def _cell(row: Sequence[str], column: int) -> str:
    """The stripped cell; empty where the row is too short."""
    return row[column].strip() if column < len(row) else ""


def _image_folders(source: Path, images: Path | None) -> tuple[Path, ...]:
    if images is None:
        return source.parent, source.parent / "images"
    if not images.is_dir():
        raise RawDataError(f"--images {images} is no folder")
    return (images,)


def _csv_photo(folders: Sequence[Path], name: str, label: str, identity: str) -> RawPhoto:
    """A row's photo. An identity that is the photo's own file name names no person and is not taken for one."""
    name = name.replace("\\", "/")
    source = PurePosixPath(name).name if PurePosixPath(name).is_absolute() else name
    person = None if identity in ("", name, PurePosixPath(name).name) else identity
    if not name:
        return RawPhoto(source, label, person, "")
    path = next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)
    size = path.stat().st_size if path.is_file() else -1
    return RawPhoto(source, label, person, str(path), 0, size)
