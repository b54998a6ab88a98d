"""The plan of a build: every photo has its shard and key, or its reason, before the first one is decoded.

A plan is a pure function of the photos and the options. Shards are planned over photos (`samples_per_shard` a shard),
so each can be made alone; photos in which no face is found leave theirs shorter.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pfcluster.data.raw.base import RawDataset, RawPhoto, read_bytes
from pfcluster.data.split import choose_groups, connected_groups, rank
from pfcluster.emotions import CANONICAL, UnknownEmotionError, canonical_name, ordered

SPLITS = ("train", "validation", "test")


class BuildError(ValueError):
    """A build that cannot start or go on: says why, and what would do."""


class LeftOut(NamedTuple):
    """A photo that is in no shard."""

    role: str
    """Which input it belongs to: `input` or `test_input`."""
    number: int
    """Its place in that input."""
    reason: str
    detail: str


class PlannedPhoto(NamedTuple):
    """A photo with its place in a shard."""

    role: str
    number: int
    key: str
    label: str
    """Canonical name."""
    identity: str
    """The person, or `photo-<content hash>` where none is known."""
    sha256: str
    """Of the photo's file."""


@dataclass(frozen=True)
class PlannedShard:
    """The unit of work."""

    name: str
    """Such as `train-00003`."""
    split: str
    photos: tuple[PlannedPhoto, ...]


