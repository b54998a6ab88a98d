"""Interfaces between datasets and the code that trains or evaluates. Legend: n samples, b images, h w pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class DataError(ValueError):
    """The data cannot be used. The message names the folder or split, the reason and the remedy."""


class UnfitDataError(DataError):
    """The data can be read, but lacks what is needed: a split, or classes in common with a run."""


@dataclass(frozen=True)
class RawBatch:
    """Samples as stored."""

    images: Tensor
    """uint8 b 3 h w."""
    labels: Tensor
    """long (b,)."""


class Split(Protocol):
    """One split of a dataset."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def labels(self) -> Tensor:
        """Labels of all samples: long (n,)."""

    def batch(self, indices: Tensor) -> RawBatch:
        """The samples at `indices`, long (b,)."""

    def keys(self, indices: Tensor) -> list[str]:
        """Names of the samples at `indices`, for messages."""


@dataclass(frozen=True)
class Dataset:
    """A dataset's splits."""

    name: str
    classes: tuple[str, ...]
    """Empty for unlabelled data."""
    train: Split
    validation: Split
    test: Split | None
    votes: str | None = None
    """How annotators' votes were turned into labels; None for data without votes."""
    remote: bool = False
    """Whether shards are downloaded as a whole when one of their samples is read."""

    def counts(self) -> dict[str, int]:
        """Number of samples by split."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test or ())}
