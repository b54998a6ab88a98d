"""Words that tables write in place of an identity that is not known."""

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
"""In lower case."""
NA = "na"
"""R's word for it; but an identity if identities are codes of two letters, as JAFFE's KA, KL, ..., NA."""


def without_unknown(dataset: RawDataset) -> RawDataset:
    """The dataset with no identity where a cell says that it is not known, and a note that counts these cells."""
    cells = Counter(photo.identity for photo in dataset.photos if photo.identity is not None)
    identities = [cell for cell in cells if cell.casefold() not in (*NOT_KNOWN, NA)]
    have_codes = bool(identities) and all(len(cell) == 2 and cell.isalpha() for cell in identities)
    words = NOT_KNOWN if have_codes else NOT_KNOWN | {NA}
    unknown = Counter({cell: count for cell, count in cells.items() if cell.casefold() in words})
    if not unknown:
        return dataset
    photos = tuple(
        dataclasses.replace(photo, identity=None) if photo.identity in unknown else photo for photo in dataset.photos
    )
    counts = ", ".join(f"{cell}: {count}" for cell, count in unknown.most_common())
    note = f"the identity of {unknown.total()} photos is not known ({counts}); each counts as an identity of its own"
    return dataclasses.replace(dataset, photos=photos, notes=(*dataset.notes, note))
