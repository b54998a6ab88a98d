"""Properties of a built dataset that matter for training and evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from pfcluster.data.build.plan import DEFAULT_VAL_SHARE, Plan
from pfcluster.data.manifest import Manifest
from pfcluster.data.raw.base import RawDataset

WHY = "(left_out.csv says why): add usable ones"


def build_warnings(manifest: Manifest, plan: Plan, datasets: Mapping[str, RawDataset]) -> tuple[str, ...]:
    """Warnings about identities, classes and splits, as sentences. `datasets`: the listing of each input."""
    samples = sum(split.samples for split in manifest.splits.values())
    assert manifest.photos == samples + sum(manifest.left_out.values()), "every photo is a sample or left out"
    return (*_identities(manifest, plan, samples), *_classes(manifest), *_missing_splits(manifest, plan, datasets))


def _identities(manifest: Manifest, plan: Plan, samples: int) -> Iterator[str]:
    known_identities = manifest.source["known_identities"]
    if 0 < known_identities < samples:
        yield (
            f"the identity is known for {known_identities} photos only; each other photo counts as an identity"
            " of its own, so photos of one identity may be in several splits"
        )
    shared = _photos_in_several_splits(plan)
    if known_identities == 0:
        yield f"no photo has an identity: splits {'' if shared else 'share no photo, but '}may share identities"
    if shared:
        yield (
            f"{shared} photos are in several splits, as --duplicates keep allows, so a test would reward memorising:"
            " build with --duplicates leave-out unless published counts are to be matched"
        )
    photos = Counter(photo.identity for shard in plan.shards for photo in shard.photos)
    for identity, count in photos.most_common(1):
        if count > 1 and 2 * count > photos.total():
            yield (
                f"identity {identity!r} has {count} of {photos.total()} photos, which all go into one split if the"
                " dataset has no splits: check that it is a single identity"
            )


def _photos_in_several_splits(plan: Plan) -> int:
    """Number of files, by content, that are planned for more than one split."""
    places = {(photo.sha256, shard.split) for shard in plan.shards for photo in shard.photos}
    splits = Counter(sha256 for sha256, _ in places)
    return sum(count > 1 for count in splits.values())


def _classes(manifest: Manifest) -> Iterator[str]:
    if len(manifest.classes) == 1:
        yield f"there is one class only, {manifest.classes[0]}"
    for name, split in manifest.splits.items():
        empty = [label for label in manifest.classes if not split.per_class[label]]
        if empty:
            yield f"the {name} split has no {', '.join(empty)}"


def _missing_splits(manifest: Manifest, plan: Plan, datasets: Mapping[str, RawDataset]) -> Iterator[str]:
    """Splits that the dataset has or that were to be cut from the training photos, and that have no sample."""
    listed = Counter[str | None](photo.split for photo in datasets["input"].photos)
    if "test_input" in datasets:
        listed["test"] = len(datasets["test_input"].photos)
    held_out = Counter(shard.split for shard in plan.shards for _ in shard.photos)
    val_share = manifest.options.get("val_share")
    shares = {
        "validation": DEFAULT_VAL_SHARE if val_share is None else val_share,
        "test": manifest.options.get("test_share", 0),
    }
    for name, share in shares.items():
        if name in manifest.splits:
            continue
        option = "--val-share" if name == "validation" else "--test-share"
        needed = ", which training needs" if name == "validation" else ""
        if photos := listed[name]:
            yield f"there is no {name} split{needed}: all {photos} photos of the dataset's own were left out {WHY}"
        elif photos := held_out[name]:
            yield f"there is no {name} split{needed}: all {photos} photos held out by {option} were left out {WHY}"
        elif share > 0:
            yield (
                f"there is no {name} split, although {option} is {share}: photos of one identity stay together, and a"
                " class stays in the training split; check the identities, or add photos"
            )
