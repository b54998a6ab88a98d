"""Quality measurements of a shard folder: near-duplicates, identity leaks, brightness, face size, class counts.

Legend: n images, h w pixels.
"""

from __future__ import annotations

import functools
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from pfcluster.config.json_files import parse_json
from pfcluster.data.inspect.near_duplicates import (
    THUMBNAIL_SIDE,
    are_similar,
    grey,
    hashes,
    near_pairs,
    thumbnails,
)
from pfcluster.data.manifest import UNKNOWN_IDENTITY, ShardError, ShardFile
from pfcluster.data.shards import UNLABELLED

BATCH_PIXELS = 1 << 22
"""Pixels that are measured at a time; about 100 MB with their brightness."""
PERCENTILES = (5, 50, 95)
NEARLY_BLACK, NEARLY_WHITE = 20, 235
"""Mean brightness (0..255) below and above which a face is not recognisable."""

Percentiles = tuple[float, float, float]
"""The 5th, 50th and 95th percentile."""


class Faces(Protocol):
    """The interface of a split that is measured; implemented by `ShardSplit`."""

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def image(self, index: int) -> np.ndarray: ...

    def labels(self) -> Tensor: ...

    def identities(self) -> list[str]: ...

    def key(self, index: int) -> str: ...


class DuplicatePair(NamedTuple):
    """Two near-duplicates; also a row of the CSV file."""

    split_a: str
    key_a: str
    label_a: str
    split_b: str
    key_b: str
    label_b: str
    distance: int
    """Hamming distance of the hashes."""


class IdentityLeak(NamedTuple):
    """An identity in several splits."""

    identity: str
    keys: dict[str, str]
    """Split -> key of one face."""

    @property
    def is_photo(self) -> bool:
        """Whether the identity is unknown, so that the photo's hash takes its place."""
        return self.identity.startswith(UNKNOWN_IDENTITY)


@dataclass(frozen=True)
class SplitQuality:
    """Measurements of one split."""

    samples: int
    per_class: dict[str, int]
    brightness: Percentiles
    """Percentiles of the faces' mean brightness, 0..255."""
    contrast: Percentiles
    """Percentiles of the standard deviation of the brightness within a face."""
    black: float
    """Share of nearly black faces."""
    white: float
    """Share of nearly white faces."""
    enlargement: Percentiles | None = None
    """Percentiles of the crop's side over the shorter side of the face box. None if no record has a box."""
    small: float = 0.0
    """Share of faces that are smaller than their crop."""


@dataclass(frozen=True)
class Quality:
    """Measurements of a shard folder."""

    splits: dict[str, SplitQuality]
    pairs: tuple[DuplicatePair, ...]
    """Near-duplicates within and between splits."""
    leaks: tuple[IdentityLeak, ...]
    pairs_complete: bool = True
    """False if the search for near-duplicates stopped at a limit: there may be more pairs."""

    @property
    def pairs_between_splits(self) -> list[DuplicatePair]:
        return [pair for pair in self.pairs if pair.split_a != pair.split_b]

    @property
    def conflicting_labels(self) -> list[DuplicatePair]:
        """Near-duplicates within a split that have different labels."""
        return [pair for pair in self.pairs if pair.split_a == pair.split_b and pair.label_a != pair.label_b]


def measure_quality(splits: Mapping[str, Faces], enlargements: Mapping[str, np.ndarray] | None = None) -> Quality:
    """Measure all splits, decoding each image once. `enlargements` are those of `read_enlargements`, by split. Raises
    BadSampleError.
    """
    stats = {name: _image_stats(split) for name, split in splits.items()}
    measured = {
        name: _split_quality(split, stats[name].light, (enlargements or {}).get(name)) for name, split in splits.items()
    }
    pairs, complete = _duplicate_pairs(splits, list(stats.values())) if splits else ((), True)
    return Quality(measured, pairs, identity_leaks(splits), complete)


def read_enlargements(folder: Path, shards: Sequence[ShardFile], size: int) -> np.ndarray:
    """`size` over the shorter side of each face box in a split's JSON records: float64 (n,). Raises ShardError."""
    enlargements = []
    for shard in shards:
        try:
            with tarfile.open(folder / shard.file, "r:") as tar:
                for member in tar:
                    file = tar.extractfile(member) if member.name.endswith(".json") else None
                    box = parse_json(file.read(), member.name).get("box") if file else None
                    if box:
                        enlargements.append(size / max(1e-6, min(box[2] - box[0], box[3] - box[1])))
        except (tarfile.TarError, OSError, ValueError, TypeError, AttributeError, LookupError) as error:
            raise ShardError(f"a JSON record of {folder / shard.file} cannot be read ({error!r})") from error
    return np.array(enlargements, dtype=np.float64)


