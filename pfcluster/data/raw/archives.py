"""Readers of tars: class folders in a tar, or WebDataset's samples with `.cls` files; and folders of tars."""

from __future__ import annotations

import dataclasses
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from pfcluster.data.raw.base import (
    IMAGE_SUFFIXES,
    OfficialSplit,
    RawDataError,
    RawDataset,
    RawPhoto,
    ReadOptions,
    is_build,
    is_hidden,
    leaves_folder,
    skipped_as,
)
from pfcluster.data.raw.generic import with_tree
from pfcluster.data.raw.split_names import named_splits
from pfcluster.data.raw.tables import decode_short

TAR_ERRORS = (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError, EOFError)
"""Raised by Python's tarfile for damaged archives, besides OSError."""
CLASS_SUFFIX = ".cls"
MAX_CLASS_BYTES = 1000


def recognises_tar(source: Path) -> bool:
    """Whether a file starts like a tar, compressed or not, or a folder contains tars and neither photos, folders nor a
    manifest of a build.
    """
    if source.is_dir():
        return bool(_tars(source)) and not any(map(_is_other_content, source.iterdir()))
    try:
        return source.is_file() and tarfile.is_tarfile(source)
    except TAR_ERRORS:
        return True  # damaged after a valid start; `read_tar` raises the error


def _is_other_content(path: Path) -> bool:
    """Whether a path beside tars says that the tars are not the dataset."""
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return not is_build(path)
    return path.suffix.lower() in IMAGE_SUFFIXES or path.name == "manifest.json"


