"""The index of a split in columns: offset, size, label, key and identity of each sample.

A shard's index is JSON, one sample per line. Large splits are converted once into a folder of the cache, whose files
all processes of a machine map and share; the cost of opening them does not grow with the number of processes. Small
ones are converted in memory.

Legend: n samples of the split.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pfcluster.data.index_rows import Rows, decode_rows
from pfcluster.data.manifest import REBUILD, ShardError, ShardFile, require_checksum
from pfcluster.data.storage import Store, StoreError, default_cache
from pfcluster.system.atomic_files import sha256, write_atomically
from pfcluster.system.locks import exclusive_lock
from pfcluster.system.os_errors import describe

MAPPED_SAMPLES = 20_000
"""Indexes of splits with at least this many samples are converted into the cache and mapped."""
LAYOUT = 1
"""Version of the columns; part of the name of a converted index."""
CONTENTS_FILE = "columns.json"
"""Checksums of the columns; written last."""
COLUMNS = ("offsets", "sizes", "labels", "key_ends", "identity_ends", "keys", "identities")
"""int64 (n,) each, except keys and identities: the UTF-8 text of all samples, uint8."""


Columns = dict[str, NDArray[Any]]
"""Arrays of COLUMNS by name."""


@dataclass(frozen=True)
class SplitIndex:
    """The samples of a split, ordered by shard."""

    columns: Columns
    first: tuple[int, ...]
    """Number of the first sample of each shard."""

    def __len__(self) -> int:
        return len(self.columns["offsets"])

    def key(self, number: int) -> str:
        """Name of a sample in its tar."""
        return self._text("keys", "key_ends", number)

    def identities(self) -> list[str]:
        """Identity of each sample; equal ones are one string."""
        shared: dict[bytes, str] = {}
        text, ends = self.columns["identities"].tobytes(), self.columns["identity_ends"].tolist()
        starts = [0, *ends[:-1]]
        values = (text[start:end] for start, end in zip(starts, ends, strict=True))
        return [shared.get(value) or shared.setdefault(value, value.decode()) for value in values]

    def _text(self, texts: str, ends: str, number: int) -> str:
        start = int(self.columns[ends][number - 1]) if number else 0
        return bytes(self.columns[texts][start : int(self.columns[ends][number])]).decode()


def load_index(
    store: Store, split: str, shards: Sequence[ShardFile], classes: Sequence[str], cache: str | Path | None = None
) -> SplitIndex:
    """The index of a split; large ones are mapped from `cache` (default: `default_cache()`), and converted into it
    first if it has none of this content. Raises ShardError, OSError.
    """
    first = tuple(accumulate((shard.samples for shard in shards[:-1]), initial=0))
    parts = _decoded(store, split, shards, classes)
    if sum(shard.samples for shard in shards) < MAPPED_SAMPLES:
        return SplitIndex(_in_memory(parts), first)
    try:
        folder = (default_cache() if cache is None else Path(cache)) / "index" / _identity(shards, classes)
        return SplitIndex(_mapped(folder) or _converted(folder, parts), first)
    except OSError as error:
        warnings.warn(
            f"the index of {store.name}/{split} cannot be kept in the cache ({describe(error)}), so every process"
            " holds a copy; set data.cache to a folder that can be written",
            stacklevel=2,
        )
    return SplitIndex(_in_memory(_decoded(store, split, shards, classes)), first)


def _identity(shards: Sequence[ShardFile], classes: Sequence[str]) -> str:
    """Name of a converted index: a hash of all that its columns depend on."""
    content = [LAYOUT, list(classes), [(shard.index_sha256, shard.samples, shard.bytes) for shard in shards]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _decoded(store: Store, split: str, shards: Sequence[ShardFile], classes: Sequence[str]) -> Iterator[Rows]:
    """The samples of each shard in order, decoded ahead by threads; NumPy releases the GIL."""
    workers = _workers()
    waiting: deque[Future[Rows]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="index") as pool:
        try:
            for shard in shards:
                waiting.append(pool.submit(_read_shard, store, split, shard, classes))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _workers() -> int:
    """Threads that decode or check an index."""
    return min(len(os.sched_getaffinity(0)), 16)


def _read_shard(store: Store, split: str, shard: ShardFile, classes: Sequence[str]) -> Rows:
    """The index of a shard. Raises ShardError if it is missing, not the manifest's, or has an invalid row; OSError."""
    where = f"{store.name}/{shard.index_file}"
    try:
        data = store.read_metadata(shard.index_file, shard.index_sha256)
    except FileNotFoundError as error:
        raise ShardError(f"{where} is missing: copy it there again, or {REBUILD}") from error
    except StoreError as error:
        raise ShardError(f"{where} cannot be read: {error}") from error
    require_checksum(where, hashlib.sha256(data).hexdigest(), shard.index_sha256)
    try:
        rows = decode_rows(data, classes)
    except (KeyError, TypeError) as error:
        raise ShardError(f"an index of {store.name}/{split} has an invalid row ({error!r}); {REBUILD}") from error
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{where} cannot be read ({error}); {REBUILD}") from error
    if len(rows.offsets) != shard.samples:
        raise ShardError(f"{where} does not list the {shard.samples} samples of the manifest; {REBUILD}")
    if ((rows.sizes > shard.bytes) | (rows.offsets > shard.bytes - rows.sizes)).any():
        raise ShardError(f"{shard.index_file} points outside its tar; {REBUILD}")
    return rows


