"""Implementations of `Split`: synthetic faces, a split of a shard folder, a subset. Legend: n samples, b images."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pfcluster.data.in_memory import FileSplit, load_in_host_memory
from pfcluster.data.manifest import UNKNOWN_IDENTITY
from pfcluster.data.shards import BadSampleError, ShardSplit
from pfcluster.data.synthetic.dataset import SyntheticFaces
from pfcluster.data.types import DataError, RawBatch, Split

MAX_CACHED_BYTES = 2**31
"""Larger synthetic splits are rendered on each access, unless they are cached in a file."""
RENDER_CHUNK = 512
MAX_NAMES = 20
"""Damaged samples that a result or a warning names."""


class SyntheticSplit:
    """Synthetic faces. Rendered once and kept in memory up to MAX_CACHED_BYTES, else rendered on each access. With a
    `folder`, rendered once into a file there, which other processes and later runs reuse.
    """

    def __init__(
        self, faces: SyntheticFaces, first_index: int = 0, folder: Path | None = None, in_memory: bool = True
    ) -> None:
        """`in_memory`: whether images may be kept in memory."""
        self.faces = faces
        self.folder = folder
        self.first_index = first_index
        self.classes = tuple(faces.classes)
        self._in_memory = in_memory and len(faces) * 3 * faces.size**2 <= MAX_CACHED_BYTES
        self._cached: Tensor | FileSplit | None = None
        self._render_lock = threading.Lock()
        self._labels = faces.labels()

    def __len__(self) -> int:
        return len(self.faces)

    def labels(self) -> Tensor:
        return self._labels

    def batch(self, indices: Tensor) -> RawBatch:
        return RawBatch(self._images(indices), self._labels[indices])

    def keys(self, indices: Tensor) -> list[str]:
        return [f"synthetic-{self.first_index + i}" for i in indices.tolist()]

    def poker_faces(self, indices: Tensor) -> Tensor:
        """Ground-truth poker faces: uint8 b 3 h w."""
        return self.faces.poker_faces(indices)

    def _images(self, indices: Tensor) -> Tensor:
        if self.folder is None and not self._in_memory:
            return self.faces.images(indices)
        with self._render_lock:  # prefetching threads share the split
            if self._cached is None:
                self._cached = self._render_all() if self.folder is None else self._in_file(self.folder)
        return self._cached[indices] if isinstance(self._cached, Tensor) else self._cached.batch(indices).images

    def _render_all(self) -> Tensor:
        return torch.cat([self.faces.images(chunk) for chunk in torch.arange(len(self)).split(RENDER_CHUNK)])

    def _in_file(self, folder: Path) -> FileSplit:
        uncached = SyntheticSplit(self.faces, self.first_index, in_memory=False)
        return load_in_host_memory(uncached, folder, self.faces.fingerprint(), 1)


@dataclass
class ShardedSplit:
    """A split of a shard folder. A damaged sample is recorded in `damaged` and replaced by the next one."""

    shards: ShardSplit
    max_bad_share: float
    damaged: dict[str, str] = field(default_factory=dict)
    """Key -> reason, of the damaged samples that this process has met."""
    decoder: torch.device | None = None
    """The device that decodes; None: the host."""

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.shards.classes)

    def __len__(self) -> int:
        return len(self.shards)

    def labels(self) -> Tensor:
        return self.shards.labels()

    def batch(self, indices: Tensor) -> RawBatch:
        """Raises DataError if more than `max_bad_share` of the split's samples could not be read so far."""
        try:
            images = self._decode(indices)
        except BadSampleError:
            indices = torch.tensor([self._next_readable(index) for index in indices.tolist()])
            images = self._decode(indices)
        return RawBatch(images, self.labels()[indices])

    def keys(self, indices: Tensor) -> list[str]:
        return [self.shards.key(i) for i in indices.tolist()]

    def require_few(self, damaged: Mapping[str, str]) -> None:
        """Raises DataError if more than `max_bad_share` of the split's samples are damaged."""
        if len(damaged) > self.max_bad_share * len(self):
            names = ", ".join(sorted(damaged)[:5])
            raise DataError(
                f"{len(damaged)} of {len(self)} samples of the {self.shards.split} split cannot be read ({names}, ...),"
                f" more than data.max_bad_share = {self.max_bad_share}: {next(iter(damaged.values()))}; check with"
                " `pfcluster inspect --verify`"
            )

    def _decode(self, indices: Tensor) -> Tensor:
        return self.shards.images(indices) if self.decoder is None else self.shards.images_on(self.decoder, indices)

    def _next_readable(self, index: int) -> int:
        """`index`, or the next sample that can be read. Raises DataError if too many cannot."""
        for candidate in range(index, index + len(self)):
            try:
                self.shards.image(candidate % len(self))
            except BadSampleError as error:
                self.damaged[self.shards.key(candidate % len(self))] = str(error)
                self.require_few(self.damaged)
            else:
                return candidate % len(self)
        raise DataError("no sample of this split can be read; check with `pfcluster inspect --verify`")