def _tars(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.tar") if path.is_file() and not path.name.startswith("."))


def read_tar(source: Path, options: ReadOptions) -> RawDataset:
    """List an uncompressed tar, or all tars of a folder. Labels come from folders or, in WebDataset's samples, from
    `.cls` files; splits from folders or from the names of the tars. Raises RawDataError.
    """
    files = _tars(source) if source.is_dir() else [source]
    if not files:
        raise RawDataError(f"{source} contains no .tar file")
    photos: list[RawPhoto] = []
    skipped: Counter[str] = Counter()
    for file in files:
        listed, others = _read_members(file)
        name = f"{file.name}/" if len(files) > 1 else ""
        photos += [dataclasses.replace(photo, source=name + photo.source) for photo in listed]
        skipped += Counter({name + other: count for other, count in others.items()})
    labels = {number: photo.label for number, photo in enumerate(photos) if photo.label}
    splits: Sequence[OfficialSplit | None] = [None] * len(files)
    if source.is_dir():
        splits = named_splits([file.stem for file in files], options.splits, source)
    if len(files) > 1:  # folders within the tars, not the tars' names
        tree = with_tree([_inside(photo) for photo in photos], _without_used(options, splits), source)
        placed = [
            dataclasses.replace(photo, label=inner.label, split=inner.split, left_out=inner.left_out)
            for photo, inner in zip(photos, tree, strict=True)
        ]
    else:
        placed = list(with_tree(photos, _without_used(options, splits), source))
    if any(splits):
        by_file = {str(file): split for file, split in zip(files, splits, strict=True)}
        placed = [dataclasses.replace(photo, split=by_file[photo.path]) for photo in placed]
    for number, label in labels.items():
        placed[number] = dataclasses.replace(placed[number], label=label, left_out=None)
    return RawDataset("tar", source.resolve().name, tuple(placed), skipped, str(source))


def _inside(photo: RawPhoto) -> RawPhoto:
    return dataclasses.replace(photo, source=photo.source.partition("/")[2])


def _without_used(options: ReadOptions, splits: Sequence[OfficialSplit | None]) -> ReadOptions:
    """Options for the folders within tars: without --splits if the names of the tars have used it."""
    return dataclasses.replace(options, splits={"ignore": "ignore"}) if any(splits) else options


def _read_members(source: Path) -> tuple[list[RawPhoto], Counter[str]]:
    """The photos of a tar, sorted, with the labels of `.cls` files; and what was skipped. Raises RawDataError."""
    files: dict[str, tuple[int, int]] = {}
    repeated: list[tuple[str, int, int]] = []
    links: dict[str, str] = {}
    skipped: Counter[str] = Counter()
    try:
        with tarfile.open(source, "r:") as archive:
            for member in _members(source, archive):
                name = str(PurePosixPath(member.name))
                if member.isdir():
                    continue
                if leaves_folder(member.name):
                    skipped["names outside the archive"] += 1
                elif member.issym() or member.islnk():
                    folder = "" if member.islnk() else posixpath.dirname(name)
                    links[name] = posixpath.normpath(posixpath.join(folder, member.linkname))
                elif not member.isreg() or member.issparse():
                    skipped["special and sparse files"] += 1
                else:
                    if name in files:
                        repeated.append((name, *files[name]))
                    files[name] = (member.offset_data, member.size)
            end = archive.offset
        _require_end(source, end)
    except TAR_ERRORS as error:
        if isinstance(error, RawDataError):
            raise
        hint = "unpack it first if it is compressed (.tar.gz), copy it again if it is truncated"
        raise RawDataError(f"{source} cannot be read as an uncompressed tar ({error}); {hint}") from error
    listed = [(name, *place) for name, place in files.items()] + repeated
    for link, target in links.items():
        reached = list(_linked(link, target, files))
        if not reached:
            skipped["links that lead to no file of the archive"] += 1
        listed += reached
    classes = _classes(source, listed)
    photos = []
    for name, offset, size in listed:
        path = PurePosixPath(name)
        if not is_hidden(path) and path.suffix.lower() in IMAGE_SUFFIXES:
            photos.append(RawPhoto(name, classes.get(_key(name), ""), None, str(source), offset, size))
        elif path.suffix.lower() != CLASS_SUFFIX:
            skipped[skipped_as(path)] += 1
    photos.sort(key=lambda photo: (photo.source, photo.offset))
    return photos, skipped


def _members(source: Path, archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Members of a tar in order. Raises RawDataError if it is truncated or damaged."""
    last, total = -1, source.stat().st_size
    for member in archive:
        if member.offset <= last or member.size < 0:  # tarfile would loop forever
            raise RawDataError(f"{source} has a negative size for {member.name}; create it again")
        last = member.offset
        if member.isreg() and member.offset_data + member.size > total:
            raise RawDataError(f"{source} is truncated within {member.name}; copy it again")
        yield member


def _require_end(source: Path, end: int) -> None:
    """Raises RawDataError if the headers of a tar stop at a damaged one before its end."""
    with open(source, "rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise RawDataError(f"{source} has a damaged header at byte {end}; copy it again")


def _linked(link: str, target: str, files: dict[str, tuple[int, int]]) -> Iterator[tuple[str, int, int]]:
    """Files that a link within a tar leads to: a file, or all files of a folder."""
    if target in files:
        yield (link, *files[target])
        return
    for name, place in files.items():
        if name.startswith(f"{target}/"):
            yield (link + name[len(target) :], *place)


def _key(name: str) -> str:
    """WebDataset's key: the name up to the first dot after the last slash."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _classes(source: Path, listed: Sequence[tuple[str, int, int]]) -> dict[str, str]:
    """Content of the `.cls` files, by key. Raises RawDataError if files of one key differ."""
    classes: dict[str, str] = {}
    with open(source, "rb") as file:
        for name, offset, size in listed:
            if name.lower().endswith(CLASS_SUFFIX) and not is_hidden(PurePosixPath(name)):
                file.seek(offset)
                label, key = decode_short(file.read(min(size, MAX_CLASS_BYTES))), _key(name)
                if label != classes.setdefault(key, label):
                    raise RawDataError(
                        f"{source} has {CLASS_SUFFIX} files of {key} with different classes, {classes[key]!r} and"
                        f" {label!r}; write the tar again, with a key for each sample"
                    )
    return classes
