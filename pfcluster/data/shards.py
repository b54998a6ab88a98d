"""The reader of a shard folder. Nothing here needs webdataset, and nothing is ever unpickled.

Legend: `n` samples of a split, `b` samples asked for, `h` `w` pixels (both the manifest's `size`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfcluster.data.jpeg import decode_jpeg_into
from pfcluster.data.manifest import (
    REBUILD,
    ShardError,
    ShardFile,
    are_texts,
    as_store,
    check_shard,
    is_count,
    load_manifest,
    require_same,
)
from pfcluster.data.storage import LocalStore, Store, StoreError

UNLABELLED = -1
"""Label of every sample of a folder that was built without labels."""


class BadSampleError(ShardError):
    """One sample that cannot be used; the others may be well."""


class ShardSplit:
    """One split of a shard folder: samples by number, tars memory-mapped. Threads may share it; pickling reopens it."""

    def __init__(
        self, folder: Path | str, split: str, *, verify: bool = False, cache: str | Path | None = None
    ) -> None:
        """Open a split of a folder or URL. Indexes are checked by their checksums, local tars by their sizes, with
        `verify` by their checksums too; remote ones are fetched into `cache` when a sample of theirs is asked for, and
        checked as they arrive. Raises ShardError.
        """
        self.folder = folder
        self.split = split
        self._cache = cache
        self._store = as_store(folder, cache)
        manifest = load_manifest(self._store)
        if split not in manifest.splits:
            raise ShardError(f"{self._store.name} has no split {split!r}, only {', '.join(manifest.splits)}")
        self.classes = manifest.classes
        self.size = manifest.size
        self.name = manifest.name
        self.votes = manifest.votes
        self._files = manifest.splits[split].shards
        if verify and isinstance(self._store, LocalStore):
            for shard in self._files:
                check_shard(self._store.folder, shard)
        self._tars: list[mmap.mmap | None] = [None] * len(self._files)
        self._mapping = threading.Lock()
        if self._store.is_local:
            for number in range(len(self._files)):
                self._tar(number)
        rows = [(number, row) for number, shard in enumerate(self._files) for row in _load_index(self._store, shard)]
        self._read_rows(rows)

    @property
    def is_local(self) -> bool:
        """Whether all tars lie on this machine."""
        return self._store.is_local

    def fingerprint(self) -> str:
        """Changes with any byte of the split's tars."""
        return hashlib.sha256("".join(shard.sha256 for shard in self._files).encode()).hexdigest()

    def _tar(self, number: int) -> mmap.mmap:
        """The mapped tar; a remote one is fetched first."""
        mapped = self._tars[number]
        if mapped is None:
            with self._mapping:
                mapped = self._tars[number] or _map_tar(self._store, self._files[number])
                self._tars[number] = mapped
        return mapped

    def _read_rows(self, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        numbers = {name: number for number, name in enumerate(self.classes)}
        try:
            self._keys = [row["key"] for _, row in rows]
            self._identities = [row["identity"] for _, row in rows]
            labels = [numbers[row["label"]] if numbers else UNLABELLED for _, row in rows]
            self._labels = torch.tensor(labels, dtype=torch.long)
            spans = [(shard, row["offset"], row["size"]) for shard, row in rows]
            if not are_texts(*self._keys, *self._identities):
                raise TypeError("a key or an identity is no text")
            if not all(is_count(place) for span in spans for place in span):
                raise TypeError("an offset or a size is no count")
        except (KeyError, TypeError) as error:
            raise ShardError(f"an index of {self.folder}/{self.split} is garbled ({error!r}); {REBUILD}") from error
        for shard, offset, size in spans:
            if offset + size > self._files[shard].bytes:
                raise ShardError(f"{self._files[shard].index_file} points outside its tar; {REBUILD}")
        self._spans = np.array(spans, dtype=np.int64).reshape(-1, 3)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(ShardSplit, self.folder, self.split, cache=self._cache), ()

    def __len__(self) -> int:
        return len(self._keys)

    def labels(self) -> Tensor:
        """Every sample's label, as its place in `classes`, or UNLABELLED: long (n,)."""
        return self._labels

    def identities(self) -> list[str]:
        """Every sample's person, or source group where the person is unknown."""
        return list(self._identities)

    def key(self, index: int) -> str:
        """The sample's name in its tar."""
        return self._keys[index]

    def jpeg(self, index: int) -> bytes:
        """The sample's JPEG file."""
        return bytes(self._view(index))

    def image(self, index: int) -> np.ndarray:
        """The sample's pixels: uint8 h w 3, RGB; grey becomes three equal channels. Raises BadSampleError."""
        pixels = np.empty((self.size, self.size, 3), dtype=np.uint8)
        self._decode(index, pixels)
        return pixels

    def images(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Pixels of several samples: uint8 b 3 h w, a view of b h w 3. Raises BadSampleError."""
        numbers = [int(index) for index in indices]
        batch = np.empty((len(numbers), self.size, self.size, 3), dtype=np.uint8)
        for row, index in enumerate(numbers):
            self._decode(index, batch[row])
        return torch.from_numpy(batch).permute(0, 3, 1, 2)

    def _decode(self, index: int, pixels: np.ndarray) -> None:
        """Fill `pixels`, uint8 size size 3."""
        try:
            decode_jpeg_into(self._view(index), pixels)
        except ValueError as error:
            raise BadSampleError(f"{self._place(index)} does not decode ({error}); {REBUILD}") from error

    def _view(self, index: int) -> memoryview:
        shard, offset, size = self._spans[index].tolist()
        return memoryview(self._tar(shard))[offset : offset + size]

    def _place(self, index: int) -> str:
        return f"sample {self._keys[index]} in {self._store.name}/{self._files[self._spans[index, 0]].file}"


def _map_tar(store: Store, shard: ShardFile) -> mmap.mmap:
    """Map a tar whose size is the manifest's. Raises ShardError."""
    where = f"{store.name}/{shard.file}"
    try:
        with open(store.path(shard.file, shard.sha256), "rb") as file:
            found = file.seek(0, 2)
            if found != shard.bytes:
                state = "cut off" if found < shard.bytes else "too long"
                raise ShardError(f"{where} is {state}: {found} bytes, the manifest says {shard.bytes}; {REBUILD}")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, StoreError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ShardError(f"{where} cannot be read ({reason}); {REBUILD}") from error


def _load_index(store: Store, shard: ShardFile) -> list[dict[str, Any]]:
    where = f"{store.name}/{shard.index_file}"
    try:
        listing = store.listing(shard.index_file, shard.index_sha256)
    except (OSError, StoreError) as error:
        raise ShardError(f"{where} cannot be read ({error}); {REBUILD}") from error
    require_same(where, hashlib.sha256(listing).hexdigest(), shard.index_sha256)
    try:
        rows = json.loads(listing)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{where} cannot be read ({error}); {REBUILD}") from error
    if not isinstance(rows, list) or len(rows) != shard.samples:
        raise ShardError(f"{where} does not list the {shard.samples} samples of the manifest; {REBUILD}")
    return rows
