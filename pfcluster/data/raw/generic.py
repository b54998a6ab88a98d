"""Readers of layouts that belong to no dataset: class folders, a tar of them, a CSV beside its photos.

Listings are sorted, a CSV's in the order of its rows. Folders and cells that name splits count as the dataset's own
splits where some of them are for training and others are not.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pfcluster.data.raw.base import (
    PICTURES,
    RawDataError,
    RawDataset,
    RawPhoto,
    ReadOptions,
    class_folder,
    file_size,
    is_hidden,
    leads_out,
    pictures_below,
    split_named,
    text_of,
)

COLUMNS: dict[str, tuple[str, ...]] = {
    "image": (
        *("image", "images", "imagepath", "filename", "file", "filepath"),
        *("path", "img", "photo", "picture", "pic"),
    ),
    "label": ("emotion", "emotions", "label", "labels", "expression", "class", "classname", "target"),
    "identity": ("identity", "identityid", "person", "personid", "subject", "subjectid", "celebrity", "actor"),
    "split": ("split", "usage", "partition", "subset"),
}
"""Names of a CSV's columns; the first that is there counts."""


def read_folder(root: Path, options: ReadOptions) -> RawDataset:
    """A folder of class folders, at any depth."""
    found, others = pictures_below(root)
    photos = [
        RawPhoto(name, class_folder(PurePosixPath(name).parts[:-1]), None, str(path), 0, file_size(path))
        for name, path in found
    ]
    return RawDataset("folder", root.resolve().name, _with_own_splits(photos), others, str(root))


BROKEN_TAR = (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError, EOFError)
"""What Python's tarfile raises on damaged archives, besides OSError."""


def recognises_tar(source: Path) -> bool:
    """Whether a file begins as a tar does, packed or not."""
    try:
        return source.is_file() and tarfile.is_tarfile(source)
    except BROKEN_TAR:
        return True  # it begins as one and breaks off: the reader says how


def read_tar(source: Path, options: ReadOptions) -> RawDataset:
    """A plain tar of class folders, listed by its headers. Links, holes and names that lead out are passed over."""
    photos, others, total, last = [], 0, source.stat().st_size, -1
    try:
        with tarfile.open(source, "r:") as archive:
            for member in archive:
                if member.offset <= last or member.size < 0:  # Python's tarfile would go round for ever
                    raise RawDataError(f"{source} gives {member.name} a size below zero; make it anew")
                last = member.offset
                name = PurePosixPath(member.name)
                if member.isdir():
                    continue
                plain = member.isreg() and not member.issparse() and not leads_out(member.name)
                if not plain or is_hidden(name) or name.suffix.lower() not in PICTURES:
                    others += 1
                    continue
                if member.offset_data + member.size > total:
                    raise RawDataError(f"{source} is cut off within {member.name}; copy it again")
                label = class_folder(name.parts[:-1])
                photos.append(RawPhoto(str(name), label, None, str(source), member.offset_data, member.size))
            end = archive.offset
        _require_end(source, end)
    except BROKEN_TAR as error:
        if isinstance(error, RawDataError):
            raise
        hint = "unpack it first if it is compressed (.tar.gz), copy it again if it was cut off"
        raise RawDataError(f"{source} is no plain tar that can be read to its end ({error}); {hint}") from error
    photos.sort(key=lambda photo: (photo.source, photo.offset))
    return RawDataset("tar", source.name, _with_own_splits(photos), others, str(source))


def _require_end(source: Path, end: int) -> None:
    """Raises RawDataError where a tar's headers stop before its end, at one that is damaged."""
    with open(source, "rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise RawDataError(f"{source} has a damaged header at byte {end}; copy it again")


def _with_own_splits(photos: Sequence[RawPhoto]) -> tuple[RawPhoto, ...]:
    """The photos with the splits that their first folders name, where all name one and not all the same."""
    splits = [split_named(PurePosixPath(photo.source).parts[0]) for photo in photos]
    if None in splits or "train" not in splits or len(set(splits)) < 2:
        return tuple(photos)
    return tuple(dataclasses.replace(photo, split=split) for photo, split in zip(photos, splits, strict=True))


def read_csv(source: Path, options: ReadOptions) -> RawDataset:
    """Rows of image and label, optionally identity and split; the photos beside the file or in its `images` folder."""
    header_line = text_of(source).partition("\n")[0]
    delimiter = max(",;\t", key=header_line.count)
    try:
        rows = list(csv.reader(io.StringIO(text_of(source), newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise RawDataError(f"{source} is no readable CSV ({error})") from error
    if not rows:
        raise RawDataError(f"{source} is empty; its first row must name the columns, such as image,emotion,identity")
    columns = _columns(source, rows[0])
    folders = _image_folders(source, options.images)
    photos = [_csv_photo(source, folders, columns, row) for row in rows[1:] if any(cell.strip() for cell in row)]
    splits = {photo.split for photo in photos}
    if len(splits) < 2 or "train" not in splits:
        photos = [dataclasses.replace(photo, split=None) for photo in photos]
    return RawDataset("csv", source.name, tuple(photos), 0, " or ".join(str(folder) for folder in folders))


def _columns(source: Path, header: Sequence[str]) -> dict[str, int]:
    """Where image, label, identity and split stand. Case, spaces, `_`, `-` and `.` in header names do not count."""
    plain = ["".join(letter for letter in cell.lower() if letter.isalnum()) for cell in header]
    found = {}
    for column, names in COLUMNS.items():
        place = next((plain.index(name) for name in names if name in plain), None)
        if place is not None:
            found[column] = place
        elif column in ("image", "label"):
            raise RawDataError(
                f"{source} has no {column} column: its header is {', '.join(header)!r};"
                f" name one of them {' or '.join(names)}"
            )
    return found


def _image_folders(source: Path, images: Path | None) -> tuple[Path, ...]:
    if images is None:
        return source.parent, source.parent / "images"
    if not images.is_dir():
        raise RawDataError(f"--images {images} is no folder")
    return (images,)


def _csv_photo(source: Path, folders: Sequence[Path], columns: dict[str, int], row: Sequence[str]) -> RawPhoto:
    """A row's photo. An identity that is the photo's own file name names no person and is not taken for one."""

    def cell(column: str) -> str:
        place = columns.get(column, len(row))
        return row[place].strip() if place < len(row) else ""

    name = cell("image").replace("\\", "/")
    if "\0" in name:
        raise RawDataError(f"{source} names an image with a zero byte in it, {name!r}; it is no text of file names")
    source_name = PurePosixPath(name).name if PurePosixPath(name).is_absolute() else name
    identity = cell("identity")
    person = None if identity in ("", name, PurePosixPath(name).name) else identity
    split = split_named(cell("split"))
    if not name:
        return RawPhoto(source_name, cell("label"), person, "", split=split)
    path = next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)
    return RawPhoto(source_name, cell("label"), person, str(path), 0, file_size(path), split=split)
