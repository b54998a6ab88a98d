"""Warnings about measurements of a shard folder that would distort results, each with a remedy."""

from __future__ import annotations

from collections.abc import Mapping

from pfcluster.data.inspect.quality import Quality, SplitQuality

MAX_UNRECOGNISABLE = 0.01
"""Share of nearly black and nearly white faces."""
MAX_SMALL = 0.5
MAX_BRIGHTNESS_GAP = 30
"""Between the medians of train and test."""
MIN_PER_CLASS_IN_TEST = 10
MAX_IMBALANCE = 20
MAX_CLASS_SHARE_GAP = 0.10
TRAIN, TEST = "train", "test"


def quality_warnings(quality: Quality) -> tuple[str, ...]:
    """Warnings, each with a remedy; empty if nothing was found."""
    warnings = [*_duplicate_warnings(quality), *_class_warnings(quality.splits)]
    for name, split in quality.splits.items():
        warnings += _split_warnings(name, split)
    train, test = quality.splits.get(TRAIN), quality.splits.get(TEST)
    if train and test and train.samples and test.samples:
        warnings += _gap_warnings(train, test)
    return tuple(warnings)


def _duplicate_warnings(quality: Quality) -> list[str]:
    warnings = []
    if between := quality.pairs_between_splits:
        warnings.append(
            f"{len(between)} pairs of near-duplicates lie in two splits, so a test would reward memorising: list them"
            " with --duplicates, and remove one of each or assign both to one identity before building again"
        )
    if conflicting := quality.conflicting_labels:
        warnings.append(
            f"{len(conflicting)} pairs of near-duplicates within a split have different labels: list them with"
            " --duplicates, and correct the labels or remove the photos"
        )
    if not quality.pairs_complete:
        warnings.append(
            f"the search for near-duplicates stopped after {len(quality.pairs)} pairs, so there may be more, also"
            " between splits: remove copies and inspect again"
        )
    photos = sum(leak.is_photo for leak in quality.leaks)
    if identities := len(quality.leaks) - photos:
        warnings.append(
            f"{identities} identities are in more than one split, so the test does not measure generalisation to new"
            " identities: split by identity, or use different names for different identities"
        )
    if photos:
        warnings.append(
            f"{photos} photos are in more than one split, so a test would reward memorising: build again with"
            " --duplicates leave-out"
        )
    return warnings


def _class_warnings(splits: Mapping[str, SplitQuality]) -> list[str]:
    warnings = []
    for name, split in splits.items():
        counts = {label: count for label, count in split.per_class.items() if count}
        if missing := [label for label in split.per_class if label not in counts]:
            warnings.append(f"{name} has 0 faces of {', '.join(missing)}: add photos, or exclude the class everywhere")
        few = [f"{label} ({count})" for label, count in counts.items() if count < MIN_PER_CLASS_IN_TEST]
        if name == TEST and few:
            warnings.append(
                f"test has fewer than {MIN_PER_CLASS_IN_TEST} faces of {', '.join(few)}, too few to estimate their"
                " accuracy: increase --test-share or add photos"
            )
        if name == TRAIN and counts and max(counts.values()) > MAX_IMBALANCE * min(counts.values()):
            most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
            warnings.append(
                f"{name} has {counts[most]} faces of {most} but {counts[least]} of {least}, more than"
                f" {MAX_IMBALANCE} to 1: add photos of the rare class, and use the mean accuracy over classes"
            )
    return warnings


def _split_warnings(name: str, split: SplitQuality) -> list[str]:
    warnings = []
    if split.black + split.white > MAX_UNRECOGNISABLE:
        warnings.append(
            f"{split.black:.1%} of {name} is nearly black and {split.white:.1%} nearly white: remove those photos"
        )
    if split.enlargement and split.small > MAX_SMALL:
        warnings.append(
            f"{split.small:.0%} of {name}'s faces are smaller than their crop (median enlargement"
            f" {split.enlargement[1]:.1f}): build with a smaller --size, or from larger photos"
        )
    return warnings


def _gap_warnings(train: SplitQuality, test: SplitQuality) -> list[str]:
    warnings = []
    if abs(train.brightness[1] - test.brightness[1]) > MAX_BRIGHTNESS_GAP:
        warnings.append(
            f"the median brightness is {train.brightness[1]:.0f} in train but {test.brightness[1]:.0f} in test: mix"
            " their sources, or train with stronger brightness augmentation (augment.jitter)"
        )
    for label in train.per_class:
        shares = train.per_class[label] / train.samples, test.per_class[label] / test.samples
        if abs(shares[0] - shares[1]) > MAX_CLASS_SHARE_GAP:
            warnings.append(
                f"{label} is {shares[0]:.0%} of train but {shares[1]:.0%} of test: split both from the same photos, or"
                " use the mean accuracy over classes"
            )
    return warnings