@dataclass(frozen=True)
class Plan:
    """Everything a build will do, but for the photos in which no face is found."""

    classes: tuple[str, ...]
    photos: int
    """Photos listed, of both inputs."""
    known_identities: int
    """Photos among the planned ones whose person is known."""
    shards: tuple[PlannedShard, ...]
    left_out: tuple[LeftOut, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts; `Plan.from_json` reads them back."""
        shards = [{"name": shard.name, "split": shard.split, "photos": shard.photos} for shard in self.shards]
        return {**vars(self), "shards": shards}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Plan:
        shards = tuple(
            PlannedShard(shard["name"], shard["split"], tuple(PlannedPhoto(*photo) for photo in shard["photos"]))
            for shard in values["shards"]
        )
        left_out = tuple(LeftOut(*photo) for photo in values["left_out"])
        return Plan(tuple(values["classes"]), values["photos"], values["known_identities"], shards, left_out)


@dataclass(frozen=True)
class _Candidate:
    role: str
    index: int
    photo: RawPhoto
    label: str
    sha256: str

    @property
    def identity(self) -> str:
        return self.photo.identity or f"photo-{self.sha256[:16]}"


def listing_digest(datasets: Mapping[str, RawDataset]) -> str:
    """SHA-256 over what the listings say: names, labels, identities, sizes. Tells whether an input has changed."""
    digest = hashlib.sha256()
    for role, dataset in sorted(datasets.items()):
        for photo in dataset.photos:
            line = json.dumps([role, photo.source, photo.label, photo.identity, photo.size])
            digest.update(line.encode())
    return digest.hexdigest()


def make_plan(
    datasets: Mapping[str, RawDataset],
    *,
    val_share: float,
    test_share: float,
    samples_per_shard: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> Plan:
    """Plan the build of `input` and, where given, `test_input`. Reads every photo once; `advance` is called for each.

    Raises BuildError where nothing is left to build.
    """
    candidates, left_out = _candidates(datasets, advance)
    kept, same = _without_copies(candidates)
    left_out += same
    if not kept:
        raise BuildError(_nothing_left(datasets, left_out))
    splits = _split(candidates, kept, val_share, test_share, seed)
    shards = [shard for split in SPLITS for shard in _shards(split, splits[split], samples_per_shard, seed)]
    return Plan(
        classes=ordered([candidate.label for candidate in kept]),
        photos=sum(len(dataset.photos) for dataset in datasets.values()),
        known_identities=sum(candidate.photo.identity is not None for candidate in kept),
        shards=tuple(shards),
        left_out=tuple(sorted(left_out)),
    )


def limited(dataset: RawDataset, limit: int | None, seed: int) -> RawDataset:
    """The dataset cut to `limit` photos drawn by `seed`, in their order."""
    if limit is None or limit >= len(dataset.photos):
        return dataset
    drawn = sorted(range(len(dataset.photos)), key=lambda i: rank(seed, f"{dataset.photos[i].source}\0{i}"))[:limit]
    photos = tuple(dataset.photos[index] for index in sorted(drawn))
    return RawDataset(dataset.kind, dataset.name, photos, dataset.other_files, dataset.folder)


def _candidates(
    datasets: Mapping[str, RawDataset], advance: Callable[[], None]
) -> tuple[list[_Candidate], list[LeftOut]]:
    """Photos that are there and have a known label."""
    candidates: list[_Candidate] = []
    left_out: list[LeftOut] = []
    for role, dataset in datasets.items():
        for index, photo in enumerate(dataset.photos):
            advance()
            found = _candidate(role, index, photo)
            if isinstance(found, LeftOut):
                left_out.append(found)
            else:
                candidates.append(found)
    return candidates, left_out


def _candidate(role: str, index: int, photo: RawPhoto) -> _Candidate | LeftOut:
    if not photo.path:
        return LeftOut(role, index, "no image named", "the row has a label only")
    if photo.size < 0:
        return LeftOut(role, index, "missing file", "")
    try:
        label = canonical_name(photo.label)
    except UnknownEmotionError:
        return LeftOut(role, index, "unknown label", photo.label or "no label")
    try:
        data = read_bytes(photo)
    except OSError as error:
        return LeftOut(role, index, "unreadable", error.strerror or str(error))
    return _Candidate(role, index, photo, label, hashlib.sha256(data).hexdigest())


def _without_copies(candidates: Iterable[_Candidate]) -> tuple[list[_Candidate], list[LeftOut]]:
    """One photo of each content. The test input keeps its photos: copies of them elsewhere are left out."""
    by_content: dict[str, list[_Candidate]] = {}
    for candidate in candidates:
        by_content.setdefault(candidate.sha256, []).append(candidate)
    kept: list[_Candidate] = []
    left_out: list[LeftOut] = []
    for copies in by_content.values():
        test = [copy for copy in copies if copy.role == "test_input"]
        for copy in copies:
            if test and copy.role == "input":
                detail = f"same photo as {test[0].photo.source}"
                left_out.append(LeftOut(copy.role, copy.index, "also in the test input", detail))
        rest = test or copies
        labels = ordered([copy.label for copy in rest])
        if len(labels) > 1:
            detail = " and ".join(labels)
            left_out += [LeftOut(copy.role, copy.index, "conflicting labels", detail) for copy in rest]
            continue
        first = rest[0]
        kept.append(first)
        for copy in rest[1:]:
            reason = "duplicate row" if copy.photo.source == first.photo.source else "duplicate photo"
            left_out.append(LeftOut(copy.role, copy.index, reason, f"same photo as {first.photo.source}"))
    return kept, left_out


def _split(
    candidates: Sequence[_Candidate], kept: Sequence[_Candidate], val_share: float, test_share: float, seed: int
) -> dict[str, list[_Candidate]]:
    """Kept photos by split. Copies that were left out still tie the people they name into one group."""
    inner = [candidate for candidate in candidates if candidate.role == "input"]
    groups = connected_groups((("content", one.sha256), ("person", one.identity)) for one in inner)
    group_of = {candidate.index: group for candidate, group in zip(inner, groups, strict=True)}
    members: dict[int, Counter[str]] = {}
    splits: dict[str, list[_Candidate]] = {split: [] for split in SPLITS}
    for candidate in kept:
        if candidate.role == "input":
            members.setdefault(group_of[candidate.index], Counter())[candidate.label] += 1
    val = choose_groups(members, val_share, seed)
    rest = {group: labels for group, labels in members.items() if group not in val}
    test = choose_groups(rest, test_share / (1 - val_share), seed)
    for candidate in kept:
        group = group_of[candidate.index] if candidate.role == "input" else None
        split = "test" if group is None or group in test else "validation" if group in val else "train"
        splits[split].append(candidate)
    return splits


def _shards(split: str, candidates: Sequence[_Candidate], samples_per_shard: int, seed: int) -> Iterable[PlannedShard]:
    """The split's photos, shuffled (plain readers take tars in their order), cut into shards."""
    shuffled = sorted(candidates, key=lambda one: rank(seed, f"{one.photo.source}\0{one.index}"))
    for start in range(0, len(shuffled), samples_per_shard):
        photos = tuple(
            PlannedPhoto(one.role, one.index, f"{split}-{number:07d}", one.label, one.identity, one.sha256)
            for number, one in enumerate(shuffled[start : start + samples_per_shard], start)
        )
        yield PlannedShard(f"{split}-{start // samples_per_shard:05d}", split, photos)


def _nothing_left(datasets: Mapping[str, RawDataset], left_out: Sequence[LeftOut]) -> str:
    """Why a plan has no photo, with the help that fits the most frequent reason."""
    reasons = Counter(photo.reason for photo in left_out)
    reason = reasons.most_common(1)[0][0]
    first = next(photo for photo in left_out if photo.reason == reason)
    dataset = datasets[first.role]
    counts = ", ".join(f"{name}: {count}" for name, count in reasons.most_common())
    hint = f"the first is {dataset.photos[first.number].source} ({first.detail or 'not there'})"
    if reason == "unknown label":
        labels = sorted({dataset.photos[photo.number].label for photo in left_out if photo.reason == reason})[:8]
        hint = f"labels found are {', '.join(map(repr, labels))}; known are {', '.join(CANONICAL)}"
    if reason == "missing file":
        hint += f", looked for in {dataset.folder}; --images names the folder of a CSV's photos"
    return f"no photo is left to build from ({counts}); {hint}"
