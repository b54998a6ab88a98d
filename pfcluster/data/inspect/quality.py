"""What would spoil a result on a shard folder: copies and people in two splits, light, small faces, rare classes."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from pfcluster.data.inspect.near_duplicates import (
    MAX_PAIRS,
    MIN_CORRELATION,
    SIDE_CELLS,
    cells,
    correlation,
    grey,
    hashes,
    near_pairs,
)
from pfcluster.data.manifest import ShardError, ShardFile
from pfcluster.data.shards import UNLABELLED

UNKNOWN_PERSON = "photo-"
"""Identities that begin so stand for a photo whose person is unknown."""
BATCH = 512
PERCENTILES = (5, 50, 95)
NEARLY_BLACK, NEARLY_WHITE = 20, 235
"""A face whose mean brightness lies outside shows nothing."""
MOST_UNREADABLE = 0.01
MOST_SMALL = 0.5
MOST_BRIGHTNESS_GAP = 30
"""Between the medians of train and test."""
FEWEST_IN_TEST = 10
MOST_IMBALANCE = 20
MOST_SHARE_GAP = 0.10
TRAIN, TEST = "train", "test"

Percentiles = tuple[float, float, float]
"""The 5th, 50th and 95th percentile."""


class Faces(Protocol):
    """What is asked of a split; a ShardSplit has it."""

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def image(self, index: int) -> np.ndarray: ...

    def labels(self) -> Tensor: ...

    def identities(self) -> list[str]: ...

    def key(self, index: int) -> str: ...


class DuplicatePair(NamedTuple):
    """Two faces that look the same; also a row of the CSV."""

    split_a: str
    key_a: str
    label_a: str
    split_b: str
    key_b: str
    label_b: str
    distance: int


class IdentityLeak(NamedTuple):
    """A person in several splits, with a face's key in each."""

    identity: str
    keys: dict[str, str]


@dataclass(frozen=True)
class SplitQuality:
    """The spread of one split."""

    samples: int
    per_class: dict[str, int]
    brightness: Percentiles
    contrast: Percentiles
    """Standard deviation of the brightness within a face."""
    black: float
    """Share of the faces that are nearly black."""
    white: float
    enlargement: Percentiles | None = None
    """Side of the crop over the shorter side of the face's box; None where no record has a box."""
    small: float = 0.0
    """Share of the faces that are smaller than their crop."""


@dataclass(frozen=True)
class Quality:
    """All that was measured."""

    splits: dict[str, SplitQuality]
    pairs: tuple[DuplicatePair, ...]
    """Near-duplicates, within a split and between splits."""
    leaks: tuple[IdentityLeak, ...]

    @property
    def pairs_between_splits(self) -> list[DuplicatePair]:
        return [pair for pair in self.pairs if pair.split_a != pair.split_b]

    @property
    def conflicting_labels(self) -> list[DuplicatePair]:
        """Near-duplicates within a split that have different labels."""
        return [pair for pair in self.pairs if pair.split_a == pair.split_b and pair.label_a != pair.label_b]


def measure_quality(splits: Mapping[str, Faces], enlargements: Mapping[str, np.ndarray] | None = None) -> Quality:
    """Look at every image once. `enlargements` come from `read_enlargements`, by split. Raises BadSampleError."""
    looks = {name: _look(split) for name, split in splits.items()}
    measured = {
        name: _split_quality(split, looks[name].light, (enlargements or {}).get(name)) for name, split in splits.items()
    }
    pairs = _pairs(splits, list(looks.values())) if splits else ()
    return Quality(measured, pairs, identity_leaks(splits))


