"""What everything that trains or evaluates knows of a dataset. Legend: n samples, b images, h w pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class DataError(ValueError):
    """The data cannot be trained on: says which folder or split, why, and what to do."""


@dataclass(frozen=True)
class RawBatch:
    """Samples as they are stored: images uint8 b 3 h w, labels long (b,)."""

    images: Tensor
    labels: Tensor


class Split(Protocol):
    """One split of a dataset; everything that trains or evaluates asks for nothing more."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def labels(self) -> Tensor:
        """long (n,)."""

    def batch(self, indices: Tensor) -> RawBatch: ...

    def keys(self, indices: Tensor) -> list[str]:
        """Names of samples, for messages."""


@dataclass(frozen=True)
class Dataset:
    """A dataset's splits. `test` may be absent."""

    name: str
    classes: tuple[str, ...]
    """Empty where nothing is labelled."""
    train: Split
    validation: Split
    test: Split | None
    votes: str | None = None
    """How annotators' votes became labels, where they did."""
    remote: bool = False
    """Whether shards are fetched whole when a sample of theirs is wanted."""

    def counts(self) -> dict[str, int]:
        """Samples by split."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test or ())}
