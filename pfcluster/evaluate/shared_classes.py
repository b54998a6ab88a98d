"""Restrict a split to the classes that a classifier trained on another dataset shares with it, matched by name.

Legend: n samples, b images, k shared classes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from pfcluster.data.labels import CANONICAL, in_canonical_order, index_mapping
from pfcluster.data.types import RawBatch, Split, UnfitDataError


def _ordered(classes: tuple[str, ...]) -> tuple[str, ...]:
    return in_canonical_order(classes) if set(classes) <= set(CANONICAL) else classes


class SharedClasses:
    """The samples of a split whose class the classifier has too; itself a `Split`."""

    def __init__(self, split: Split, model_classes: tuple[str, ...]) -> None:
        """Raises UnfitDataError if split and classifier share fewer than two classes, or no sample is of a shared
        class.
        """
        self.split = split
        common = set(split.classes) & set(model_classes)
        self.classes = tuple(name for name in _ordered(split.classes) if name in common)
        """Emotions in canonical order; identities (`data.target` identity) in the split's order."""
        if len(self.classes) < 2:
            raise UnfitDataError(
                f"the data's classes ({', '.join(split.classes) or 'none'}) and the run's ({', '.join(model_classes)})"
                f" share {len(self.classes)}: at least two shared classes are needed; use data with the run's emotions"
            )
        indices = index_mapping(split.classes, self.classes)
        self._shared_index = torch.tensor([-1 if index is None else index for index in indices])
        self._samples = (self._shared_index[split.labels()] >= 0).nonzero().flatten()
        if not len(self._samples):
            raise UnfitDataError(
                f"no sample of the data is of a class that the run has ({', '.join(self.classes)}); use data with the"
                " run's emotions"
            )
        columns = {name: column for column, name in enumerate(model_classes)}
        self.columns = torch.tensor([columns[name] for name in self.classes])
        """k: indices of the shared classes among the classifier's outputs."""
        self.missing_classes = tuple(name for name in model_classes if name not in common)
        """Classes of the classifier that the data lacks; their logits are ignored."""

    def dropped(self) -> dict[str, int]:
        """Number of samples of each class that the classifier lacks."""
        counts = Counter(self.split.classes[label] for label in self.split.labels().tolist())
        return {name: counts[name] for name in self.split.classes if name not in self.classes and counts[name]}

    def __len__(self) -> int:
        return len(self._samples)

    def labels(self) -> Tensor:
        """Indices into `classes`: long (n,)."""
        return self._shared_index[self.split.labels()[self._samples]]

    def batch(self, indices: Tensor) -> RawBatch:
        """Labels index `classes`; -1 where the replacement of an unreadable sample is of a class that is not shared."""
        raw = self.split.batch(self._samples[indices])
        return replace(raw, labels=self._shared_index[raw.labels])

    def keys(self, indices: Tensor) -> list[str]:
        """Sample names, for messages."""
        return self.split.keys(self._samples[indices])
