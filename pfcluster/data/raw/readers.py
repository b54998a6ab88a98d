"""All readers of raw datasets, and the choice of the reader for a folder or file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pfcluster.data.raw import affectnet, expw, fer2013, generic, parquet, posed, rafdb
from pfcluster.data.raw.base import RawDataError, RawDataset, RawPhoto, ReadOptions


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
    "csv": Reader(lambda source: source.is_file() and source.suffix.lower() in (".csv", ".tsv"), generic.read_csv),
    "tar": Reader(generic.recognises_tar, generic.read_tar),
    "folder": Reader(lambda source: source.is_dir(), generic.read_folder),
}
"""By name; the first one that recognises a source reads it. Layouts of datasets come before the generic ones."""


def read_raw(source: Path, options: ReadOptions | None = None, *, kind: str = "auto") -> RawDataset:
    """List the photos of a raw dataset. `kind`: name of its reader; "auto" selects the first one that recognises it.

    Raises RawDataError.
    """
    try:
        if not source.exists():
            raise RawDataError(f"{source} does not exist; give a folder of class folders, a .csv or a .tar")
        name = next((name for name, reader in READERS.items() if reader.recognises(source)), None)
        if kind != "auto":
            name = kind
        if name is None:
            raise RawDataError(f"{source} is neither a folder, a .csv nor a tar; unpack other archives first")
        dataset = READERS[name].read(source, options or ReadOptions())
    except OSError as error:
        raise RawDataError(f"{source} cannot be read: {error.strerror or error}") from error
    if not dataset.photos:
        raise RawDataError(f"{source} contains no photos ({dataset.other_files} files without an image suffix)")
    return dataclasses.replace(dataset, photos=tuple(map(_with_utf8_names, dataset.photos)))


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
