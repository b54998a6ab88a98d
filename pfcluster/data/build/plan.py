"""The plan of a build: every photo has its shard and key, or its reason, before the first one is decoded.

A plan is a pure function of the photos and the options. Shards are planned over photos (`samples_per_shard` a shard),
so each can be made alone; photos in which no face is found leave theirs shorter.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from pfcluster.data.build.split import choose_groups, connected_groups, rank
from pfcluster.data.labels import CANONICAL, UnknownEmotionError, canonical_name, in_canonical_order
from pfcluster.data.raw.base import RawDataset, RawPhoto, read_bytes

SPLITS = ("train", "validation", "test")
DEFAULT_VAL_SHARE = 0.1
"""Of the training photos, where the dataset has no validation split of its own."""


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
    """Canonical name; empty where the build ignores labels."""
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

    @property
    def face(self) -> str:
        """What is shown: the photo's content, and where several of its faces are labelled, which one."""
        return self.sha256 if self.photo.box is None else f"{self.sha256} {self.photo.box}"

    @property
    def is_test(self) -> bool:
        """Whether the photo belongs to the dataset's own test split."""
        return self.role == "test_input" or self.photo.split == "test"


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What decides a plan besides the photos; `BuildOptions` explains each."""

    val_share: float | None
    test_share: float
    samples_per_shard: int
    seed: int
    labels: Literal["required", "ignored"] = "required"
    without: tuple[str, ...] = ()
    duplicates: Literal["leave-out", "keep"] = "leave-out"


def listing_digest(datasets: Mapping[str, RawDataset]) -> str:
    """SHA-256 over what the listings say: names, labels, identities, sizes. Tells whether an input has changed."""
    digest = hashlib.sha256()
    for role, dataset in sorted(datasets.items()):
        for photo in dataset.photos:
            line = json.dumps([role, photo.source, photo.label, photo.identity, photo.size])
            digest.update(line.encode())
    return digest.hexdigest()


def make_plan(
    datasets: Mapping[str, RawDataset], options: PlanOptions, advance: Callable[[], None] = lambda: None
) -> Plan:
    """Plan the build of `input` and, where given, `test_input`. Reads every photo once; `advance` is called for each.

    Raises BuildError where nothing is left to build, or where the options contradict the dataset's own splits.
    """
    val_share = _validation_share(datasets, options)
    candidates, left_out = _candidates(datasets, options, advance)
    kept, same = (candidates, []) if options.duplicates == "keep" else _without_copies(candidates)
    left_out += same
    if not kept:
        raise BuildError(_nothing_left(datasets, left_out))
    splits = _split(candidates, kept, val_share, options.test_share, options.seed)
    shards = [
        shard for split in SPLITS for shard in _shards(split, splits[split], options.samples_per_shard, options.seed)
    ]
    return Plan(
        classes=in_canonical_order([candidate.label for candidate in kept]),
        photos=sum(len(dataset.photos) for dataset in datasets.values()),
        known_identities=sum(candidate.photo.identity is not None for candidate in kept),
        shards=tuple(shards),
        left_out=tuple(sorted(left_out)),
    )


def _validation_share(datasets: Mapping[str, RawDataset], options: PlanOptions) -> float:
    """The share of training photos to hold out: none where the dataset brings a validation split of its own."""
    own = {photo.split for photo in datasets["input"].photos}
    if "test" in own and ("test_input" in datasets or options.test_share):
        given = "--test-input" if "test_input" in datasets else "--test-share"
        raise BuildError(f"{datasets['input'].name} has a test split of its own; leave {given} out")
    if "validation" not in own:
        return DEFAULT_VAL_SHARE if options.val_share is None else options.val_share
    if options.val_share:
        raise BuildError(f"{datasets['input'].name} has a validation split of its own; leave --val-share out")
    return 0.0


def subsample(dataset: RawDataset, limit: int | None, seed: int) -> RawDataset:
    """The dataset cut to `limit` photos drawn by `seed`, in their order."""
    if limit is None or limit >= len(dataset.photos):
        return dataset
    drawn = sorted(range(len(dataset.photos)), key=lambda i: rank(seed, f"{dataset.photos[i].source}\0{i}"))[:limit]
    photos = tuple(dataset.photos[index] for index in sorted(drawn))
    return replace(dataset, photos=photos)


def _candidates(
    datasets: Mapping[str, RawDataset], options: PlanOptions, advance: Callable[[], None]
) -> tuple[list[_Candidate], list[LeftOut]]:
    """Photos that are there and have a wanted label."""
    candidates: list[_Candidate] = []
    left_out: list[LeftOut] = []
    for role, dataset in datasets.items():
        for index, photo in enumerate(dataset.photos):
            advance()
            found = _candidate(role, index, photo, options)
            if isinstance(found, LeftOut):
                left_out.append(found)
            else:
                candidates.append(found)
    return candidates, left_out


def _candidate(role: str, index: int, photo: RawPhoto, options: PlanOptions) -> _Candidate | LeftOut:
    if not photo.path:
        return LeftOut(role, index, "no image named", "the row has a label only")
    if photo.size < 0:
        return LeftOut(role, index, "missing file", "")
    label = ""
    if options.labels == "required":
        try:
            label = canonical_name(photo.label)
        except UnknownEmotionError:
            return LeftOut(role, index, "unknown label", photo.label or "no label")
        if label in options.without:
            return LeftOut(role, index, "class not wanted", label)
    try:
        data = read_bytes(photo)
    except OSError as error:
        return LeftOut(role, index, "unreadable", error.strerror or str(error))
    return _Candidate(role, index, photo, label, hashlib.sha256(data).hexdigest())


def _without_copies(candidates: Iterable[_Candidate]) -> tuple[list[_Candidate], list[LeftOut]]:
    """One photo of each face. The test split keeps its photos: copies of them elsewhere are left out."""
    by_content: dict[str, list[_Candidate]] = {}
    for candidate in candidates:
        by_content.setdefault(candidate.face, []).append(candidate)
    kept: list[_Candidate] = []
    left_out: list[LeftOut] = []
    for copies in by_content.values():
        copies.sort(key=lambda one: one.photo.split != "validation")  # stable: it keeps its photos next
        test = [copy for copy in copies if copy.is_test]
        for copy in copies:
            if test and not copy.is_test:
                detail = f"same photo as {test[0].photo.source}"
                left_out.append(LeftOut(copy.role, copy.index, "also in the test split", detail))
        rest = test or copies
        labels = in_canonical_order([copy.label for copy in rest])
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
    """Kept photos by split: the dataset's own where it has them, the rest cut by groups.

    Copies that were left out still tie the people they name into one group.
    """
    free = [candidate for candidate in candidates if not candidate.is_test and candidate.photo.split != "validation"]
    groups = connected_groups((("content", one.sha256), ("person", one.identity)) for one in free)
    group_of = {(one.role, one.index): group for one, group in zip(free, groups, strict=True)}
    members: dict[int, Counter[str]] = {}
    splits: dict[str, list[_Candidate]] = {split: [] for split in SPLITS}
    for candidate in kept:
        group = group_of.get((candidate.role, candidate.index))
        if group is not None:
            members.setdefault(group, Counter())[candidate.label] += 1
    val = choose_groups(members, val_share, seed)
    rest = {group: labels for group, labels in members.items() if group not in val}
    test = choose_groups(rest, test_share / (1 - val_share), seed)
    for candidate in kept:
        group = group_of.get((candidate.role, candidate.index))
        if group is None:
            splits["test" if candidate.is_test else "validation"].append(candidate)
        else:
            splits["test" if group in test else "validation" if group in val else "train"].append(candidate)
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
