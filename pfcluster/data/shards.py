"""Random access to the samples of a shard folder, without webdataset and without unpickling anything.

Legend: n samples of the split, b samples of a batch, h w pixels (both the manifest's `size`).
"""

from __future__ import annotations

import errno
import functools
import threading
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfcluster.data.fingerprints import split_fingerprint
from pfcluster.data.index_rows import UNLABELLED as UNLABELLED
from pfcluster.data.jpeg import decode_jpeg_into
from pfcluster.data.manifest import REBUILD, ShardError, ShardFile, as_store, check_shard, load_manifest
from pfcluster.data.mapped_file import map_file
from pfcluster.data.sample_checksums import SampleChecksums
from pfcluster.data.shard_index import load_index
from pfcluster.data.storage import LocalStore, Store, StoreError
from pfcluster.data.torch_jpeg import decode_jpegs_on
from pfcluster.system.os_errors import retry_transient


class BadSampleError(ShardError):
    """A single sample is damaged or cannot be decoded."""


class ShardSplit:
    """One split of a shard folder. Each tar is memory-mapped when one of its samples is first read, and keeps no file
    open. Thread-safe; unpickling reopens the folder.
    """

    def __init__(
        self, folder: Path | str, split: str, *, verify: bool = False, cache: str | Path | None = None
    ) -> None:
        """Open a split of a folder or URL. Verifies the checksums of the indexes and the sizes of local tars, with
        `verify` also their checksums. Remote tars are downloaded into `cache` when one of their samples is first read,
        and then verified. Raises ShardError, OSError.
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
        self._fingerprint = split_fingerprint(manifest, split)
        self._checksums = SampleChecksums(self._store, self._files)
        if verify and isinstance(self._store, LocalStore):
            for shard in self._files:
                check_shard(self._store.folder, shard)
        self._tars: list[memoryview | None] = [None] * len(self._files)
        self._map_lock = threading.Lock()
        if self._store.is_local:
            for shard in self._files:
                _local_path(self._store, shard)
        self._index = load_index(self._store, split, self._files, self.classes, cache)
        self._labels = torch.from_numpy(self._index.columns["labels"])

    @property
    def is_local(self) -> bool:
        """Whether the tars are on this machine."""
        return self._store.is_local

    def fingerprint(self) -> str:
        """Hash of the split's images and labels; see `fingerprints.split_fingerprint`."""
        return self._fingerprint

    def _tar(self, number: int) -> memoryview:
        """The memory-mapped tar, downloaded first if remote."""
        mapped = self._tars[number]
        if mapped is None:
            with self._map_lock:
                mapped = self._tars[number] or _map_tar(self._store, self._files[number])
                self._tars[number] = mapped
        return mapped

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(ShardSplit, self.folder, self.split, cache=self._cache), ()

    def __len__(self) -> int:
        return len(self._index)

    def labels(self) -> Tensor:
        """Labels of all samples, as indices into `classes`, or UNLABELLED: long (n,)."""
        return self._labels

    def identities(self) -> list[str]:
        """Identity of each sample, or the source photo's group if it is unknown."""
        return self._index.identities()

    def key(self, index: int) -> str:
        """The sample's name in its tar."""
        return self._index.key(index)

    def jpeg(self, index: int) -> bytes:
        """The sample's JPEG file."""
        return bytes(self._view(index))

    def image(self, index: int) -> np.ndarray:
        """Decode a sample: -> uint8 h w 3, RGB; greyscale gives equal channels. Raises BadSampleError, ShardError."""
        pixels = np.empty((self.size, self.size, 3), dtype=np.uint8)
        self._decode(index, pixels)
        return pixels

    def images(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Decode several samples: -> uint8 b 3 h w, a view of b h w 3. Raises BadSampleError, ShardError."""
        numbers = [int(index) for index in indices]
        batch = np.empty((len(numbers), self.size, self.size, 3), dtype=np.uint8)
        for row, index in enumerate(numbers):
            self._decode(index, batch[row])
        return torch.from_numpy(batch).permute(0, 3, 1, 2)

    def images_on(self, device: torch.device, indices: Sequence[int] | Tensor) -> Tensor:
        """`images`, decoded on a device: -> uint8 b 3 h w there. A batch that the device's decoder refuses is decoded
        on the host, which names a damaged sample. Raises BadSampleError, ShardError.
        """
        try:
            return decode_jpegs_on(device, [self._checked(int(index)) for index in indices], self.size)
        except ValueError:
            return self.images(indices).to(device)

    def _decode(self, index: int, pixels: np.ndarray) -> None:
        """Decode a sample into `pixels`, uint8 h w 3."""
        jpeg = self._checked(index)
        try:
            decode_jpeg_into(jpeg, pixels)
        except ValueError as error:
            raise BadSampleError(f"{self._describe(index)} does not decode ({error}); {REBUILD}") from error

    def _checked(self, index: int) -> memoryview:
        """A sample's JPEG file. Raises BadSampleError if it does not have its checksum."""
        jpeg, shard = self._view(index), self._shard_of(index)
        if not self._checksums.matches(shard, index - self._index.first[shard], jpeg):
            raise BadSampleError(
                f"{self._describe(index)} has other bytes than when it was built: its tar is damaged, or of another"
                f" build; {REBUILD}"
            )
        return jpeg

    def _view(self, index: int) -> memoryview:
        offset, size = (int(self._index.columns[name][index]) for name in ("offsets", "sizes"))
        return self._tar(self._shard_of(index))[offset : offset + size]

    def _shard_of(self, index: int) -> int:
        """Number of the shard that holds a sample."""
        return bisect_right(self._index.first, index) - 1

    def _describe(self, index: int) -> str:
        return f"sample {self.key(index)} in {self._store.name}/{self._files[self._shard_of(index)].file}"


def _map_tar(store: Store, shard: ShardFile) -> memoryview:
    """Memory-map a tar. Raises ShardError if its size is not the manifest's, OSError if it cannot be opened."""
    path = _local_path(store, shard)
    return retry_transient(lambda: map_file(path, shard.bytes))


def _local_path(store: Store, shard: ShardFile) -> Path:
    """Path of a tar that has the manifest's size, downloaded first if remote. Raises ShardError, OSError."""
    where = f"{store.name}/{shard.file}"
    try:
        path = store.local_path(shard.file, shard.sha256)
        size = retry_transient(path.stat).st_size
    except FileNotFoundError as error:
        raise ShardError(f"{where} is missing: copy it there again, or {REBUILD}") from error
    except StoreError as error:
        raise ShardError(f"{where} cannot be read: {error}") from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ShardError(f"{where} is too long for a file's name; {REBUILD}") from error
    if size != shard.bytes:
        problem = "cut off" if size < shard.bytes else "too long"
        raise ShardError(f"{where} is {problem}: {size} bytes, the manifest says {shard.bytes}; {REBUILD}")
    return path
