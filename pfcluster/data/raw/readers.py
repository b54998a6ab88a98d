"""All readers of raw datasets, and the choice of the reader for a folder or file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pfcluster.data.labels import plain_code
from pfcluster.data.raw import affectnet, archives, expw, fer2013, generic, parquet, posed, rafdb
from pfcluster.data.raw.base import NOT_A_LABEL, RawDataError, RawDataset, RawPhoto, ReadOptions
from pfcluster.data.raw.identities import without_unknown
from pfcluster.data.raw.split_names import IGNORE


@dataclass(frozen=True)
class Reader:
    """Recognises and lists one layout."""

    recognises: Callable[[Path], bool]
    """Whether a folder or file has this layout, judging by names only."""
    read: Callable[[Path, ReadOptions], RawDataset]


READERS: dict[str, Reader] = {
    "rafdb": Reader(rafdb.recognises, rafdb.read),
    "affectnet": Reader(affectnet.recognises, affectnet.read),
    "ferplus": Reader(fer2013.recognises_ferplus, fer2013.read_ferplus),
    "fer2013": Reader(fer2013.recognises_fer2013, fer2013.read_fer2013),
    "expw": Reader(expw.recognises, expw.read),
    "ckplus": Reader(posed.ckplus_recognises, posed.ckplus_read),
    "jaffe": Reader(posed.jaffe_recognises, posed.jaffe_read),
    "sfew": Reader(posed.sfew_recognises, posed.sfew_read),
    "parquet": Reader(parquet.recognises, parquet.read),
    "csv": Reader(generic.recognises_table, generic.read_csv),
    "tar": Reader(archives.recognises_tar, archives.read_tar),
    "folder": Reader(lambda source: source.is_dir(), generic.read_folder),
}
"""By name; the first one that recognises a source reads it. Layouts of datasets come before the generic ones."""
NAMED_SPLITS = ("fer2013", "parquet", "csv", "tar", "folder")
"""Layouts whose splits have free names, which --splits can explain."""

TABLES = ("parquet", "csv", "folder")
"""Layouts whose identities are cells of tables."""


def read_raw(source: Path, options: ReadOptions | None = None, *, kind: str = "auto") -> RawDataset:
    """List the photos of a raw dataset. `kind`: name of its reader; "auto" selects the first one that recognises it.

    Raises RawDataError.
    """
    try:
        if not source.exists():
            raise RawDataError(f"{source} does not exist; pass a folder of class folders, a .csv or a .tar")
        name = next((name for name, reader in READERS.items() if reader.recognises(source)), None)
        if kind != "auto":
            name = kind
        if name is None:
            raise RawDataError(
                f"{source} is neither a folder, a .csv nor a tar; unpack other archives first, and save other tables as"
                " CSV or JSON Lines"
            )
        options = options or ReadOptions()
        named = set(options.splits) - {IGNORE}
        if named and name not in NAMED_SPLITS:
            raise RawDataError(f"{source} was read as {name}, whose splits have fixed names; remove --splits")
        dataset = READERS[name].read(source, options)
    except OSError as error:
        raise RawDataError(f"{source} cannot be read: {error.strerror or error}") from error
    if not dataset.photos:
        raise RawDataError(_no_photos(source, dataset))
    if name in TABLES:
        dataset = without_unknown(dataset)
    photos = tuple(_with_utf8_names(photo) for photo in dataset.photos)
    if IGNORE in options.splits:
        photos = tuple(dataclasses.replace(photo, split=None) for photo in photos)
    return dataclasses.replace(dataset, photos=_with_classes(photos, options, source))


def _no_photos(source: Path, dataset: RawDataset) -> str:
    files = "files without an image suffix" if dataset.other_files else "files"
    most = sorted(dataset.skipped.items(), key=lambda item: -item[1])[:3]
    seen = f": {', '.join(f'{count} {name}' for name, count in most)}" if most else ""
    return f"{source} contains no photos ({dataset.other_files} {files}{seen})" + (
        f"; {dataset.hint}" if dataset.hint else ""
    )


def _with_classes(photos: tuple[RawPhoto, ...], options: ReadOptions, source: Path) -> tuple[RawPhoto, ...]:
    """Photos with the labels that --classes gives theirs. Raises RawDataError if it names a label that is not there."""
    classes = options.classes
    if not classes:
        return photos
    unused = {name for name, value in classes.items() if value != NOT_A_LABEL} - {
        form for photo in photos for form in (photo.label, plain_code(photo.label))
    }
    if unused and options.all_names_occur:
        labels = sorted({photo.label for photo in photos})[:12]
        raise RawDataError(
            f"--classes names {', '.join(map(repr, sorted(unused)))}, but the labels of {source} are"
            f" {', '.join(map(repr, labels))}"
        )
    return tuple(
        photo if label is None else dataclasses.replace(photo, label=label)
        for photo in photos
        for label in [classes.get(photo.label, classes.get(plain_code(photo.label)))]
    )


def _with_utf8_names(photo: RawPhoto) -> RawPhoto:
    """The photo with names that can be encoded as UTF-8; other bytes of a file name become backslash escapes."""
    source, label, identity = photo.source, photo.label, photo.identity
    if f"{source}{label}{identity}".isascii():
        return photo
    return dataclasses.replace(
        photo, source=_escaped(source), label=_escaped(label), identity=identity and _escaped(identity)
    )


def _escaped(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
