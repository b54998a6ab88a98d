"""Checksums of the samples of a shard: `<shard>.crc32` beside the tar, compared whenever a sample is read.

So a damaged or exchanged tar is noticed sample by sample at its first use, without reading whole tars. A CRC-32 takes a
small fraction of the time of decoding the sample.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pfcluster.data.manifest import REBUILD, ShardError, ShardFile, require_checksum
from pfcluster.data.storage import Store, StoreError


class SampleChecksums:
    """The checksums of a split's samples; those of a shard are read when one of its samples is. Thread-safe."""

    def __init__(self, store: Store, shards: Sequence[ShardFile]) -> None:
        self._store, self._shards = store, shards
        self._of_shard: list[NDArray[np.uint32] | None] = [None] * len(shards)

    def matches(self, shard: int, row: int, sample: memoryview) -> bool:
        """Whether a sample has the bytes that it was written with. Raises ShardError if the checksums are missing or
        damaged, OSError.
        """
        checksums = self._of_shard[shard]
        if checksums is None:
            checksums = self._of_shard[shard] = self._read(self._shards[shard])
        return zlib.crc32(sample) == int(checksums[row])

    def _read(self, shard: ShardFile) -> NDArray[np.uint32]:
        where, expected = f"{self._store.name}/{shard.crc32_file}", shard.crc32_sha256
        try:
            data = self._store.read_metadata(shard.crc32_file, expected)
        except FileNotFoundError as error:
            raise ShardError(f"{where} is missing: copy it there again, or {REBUILD}") from error
        except StoreError as error:
            raise ShardError(str(error)) from error
        require_checksum(where, hashlib.sha256(data).hexdigest(), expected)
        if len(data) != 4 * shard.samples:
            raise ShardError(f"{where} does not have a checksum for each of {shard.samples} samples; {REBUILD}")
        return np.frombuffer(data, "<u4")
