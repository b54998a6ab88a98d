"""All readers of raw datasets, and which of them a folder or file is for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pfcluster.data.raw import affectnet, expw, fer2013, generic, parquet, posed, rafdb
from pfcluster.data.raw.base import RawDataError, RawDataset, RawPhoto, ReadOptions


@dataclass(frozen=True)
class Reader:
    """How one layout is told apart and listed."""

    recognises: Callable[[Path], bool]
    """Whether a folder or file has this layout, by names alone."""
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
    "csv": Reader(lambda source: source.is_file() and source.suffix.lower() in (".csv", ".tsv"), generic.read_csv),
    "tar": Reader(generic.recognises_tar, generic.read_tar),
    "folder": Reader(lambda source: source.is_dir(), generic.read_folder),
}
"""Name -> reader; the first that recognises a source reads it. Datasets' own layouts stand before the general ones."""


def read_raw(source: Path, options: ReadOptions | None = None, *, kind: str = "auto") -> RawDataset:
    """List the photos of a raw dataset. `kind`: name of its reader; "auto" takes the first that recognises it.

    Raises RawDataError.
    """
    try:
        if not source.exists():
            raise RawDataError(f"{source} does not exist; give a folder of class folders, a .csv or a .tar")
        name = next((name for name, reader in READERS.items() if reader.recognises(source)), None)
        if kind != "auto":
            name = kind
        if name is None:
            raise RawDataError(f"{source} is neither a folder, a .csv nor a tar; unpack archives of other kinds first")
        dataset = READERS[name].read(source, options or ReadOptions())
    except OSError as error:
        raise RawDataError(f"{source} cannot be read: {error.strerror or error}") from error
    if not dataset.photos:
        raise RawDataError(
            f"{source} holds no photos ({dataset.other_files} files that are no pictures by their names)"
        )
    return dataclasses.replace(dataset, photos=tuple(map(_with_plain_text, dataset.photos)))


def _with_plain_text(photo: RawPhoto) -> RawPhoto:
    """The photo with names that UTF-8 can write: a file's name that is no UTF-8 has its odd bytes spelt out."""
    source, label, identity = photo.source, photo.label, photo.identity
    if f"{source}{label}{identity}".isascii():
        return photo
    return dataclasses.replace(
        photo, source=_spelt(source), label=_spelt(label), identity=identity and _spelt(identity)
    )


def _spelt(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
