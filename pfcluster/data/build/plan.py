"""The plan of a build: assigns every photo to a shard, or gives the reason why not, before any photo is decoded.

A plan is a pure function of the photos and the options. Shards are planned by number of photos, so that they can be
made independently; photos without a detected face make their shard shorter.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

from pfcluster.data.build.candidates import Candidate, LeftOut, list_candidates
from pfcluster.data.build.dedupe import remove_copies
from pfcluster.data.build.errors import BuildError
from pfcluster.data.build.split import choose_groups, connected_groups, rank
from pfcluster.data.labels import CANONICAL, in_canonical_order
from pfcluster.data.raw.base import RawDataset, RawPhoto

SPLITS = ("train", "validation", "test")
DEFAULT_VAL_SHARE = 0.1
"""Fraction of the training photos, if the dataset has no official validation split."""


class PlannedPhoto(NamedTuple):
    """A photo that is assigned to a shard."""

    role: str
    number: int
    key: str
    label: str
    """Canonical name; empty if the build ignores labels."""
    identity: str
    """The listed identity, or `photo-<content hash>` if it is not known."""
    sha256: str
    """Hash of the photo's file."""


@dataclass(frozen=True)
class PlannedShard:
    """A shard to make; the unit of work."""

    name: str
    """E.g. `train-00003`."""
    split: str
    photos: tuple[PlannedPhoto, ...]


