"""Candidates of a build: the photos with a usable file and label, and the reasons why others are left out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pfcluster.data.labels import UnknownEmotionError, canonical_name
from pfcluster.data.manifest import UNKNOWN_IDENTITY
from pfcluster.data.raw.base import RawDataset, RawPhoto, read_bytes


class LeftOut(NamedTuple):
    """A photo that is in no shard."""

    role: str
    """Its input: `input` or `test_input`."""
    number: int
    """Its index in that input."""
    reason: str
    detail: str


@dataclass(frozen=True)
class Candidate:
    """A photo with a readable file and, unless labels are ignored, a canonical label."""

    role: str
    index: int
    photo: RawPhoto
    label: str
    """Canonical name; empty if the build ignores labels."""
    sha256: str
    """Hash of the photo's file."""

    @property
    def identity(self) -> str:
        """The listed identity, or `photo-<content hash>` if it is not known."""
        return self.photo.identity or f"{UNKNOWN_IDENTITY}{self.sha256[:16]}"

    @property
    def face(self) -> str:
        """Identifies the labelled face within a split: the photo's content, and the face's box if one is listed.

        Between splits only `sha256` counts: listings of the same photo may have other boxes, or none.
        """
        return self.sha256 if self.photo.box is None else f"{self.sha256} {self.photo.box}"

    @property
    def is_test(self) -> bool:
        """Whether the photo belongs to the dataset's official test split."""
        return self.role == "test_input" or self.photo.split == "test"


def list_candidates(
    datasets: Mapping[str, RawDataset],
    labels: Literal["required", "ignored"],
    exclude_classes: tuple[str, ...],
    advance: Callable[[], None],
) -> tuple[list[Candidate], list[LeftOut]]:
    """Read all photos and check their labels. `advance` is called for each photo."""
    candidates: list[Candidate] = []
    left_out: list[LeftOut] = []
    for role, dataset in datasets.items():
        for index, photo in enumerate(dataset.photos):
            advance()
            result = _candidate(role, index, photo, labels, exclude_classes)
            if isinstance(result, LeftOut):
                left_out.append(result)
            else:
                candidates.append(result)
    return candidates, left_out


def _candidate(
    role: str, index: int, photo: RawPhoto, labels: str, exclude_classes: tuple[str, ...]
) -> Candidate | LeftOut:
    if photo.left_out is not None:
        return LeftOut(role, index, *photo.left_out)
    if not photo.path:
        return LeftOut(role, index, "no image named", "the row has a label only")
    if photo.size < 0:
        return LeftOut(role, index, "missing file", "")
    label = ""
    if labels == "required":
        try:
            label = canonical_name(photo.label)
        except UnknownEmotionError:
            return LeftOut(role, index, "unknown label", photo.label or "no label")
        if label in exclude_classes:
            return LeftOut(role, index, "excluded class", label)
    try:
        data = read_bytes(photo)
    except OSError as error:
        return LeftOut(role, index, "unreadable", error.strerror or str(error))
    return Candidate(role, index, photo, label, hashlib.sha256(data).hexdigest())