@dataclass(frozen=True)
class Subset:
    """Some samples of a split, in a fixed order."""

    split: Split
    indices: Tensor
    """long (n,)."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.split.classes

    def __len__(self) -> int:
        return len(self.indices)

    def labels(self) -> Tensor:
        return self.split.labels()[self.indices]

    def batch(self, indices: Tensor) -> RawBatch:
        return self.split.batch(self.indices[indices])

    def keys(self, indices: Tensor) -> list[str]:
        return self.split.keys(self.indices[indices])


def sharded(split: Split | None) -> ShardedSplit | None:
    """The split of a shard folder that a split takes its samples from; None for synthetic faces."""
    while split is not None and not isinstance(split, ShardedSplit):
        split = getattr(split, "split", None)
    return split


def damaged_record(keys: Iterable[str], size: int) -> dict[str, Any]:
    """Damaged samples of a split as results record them: their count, the size of the split, and names."""
    names = sorted(keys)
    return {"count": len(names), "of": size, "names": names[:MAX_NAMES]}


def damaged_warning(split: str, record: Mapping[str, Any]) -> str:
    """A sentence on the damaged samples of a split, from their `damaged_record`."""
    names = ", ".join(record["names"]) + (", ..." if record["count"] > MAX_NAMES else "")
    return f"{record['count']} damaged samples of the {split} split were replaced by the next ones: {names}"


def identities_of(split: Split) -> list[str]:
    """The identity of each sample, "" if unknown; equal names mean the same identity."""
    return ["" if name.startswith(UNKNOWN_IDENTITY) else name for name in _recorded_identities(split)]


def _recorded_identities(split: Split) -> list[str]:
    """The identity of each sample as its shard folder records it: the photo's hash if it is unknown."""
    if isinstance(split, SyntheticSplit):
        return [str(number) for number in split.faces.identities().tolist()]
    if isinstance(split, ShardedSplit):
        return split.shards.identities()
    if isinstance(split, Subset):
        identities = _recorded_identities(split.split)
        return [identities[index] for index in split.indices.tolist()]
    return [""] * len(split)


def may_share_photos(one: Split, other: Split) -> bool:
    """Whether a photo, or an identity, may be in both splits, according to their shard folders. True also if these
    cannot decide it: for other kinds of splits, and if some identities are known and others are not.
    """
    first, second = set(_recorded_identities(one)), set(_recorded_identities(other))
    kinds = {name.startswith(UNKNOWN_IDENTITY) for name in first | second}
    return bool(first & second) or "" in first | second or len(kinds) > 1


def sample_ids(split: Split) -> list[str]:
    """Names of all samples that distinguish builds: name and identity, or the photo's content hash if the identity is
    unknown. The names alone are numbers. Equal for builds of the same photos at another size.
    """
    keys = split.keys(torch.arange(len(split)))
    return [f"{key} {identity}" for key, identity in zip(keys, _recorded_identities(split), strict=True)]