def read_enlargements(folder: Path, shards: Sequence[ShardFile], size: int) -> np.ndarray:
    """`size` over the shorter side of each box in a split's JSON records: float64 (n,). Raises ShardError."""
    found = []
    for shard in shards:
        try:
            with tarfile.open(folder / shard.file, "r:") as tar:
                for member in tar:
                    file = tar.extractfile(member) if member.name.endswith(".json") else None
                    box = json.load(file).get("box") if file else None
                    if box:
                        found.append(size / max(1e-6, min(box[2] - box[0], box[3] - box[1])))
        except (tarfile.TarError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise ShardError(f"a JSON record of {folder / shard.file} cannot be read ({error!r})") from error
    return np.array(found, dtype=np.float64)


def identity_leaks(splits: Mapping[str, Faces]) -> tuple[IdentityLeak, ...]:
    """Known people who are in more than one split."""
    keys: dict[str, dict[str, str]] = {}
    for name, split in splits.items():
        for index, identity in enumerate(split.identities()):
            if not identity.startswith(UNKNOWN_PERSON):
                keys.setdefault(identity, {}).setdefault(name, split.key(index))
    return tuple(IdentityLeak(identity, own) for identity, own in sorted(keys.items()) if len(own) > 1)


def quality_warnings(quality: Quality) -> tuple[str, ...]:
    """What would spoil a result, and what to do about it; empty where all is well."""
    found = [*_duplicate_warnings(quality), *_class_warnings(quality.splits)]
    for name, split in quality.splits.items():
        found += _spread_warnings(name, split)
    train, test = quality.splits.get(TRAIN), quality.splits.get(TEST)
    if train and test and train.samples and test.samples:
        found += _gap_warnings(train, test)
    return tuple(found)


class _Look(NamedTuple):
    """What is kept of each image of a split."""

    light: np.ndarray
    """Mean and standard deviation of the brightness: n 2."""
    hashes: np.ndarray
    """uint64 (n,)."""
    telling: np.ndarray
    """Which hashes say something: bool (n,)."""
    cells: np.ndarray
    """int8 n 256."""


def _look(split: Faces) -> _Look:
    empty = _Look(np.zeros((0, 2)), np.zeros(0, np.uint64), np.zeros(0, bool), np.zeros((0, SIDE_CELLS**2), np.int8))
    looks = [empty]
    for start in range(0, len(split), BATCH):
        images = np.stack([split.image(index) for index in range(start, min(start + BATCH, len(split)))])
        brightness = grey(images)
        light = np.stack([brightness.mean(axis=(1, 2)), brightness.std(axis=(1, 2))], axis=1)
        looks.append(_Look(light, *hashes(brightness), cells(brightness)))
    return _Look(*(np.concatenate(parts) for parts in zip(*looks, strict=True)))


def _split_quality(split: Faces, light: np.ndarray, enlargement: np.ndarray | None) -> SplitQuality:
    counts = [int((split.labels() == number).sum()) for number in range(len(split.classes))]
    has_boxes = enlargement is not None and len(enlargement) > 0
    return SplitQuality(
        samples=len(split),
        per_class=dict(zip(split.classes, counts, strict=True)),
        brightness=_spread(light[:, 0]),
        contrast=_spread(light[:, 1]),
        black=_share(light[:, 0] < NEARLY_BLACK),
        white=_share(light[:, 0] > NEARLY_WHITE),
        enlargement=_spread(enlargement) if enlargement is not None and has_boxes else None,
        small=_share(enlargement > 1) if enlargement is not None and has_boxes else 0.0,
    )


def _spread(values: np.ndarray) -> Percentiles:
    low, middle, high = np.percentile(values, PERCENTILES).tolist() if len(values) else (0.0, 0.0, 0.0)
    return low, middle, high


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if len(flags) else 0.0


def _pairs(splits: Mapping[str, Faces], looks: Sequence[_Look]) -> tuple[DuplicatePair, ...]:
    places = [(name, index) for name, split in splits.items() for index in range(len(split))]
    labels = {name: split.labels().tolist() for name, split in splits.items()}
    kept = np.concatenate([look.telling for look in looks]).nonzero()[0]
    found, distance = near_pairs(np.concatenate([look.hashes for look in looks])[kept])
    found = kept[found]
    every = np.concatenate([look.cells for look in looks])
    alike = correlation(every[found[:, 0]], every[found[:, 1]]) >= MIN_CORRELATION
    found, distance = found[alike], distance[alike]

    def side(place: int) -> tuple[str, str, str]:
        name, index = places[place]
        label = labels[name][index]
        return name, splits[name].key(index), "" if label == UNLABELLED else splits[name].classes[label]

    return tuple(
        DuplicatePair(*side(one), *side(other), apart)
        for (one, other), apart in zip(found.tolist(), distance.tolist(), strict=True)
    )


def _duplicate_warnings(quality: Quality) -> list[str]:
    found = []
    if between := quality.pairs_between_splits:
        found.append(
            f"{len(between)} pairs of near-duplicates lie in two splits, so a test would reward memory: look at them"
            " with --duplicates, and remove one of each or give both the same identity before building again"
        )
    if conflicting_labels := quality.conflicting_labels:
        found.append(
            f"{len(conflicting_labels)} pairs of near-duplicates within a split have different labels: look at them with"
            " --duplicates, and correct the labels or remove the photos"
        )
    if len(quality.pairs) >= MAX_PAIRS:
        found.append(f"the search stopped at {MAX_PAIRS} pairs of near-duplicates: remove copies and inspect again")
    if quality.leaks:
        found.append(
            f"{len(quality.leaks)} identities are in more than one split, so a test would not be of new people: split"
            " by person, or give photos of different people different identities"
        )
    return found


def _class_warnings(splits: Mapping[str, SplitQuality]) -> list[str]:
    found = []
    for name, split in splits.items():
        counts = {label: count for label, count in split.per_class.items() if count}
        if missing := [label for label in split.per_class if label not in counts]:
            found.append(f"{name} has 0 faces of {', '.join(missing)}: add photos, or leave the class out everywhere")
        few = [f"{label} ({count})" for label, count in counts.items() if count < FEWEST_IN_TEST]
        if name == TEST and few:
            found.append(
                f"test has fewer than {FEWEST_IN_TEST} faces of {', '.join(few)}, so their accuracy means little:"
                " enlarge --test-share or add photos"
            )
        if name == TRAIN and counts and max(counts.values()) > MOST_IMBALANCE * min(counts.values()):
            most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
            found.append(
                f"{name} has {counts[most]} faces of {most} but {counts[least]} of {least}, more than"
                f" {MOST_IMBALANCE} to 1: add photos of the rare class, and go by the mean accuracy over classes"
            )
    return found


def _spread_warnings(name: str, split: SplitQuality) -> list[str]:
    found = []
    if split.black + split.white > MOST_UNREADABLE:
        found.append(
            f"{split.black:.1%} of {name} is nearly black and {split.white:.1%} nearly white: remove those photos"
        )
    if split.enlargement and split.small > MOST_SMALL:
        found.append(
            f"{split.small:.0%} of {name}'s faces are smaller than their crop (enlarged {split.enlargement[1]:.1f}"
            " times in the median): build with a smaller --size, or from larger photos"
        )
    return found


def _gap_warnings(train: SplitQuality, test: SplitQuality) -> list[str]:
    found = []
    if abs(train.brightness[1] - test.brightness[1]) > MOST_BRIGHTNESS_GAP:
        found.append(
            f"the median brightness is {train.brightness[1]:.0f} in train but {test.brightness[1]:.0f} in test: mix"
            " their sources, or train with stronger changes of brightness"
        )
    for label in train.per_class:
        shares = train.per_class[label] / train.samples, test.per_class[label] / test.samples
        if abs(shares[0] - shares[1]) > MOST_SHARE_GAP:
            found.append(
                f"{label} is {shares[0]:.0%} of train but {shares[1]:.0%} of test: split both from the same photos, or"
                " go by the mean accuracy over classes"
            )
    return found
