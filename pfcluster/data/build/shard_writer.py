"""Writes the files of a shard folder atomically and reproducibly.

The same samples give the same bytes: no timestamps, a fixed owner and mode, sorted JSON keys.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pfcluster.data.manifest import ShardFile, crc32_name, index_name
from pfcluster.system.atomic_files import sha256, write_atomically, write_via_temporary
from pfcluster.system.csv_tables import csv_table

OWNER = "pfcluster"
MODE = 0o444


@dataclass(frozen=True)
class Sample:
    """One sample of a shard."""

    key: str
    jpeg: bytes
    record: dict[str, Any]
    """The sample's JSON; contains at least label and identity."""


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Write a value as JSON, atomically."""
    text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
    write_atomically(path, text)


def write_checksummed(path: Path, value: Any) -> None:
    """Write a value as JSON with its checksum, atomically; see `read_checksummed`."""
    write_json(path, {"sha256": _checksum(value), "value": value})


def read_checksummed(path: Path) -> Any:
    """The value that `write_checksummed` wrote. Raises OSError, or ValueError if the file was modified."""
    try:
        content = json.loads(path.read_bytes())
        if content["sha256"] == _checksum(content["value"]):
            return content["value"]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not a file of a build: {error!r}") from error
    raise ValueError("it was modified after it was written")


def _checksum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV, atomically."""
    write_atomically(path, csv_table(header, rows))


def write_shard(folder: Path, name: str, samples: Iterable[Sample]) -> ShardFile:
    """Write `<name>.tar`, its index and its samples' checksums into `folder`, consuming samples one by one.

    Returns sizes and checksums.
    """
    from webdataset.writer import TarWriter

    tar = folder / f"{name}.tar"
    records: dict[str, dict[str, Any]] = {}
    checksums: list[int] = []

    def fill(file: BinaryIO) -> None:
        with TarWriter(file, user=OWNER, group=OWNER, mode=MODE, mtime=0, encoder=False) as writer:
            for sample in samples:
                text = json.dumps(sample.record, ensure_ascii=False, sort_keys=True)
                writer.write({"__key__": sample.key, "jpg": sample.jpeg, "json": text.encode()})
                records[sample.key] = sample.record
                checksums.append(zlib.crc32(sample.jpeg))

    write_via_temporary(tar, fill)
    index = folder / index_name(tar.name)
    write_atomically(index, _index(tar, records))
    crc32 = folder / crc32_name(tar.name)
    write_atomically(crc32, np.array(checksums, "<u4").tobytes())
    return ShardFile(tar.name, len(records), sha256(tar), tar.stat().st_size, sha256(index), sha256(crc32))


def _index(tar: Path, records: dict[str, dict[str, Any]]) -> bytes:
    """Index of a written tar, from the offsets in the tar itself; one sample per line."""
    lines = []
    with tarfile.open(tar, "r:") as archive:
        for member in archive:
            key, _, extension = member.name.rpartition(".")
            if extension == "jpg":
                row = {"key": key, "offset": member.offset_data, "size": member.size}
                row |= {name: records[key][name] for name in ("label", "identity")}
                lines.append(json.dumps(row, ensure_ascii=False))
    return ("[\n" + ",\n".join(lines) + "\n]\n").encode()
