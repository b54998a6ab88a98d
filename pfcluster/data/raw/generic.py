"""Readers of generic layouts: class folders, a tar of class folders, a CSV with photos next to it.

Photos are listed by name, those of a CSV in row order. Folders and cells that name splits are used as the dataset's
official splits if "train" and at least one other split occur.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pfcluster.data.raw.base import (
    IMAGE_SUFFIXES,
    RawDataError,
    RawDataset,
    RawPhoto,
    ReadOptions,
    file_size,
    find_images,
    is_hidden,
    label_from_folders,
    leaves_folder,
    read_text,
    split_from_name,
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
"""Accepted names of CSV columns; the first one present is used."""


def read_folder(root: Path, options: ReadOptions) -> RawDataset:
    """List a folder of class folders at any depth."""
    images, others = find_images(root)
    photos = [
        RawPhoto(name, label_from_folders(PurePosixPath(name).parts[:-1]), None, str(path), 0, file_size(path))
        for name, path in images
    ]
    return RawDataset("folder", root.resolve().name, _with_official_splits(photos), others, str(root))


TAR_ERRORS = (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError, EOFError)
"""Raised by Python's tarfile for damaged archives, besides OSError."""


def recognises_tar(source: Path) -> bool:
    """Whether a file starts like a tar, compressed or not."""
    try:
        return source.is_file() and tarfile.is_tarfile(source)
    except TAR_ERRORS:
        return True  # damaged after a valid start; `read_tar` raises the error


def read_tar(source: Path, options: ReadOptions) -> RawDataset:
    """List an uncompressed tar of class folders. Links, sparse files and names outside the archive are skipped."""
    photos, others, total, last = [], 0, source.stat().st_size, -1
    try:
        with tarfile.open(source, "r:") as archive:
            for member in archive:
                if member.offset <= last or member.size < 0:  # tarfile would loop forever
                    raise RawDataError(f"{source} has a negative size for {member.name}; create it again")
                last = member.offset
                name = PurePosixPath(member.name)
                if member.isdir():
                    continue
                plain = member.isreg() and not member.issparse() and not leaves_folder(member.name)
                if not plain or is_hidden(name) or name.suffix.lower() not in IMAGE_SUFFIXES:
                    others += 1
                    continue
                if member.offset_data + member.size > total:
                    raise RawDataError(f"{source} is truncated within {member.name}; copy it again")
                label = label_from_folders(name.parts[:-1])
                photos.append(RawPhoto(str(name), label, None, str(source), member.offset_data, member.size))
            end = archive.offset
        _require_end(source, end)
    except TAR_ERRORS as error:
        if isinstance(error, RawDataError):
            raise
        hint = "unpack it first if it is compressed (.tar.gz), copy it again if it is truncated"
        raise RawDataError(f"{source} cannot be read as an uncompressed tar ({error}); {hint}") from error
    photos.sort(key=lambda photo: (photo.source, photo.offset))
    return RawDataset("tar", source.name, _with_official_splits(photos), others, str(source))


def _require_end(source: Path, end: int) -> None:
    """Raises RawDataError if the headers of a tar stop at a damaged one before its end."""
    with open(source, "rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise RawDataError(f"{source} has a damaged header at byte {end}; copy it again")


def _with_official_splits(photos: Sequence[RawPhoto]) -> tuple[RawPhoto, ...]:
    """Set the splits that the first folders name, if all of them name one, "train" among them, and they differ."""
    splits = [split_from_name(PurePosixPath(photo.source).parts[0]) for photo in photos]
    if None in splits or "train" not in splits or len(set(splits)) < 2:
        return tuple(photos)
    return tuple(dataclasses.replace(photo, split=split) for photo, split in zip(photos, splits, strict=True))


def read_csv(source: Path, options: ReadOptions) -> RawDataset:
    """List a CSV with columns image and label, optionally identity and split. Photos are next to it or in `images/`."""
    header_line = read_text(source).partition("\n")[0]
    delimiter = max(",;\t", key=header_line.count)
    try:
        rows = list(csv.reader(io.StringIO(read_text(source), newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise RawDataError(f"{source} is not a valid CSV ({error})") from error
    if not rows:
        raise RawDataError(f"{source} is empty; its first row must name the columns, e.g. image,emotion,identity")
    columns = _columns(source, rows[0])
    folders = _image_folders(source, options.images)
    photos = [_csv_photo(source, folders, columns, row) for row in rows[1:] if any(cell.strip() for cell in row)]
    splits = {photo.split for photo in photos}
    if len(splits) < 2 or "train" not in splits:
        photos = [dataclasses.replace(photo, split=None) for photo in photos]
    return RawDataset("csv", source.name, tuple(photos), 0, " or ".join(str(folder) for folder in folders))


def _columns(source: Path, header: Sequence[str]) -> dict[str, int]:
    """Index of the columns image, label, identity and split. Header names are compared by letters and digits only."""
    plain = ["".join(letter for letter in cell.lower() if letter.isalnum()) for cell in header]
    columns = {}
    for column, names in COLUMNS.items():
        index = next((plain.index(name) for name in names if name in plain), None)
        if index is not None:
            columns[column] = index
        elif column in ("image", "label"):
            raise RawDataError(
                f"{source} has no {column} column: its header is {', '.join(header)!r};"
                f" rename one of its columns to {' or '.join(names)}"
            )
    return columns


def _image_folders(source: Path, images: Path | None) -> tuple[Path, ...]:
    if images is None:
        return source.parent, source.parent / "images"
    if not images.is_dir():
        raise RawDataError(f"--images {images} is not a folder")
    return (images,)


def _csv_photo(source: Path, folders: Sequence[Path], columns: dict[str, int], row: Sequence[str]) -> RawPhoto:
    """The photo of a row. An identity that equals the photo's file name is ignored."""

    def cell(column: str) -> str:
        index = columns.get(column, len(row))
        return row[index].strip() if index < len(row) else ""

    name = cell("image").replace("\\", "/")
    if "\0" in name:
        raise RawDataError(f"{source} names an image with a zero byte, {name!r}; it is not a valid CSV of file names")
    source_name = PurePosixPath(name).name if PurePosixPath(name).is_absolute() else name
    identity = cell("identity")
    person = None if identity in ("", name, PurePosixPath(name).name) else identity
    split = split_from_name(cell("split"))
    if not name:
        return RawPhoto(source_name, cell("label"), person, "", split=split)
    path = next((folder / name for folder in folders if (folder / name).is_file()), folders[0] / name)
    return RawPhoto(source_name, cell("label"), person, str(path), 0, file_size(path), split=split)
