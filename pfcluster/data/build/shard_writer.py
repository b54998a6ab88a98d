"""Writing a shard folder's files: aside first, synced, then renamed, so that a name never stands for half a file.

The same samples give the same bytes: no times, one user, group and mode, sorted keys in JSON.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pfcluster.data.manifest import ShardFile, index_name
from pfcluster.runs.atomic_files import sha256, write_atomically, write_via_temporary

OWNER = "pfcluster"
MODE = 0o444


@dataclass(frozen=True)
class Sample:
    """One face, ready to be written."""

    key: str
    jpeg: bytes
    record: dict[str, Any]
    """The sample's JSON; holds at least label and identity."""


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Write a value as JSON, aside and renamed."""
    text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
    write_atomically(path, text)


def write_sealed(path: Path, value: Any) -> None:
    """Write a value as JSON with its checksum, aside and renamed; for `read_sealed`."""
    write_json(path, {"sha256": _seal(value), "value": value})


def read_sealed(path: Path) -> Any:
    """The value that `write_sealed` wrote. Raises OSError, or ValueError where the file was changed since."""
    try:
        held = json.loads(path.read_bytes())
        if held["sha256"] == _seal(held["value"]):
            return held["value"]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"it is no file of a build: {error!r}") from error
    raise ValueError("it has changed since it was written")


def _seal(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV, aside and renamed."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, buffer.getvalue())


def write_shard(folder: Path, name: str, samples: Iterable[Sample]) -> ShardFile:
    """Write `<name>.tar` and its index into `folder`; samples are taken one by one. Returns their checksums."""
    from webdataset.writer import TarWriter

    tar = folder / f"{name}.tar"
    records: dict[str, dict[str, Any]] = {}

    def fill(file: BinaryIO) -> None:
        with TarWriter(file, user=OWNER, group=OWNER, mode=MODE, mtime=0, encoder=False) as writer:
            for sample in samples:
                text = json.dumps(sample.record, ensure_ascii=False, sort_keys=True)
                writer.write({"__key__": sample.key, "jpg": sample.jpeg, "json": text.encode()})
                records[sample.key] = sample.record

    write_via_temporary(tar, fill)
    index = folder / index_name(tar.name)
    write_atomically(index, _index(tar, records))
    return ShardFile(tar.name, len(records), sha256(tar), tar.stat().st_size, sha256(index))


def _index(tar: Path, records: dict[str, dict[str, Any]]) -> bytes:
    """The index of a written tar, read off the tar itself; one sample a line."""
    lines = []
    with tarfile.open(tar, "r:") as archive:
        for member in archive:
            key, _, ending = member.name.rpartition(".")
            if ending == "jpg":
                row = {"key": key, "offset": member.offset_data, "size": member.size}
                row |= {name: records[key][name] for name in ("label", "identity")}
                lines.append(json.dumps(row, ensure_ascii=False))
    return ("[\n" + ",\n".join(lines) + "\n]\n").encode()