def identity_leaks(splits: Mapping[str, Faces]) -> tuple[IdentityLeak, ...]:
    """Identities that occur in more than one split: known ones, and photos of unknown ones (UNKNOWN_IDENTITY)."""
    occurrences = Counter(identity for split in splits.values() for identity in set(split.identities()))
    leaking = {identity for identity, count in occurrences.items() if count > 1}
    keys: dict[str, dict[str, str]] = {identity: {} for identity in sorted(leaking)}
    for name, split in splits.items():
        for index, identity in enumerate(split.identities()):
            if identity in leaking:
                keys[identity].setdefault(name, split.key(index))
    return tuple(IdentityLeak(identity, by_split) for identity, by_split in keys.items())


class _ImageStats(NamedTuple):
    """Statistics of each image of a split."""

    light: np.ndarray
    """Mean and standard deviation of the brightness: n 2."""
    hashes: np.ndarray
    """uint64 (n,)."""
    usable: np.ndarray
    """Whether the image can be compared by its hash: bool (n,)."""
    thumbnails: np.ndarray
    """int8 n 256."""


def _image_stats(split: Faces) -> _ImageStats:
    empty = _ImageStats(
        np.zeros((0, 2)), np.zeros(0, np.uint64), np.zeros(0, bool), np.zeros((0, THUMBNAIL_SIDE**2), np.int8)
    )
    batches = [empty]
    pixels = split.image(0).size // 3 if len(split) else 1
    batch = max(1, BATCH_PIXELS // pixels)
    for start in range(0, len(split), batch):
        images = np.stack([split.image(index) for index in range(start, min(start + batch, len(split)))])
        brightness = grey(images)
        light = np.stack([brightness.mean(axis=(1, 2)), brightness.std(axis=(1, 2))], axis=1)
        batches.append(_ImageStats(light, *hashes(brightness), thumbnails(brightness)))
    return _ImageStats(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))


def _split_quality(split: Faces, light: np.ndarray, enlargement: np.ndarray | None) -> SplitQuality:
    counts = [int((split.labels() == number).sum()) for number in range(len(split.classes))]
    has_boxes = enlargement is not None and len(enlargement) > 0
    return SplitQuality(
        samples=len(split),
        per_class=dict(zip(split.classes, counts, strict=True)),
        brightness=_percentiles(light[:, 0]),
        contrast=_percentiles(light[:, 1]),
        black=_share(light[:, 0] < NEARLY_BLACK),
        white=_share(light[:, 0] > NEARLY_WHITE),
        enlargement=_percentiles(enlargement) if enlargement is not None and has_boxes else None,
        small=_share(enlargement > 1) if enlargement is not None and has_boxes else 0.0,
    )


def _percentiles(values: np.ndarray) -> Percentiles:
    low, median, high = np.percentile(values, PERCENTILES).tolist() if len(values) else (0.0, 0.0, 0.0)
    return low, median, high


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if len(flags) else 0.0


def _duplicate_pairs(
    splits: Mapping[str, Faces], stats: Sequence[_ImageStats]
) -> tuple[tuple[DuplicatePair, ...], bool]:
    """Near-duplicates among all images, and whether these are all."""
    usable = np.concatenate([each.usable for each in stats]).nonzero()[0]
    small = np.concatenate([each.thumbnails for each in stats])[usable]
    values = np.concatenate([each.hashes for each in stats])[usable]
    pairs, distance, complete = near_pairs(values, lambda candidates: are_similar(small, candidates))
    names, labels = list(splits), {name: split.labels().tolist() for name, split in splits.items()}
    starts = np.cumsum([0, *map(len, splits.values())])

    @functools.cache
    def columns(number: int) -> tuple[str, str, str]:
        place = int(np.searchsorted(starts, number, side="right")) - 1
        name, index = names[place], number - int(starts[place])
        label = labels[name][index]
        return name, splits[name].key(index), "" if label == UNLABELLED else splits[name].classes[label]

    rows = (
        (int(usable[one]), int(usable[other]), int(apart)) for (one, other), apart in zip(pairs, distance, strict=True)
    )
    return tuple(DuplicatePair(*columns(one), *columns(other), apart) for one, other, apart in rows), complete