def _in_memory(parts: Iterator[Rows]) -> Columns:
    files = {name: io.BytesIO() for name in COLUMNS}
    _write_columns(files, parts)
    return {name: np.frombuffer(file.getbuffer(), _dtype(name)) for name, file in files.items()}


def _write_columns(files: dict[str, io.BytesIO] | dict[str, BinaryIO], parts: Iterator[Rows]) -> dict[str, str]:
    """Append the samples of all shards to the files of the columns; returns the SHA-256 of each."""
    written = dict.fromkeys(("keys", "identities"), 0)
    hashes = {name: hashlib.sha256() for name in COLUMNS}
    for rows in parts:
        values: Columns = {"offsets": rows.offsets, "sizes": rows.sizes, "labels": rows.labels}
        values |= {"keys": rows.keys.text, "identities": rows.identities.text}
        values["key_ends"] = rows.keys.ends + written["keys"]
        values["identity_ends"] = rows.identities.ends + written["identities"]
        for name in written:
            written[name] += len(values[name])
        for name, column in values.items():
            data = np.ascontiguousarray(column, _dtype(name)).data
            hashes[name].update(data)
            files[name].write(data)
    return {name: one.hexdigest() for name, one in hashes.items()}


def _dtype(column: str) -> str:
    return "u1" if column in ("keys", "identities") else "<i8"


def _mapped(folder: Path) -> Columns | None:
    """Map the columns of a converted index; None if there is none or it is damaged."""
    try:
        checksums = json.loads((folder / CONTENTS_FILE).read_bytes())
        with ThreadPoolExecutor(min(_workers(), len(COLUMNS)), thread_name_prefix="index") as pool:
            found = dict(zip(COLUMNS, pool.map(lambda name: sha256(folder / name), COLUMNS), strict=True))
        if found != checksums:
            return None
        # copy-on-write: torch takes no read-only arrays; the pages stay shared
        return {name: _map(folder / name, _dtype(name)) for name in COLUMNS}
    except (FileNotFoundError, ValueError):
        return None


def _map(path: Path, dtype: str) -> NDArray[Any]:
    """The array in a file, memory-mapped; an empty file cannot be mapped."""
    return np.memmap(path, dtype, mode="c") if path.stat().st_size else np.zeros(0, dtype)


def _converted(folder: Path, parts: Iterator[Rows]) -> Columns:
    """Convert the index into `folder`, unless another process just did, and map it. Raises ShardError, OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder.with_suffix(".lock")):
        columns = _mapped(folder)
        if columns is not None:
            return columns
        staging = folder.with_suffix(".tmp")
        for outdated in (staging, folder):
            shutil.rmtree(outdated, ignore_errors=True)
        staging.mkdir()
        try:
            with contextlib.ExitStack() as stack:
                files: dict[str, BinaryIO] = {name: stack.enter_context(open(staging / name, "wb")) for name in COLUMNS}
                checksums = _write_columns(files, parts)
            write_atomically(staging / CONTENTS_FILE, json.dumps(checksums) + "\n")
            staging.rename(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        columns = _mapped(folder)
    if columns is None:
        raise OSError(f"{folder} was changed while it was written")
    return columns
