"""Identities as tables write them where the person is not known."""

from __future__ import annotations

import dataclasses
from collections import Counter

from pfcluster.data.raw.base import RawDataset

NOT_KNOWN = frozenset(
    (
        *("nan", "none", "null", "nil", "n/a", "#n/a", "<na>", "unknown", "unk", "undefined", "not known"),
        *("?", "-", "--", "-1", "-1.0"),
    )
)
"""In lower case. Not `na`: a person of JAFFE."""


def without_unknown(dataset: RawDataset) -> RawDataset:
    """The dataset with no identity where a cell says that it is not known, and a note that counts these cells."""
    unknown = Counter(
        photo.identity
        for photo in dataset.photos
        if photo.identity is not None and photo.identity.casefold() in NOT_KNOWN
    )
    if not unknown:
        return dataset
    photos = tuple(
        dataclasses.replace(photo, identity=None) if photo.identity in unknown else photo for photo in dataset.photos
    )
    cells = ", ".join(f"{cell}: {count}" for cell, count in unknown.most_common())
    note = f"the identity of {unknown.total()} photos is not known ({cells}); each of them counts as a person"
    return dataclasses.replace(dataset, photos=photos, notes=(*dataset.notes, note))