@dataclass(frozen=True)
class Plan:
    """All shards of a build. Only photos without a detected face will be missing from them."""

    classes: tuple[str, ...]
    photos: int
    """Number of listed photos of all inputs."""
    known_identities: int
    """Number of planned photos whose identity is known."""
    shards: tuple[PlannedShard, ...]
    left_out: tuple[LeftOut, ...]

    def to_json(self) -> dict[str, Any]:
        """Lists and dicts that `Plan.from_json` reads."""
        shards = [{"name": shard.name, "split": shard.split, "photos": shard.photos} for shard in self.shards]
        return {**vars(self), "shards": shards}

    def digest(self) -> str:
        """SHA-256 of the plan: of every photo its shard, label, identity and the checksum of its file."""
        return hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Plan:
        shards = tuple(
            PlannedShard(shard["name"], shard["split"], tuple(PlannedPhoto(*photo) for photo in shard["photos"]))
            for shard in values["shards"]
        )
        left_out = tuple(LeftOut(*photo) for photo in values["left_out"])
        return Plan(tuple(values["classes"]), values["photos"], values["known_identities"], shards, left_out)


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options that determine a plan; see `BuildOptions`."""

    val_share: float | None
    test_share: float
    samples_per_shard: int
    seed: int
    labels: Literal["required", "ignored"] = "required"
    exclude_classes: tuple[str, ...] = ()
    duplicates: Literal["leave-out", "keep"] = "leave-out"


def listing_digest(datasets: Mapping[str, RawDataset]) -> str:
    """SHA-256 of what the inputs list for every photo: name, label, identity, size, split, votes, box, landmarks.

    The place where a photo is stored does not count, so that an input can be moved.
    """
    names = [field.name for field in fields(RawPhoto) if field.name not in ("path", "offset")]
    digest = hashlib.sha256()
    for role, dataset in sorted(datasets.items()):
        for photo in dataset.photos:
            digest.update(json.dumps([role, *(getattr(photo, name) for name in names)]).encode())
    return digest.hexdigest()


def make_plan(
    datasets: Mapping[str, RawDataset], options: PlanOptions, advance: Callable[[], None] = lambda: None
) -> Plan:
    """Plan the build of `input` and, if given, `test_input`. Reads every photo once; `advance` is called for each.

    Raises BuildError if no photo remains for training, or if the options contradict the dataset's official splits.
    """
    val_share = _validation_share(datasets, options)
    candidates, left_out = list_candidates(datasets, options.labels, options.exclude_classes, advance)
    kept, copies = (candidates, []) if options.duplicates == "keep" else remove_copies(candidates)
    left_out += copies
    if not kept:
        raise BuildError(_no_photos_message(datasets, left_out))
    splits = _split(candidates, kept, val_share, options.test_share, options.seed)
    if not splits["train"]:
        raise BuildError(_no_photos_message(datasets, left_out, " for training"))
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
    """Fraction of the training photos to hold out: 0 if the dataset has an official validation split."""
    name = datasets["input"].name
    splits = {photo.split for photo in datasets["input"].photos}
    if "test" in splits and ("test_input" in datasets or options.test_share):
        option = "--test-input" if "test_input" in datasets else "--test-share"
        raise BuildError(f"{name} has an official test split; remove {option}")
    if "validation" not in splits:
        return DEFAULT_VAL_SHARE if options.val_share is None else options.val_share
    if options.val_share:
        raise BuildError(f"{name} has an official validation split; remove --val-share")
    return 0.0


def require_training_photos(dataset: RawDataset) -> None:
    """Raises BuildError if all photos are in official splits, and none in the training split."""
    splits = {photo.split for photo in dataset.photos if photo.left_out is None}
    if splits and splits <= {"validation", "test"}:
        names = " and ".join(sorted(str(split) for split in splits))
        raise BuildError(
            f"{dataset.name} has photos of the {names} split only, and none for training; pass photos of the test"
            " split as --test-input, or split its photos anew with --splits ignore"
        )


def subsample(dataset: RawDataset, limit: int | None, seed: int) -> RawDataset:
    """The dataset reduced to `limit` photos drawn by `seed`, in the original order."""
    if limit is None or limit >= len(dataset.photos):
        return dataset
    drawn = sorted(range(len(dataset.photos)), key=lambda i: rank(seed, f"{dataset.photos[i].source}\0{i}"))[:limit]
    photos = tuple(dataset.photos[index] for index in sorted(drawn))
    return replace(dataset, photos=photos)


def _split(
    candidates: Sequence[Candidate], kept: Sequence[Candidate], val_share: float, test_share: float, seed: int
) -> dict[str, list[Candidate]]:
    """Kept photos by split: official splits as they are, the rest split by groups.

    Copies that were left out still connect their identities into one group.
    """
    free = [candidate for candidate in candidates if not candidate.is_test and candidate.photo.split != "validation"]
    groups = connected_groups((("content", one.sha256), ("identity", one.identity)) for one in free)
    group_of = {(one.role, one.index): group for one, group in zip(free, groups, strict=True)}
    members: dict[int, Counter[str]] = {}
    splits: dict[str, list[Candidate]] = {split: [] for split in SPLITS}
    for candidate in kept:
        group = group_of.get((candidate.role, candidate.index))
        if group is not None:
            members.setdefault(group, Counter())[candidate.label] += 1
    validation = choose_groups(members, val_share, seed)
    rest = {group: labels for group, labels in members.items() if group not in validation}
    test = choose_groups(rest, test_share / (1 - val_share), seed)
    for candidate in kept:
        group = group_of.get((candidate.role, candidate.index))
        if group is None:
            splits["test" if candidate.is_test else "validation"].append(candidate)
        else:
            splits["test" if group in test else "validation" if group in validation else "train"].append(candidate)
    return splits


def _shards(split: str, candidates: Sequence[Candidate], samples_per_shard: int, seed: int) -> Iterable[PlannedShard]:
    """Shuffle a split's photos (sequential readers do not shuffle) and cut them into shards."""
    shuffled = sorted(candidates, key=lambda one: rank(seed, f"{one.photo.source}\0{one.index}"))
    for start in range(0, len(shuffled), samples_per_shard):
        photos = tuple(
            PlannedPhoto(one.role, one.index, f"{split}-{number:07d}", one.label, one.identity, one.sha256)
            for number, one in enumerate(shuffled[start : start + samples_per_shard], start)
        )
        yield PlannedShard(f"{split}-{start // samples_per_shard:05d}", split, photos)


def _no_photos_message(datasets: Mapping[str, RawDataset], left_out: Sequence[LeftOut], purpose: str = "") -> str:
    """Error message for a plan without photos, with a hint for the most frequent reason."""
    if not left_out:
        return f"no photos remain{purpose}: --limit drew none; raise it"
    reasons = Counter(photo.reason for photo in left_out)
    reason = reasons.most_common(1)[0][0]
    first = next(photo for photo in left_out if photo.reason == reason)
    dataset = datasets[first.role]
    counts = ", ".join(f"{name}: {count}" for name, count in reasons.most_common())
    hint = f"the first is {dataset.photos[first.number].source} ({first.detail or 'not found'})"
    if reason == "unknown label":
        labels = sorted({dataset.photos[photo.number].label for photo in left_out if photo.reason == reason})[:8]
        known = (
            f"supported are {', '.join(CANONICAL)}; name others with --classes, e.g. --classes {labels[0] or 1}=anger"
        )
        hint = f"labels are {', '.join(map(repr, labels))}; {known}"
    if reason == "missing file":
        path = dataset.photos[first.number].path
        hint += f", searched in {dataset.folder} (as {path}); --images sets the folder of a CSV's photos"
    if dataset.hint:
        hint += f"; {dataset.hint}"
    return f"no photos remain{purpose} ({counts}); {hint}"
