"""One dataset's split as a classifier of another dataset sees it: what both know, matched by name.

Legend: n samples, b images, k classes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from pfcluster.data.labels import mapping, ordered
from pfcluster.data.types import DataError, RawBatch, Split


class SharedClasses:
    """Samples of the emotions that both know; a `Split` itself."""

    def __init__(self, split: Split, known: tuple[str, ...]) -> None:
        """`known`: the classifier's classes. Raises DataError where it shares fewer than two with the split."""
        self.split = split
        self.classes = tuple(name for name in ordered(split.classes) if name in known)
        """In canonical order."""
        if len(self.classes) < 2:
            raise DataError(
                f"the data's classes ({', '.join(split.classes) or 'none'}) and the run's ({', '.join(known)}) share"
                f" {len(self.classes)}: nothing can be told apart"
            )
        places = mapping(split.classes, self.classes)
        self._table = torch.tensor([-1 if place is None else place for place in places])
        self._chosen = (self._table[split.labels()] >= 0).nonzero().flatten()
        self.columns = torch.tensor([known.index(name) for name in self.classes])
        """k: where the shared classes stand among the classifier's outputs."""
        self.unanswered = tuple(name for name in known if name not in self.classes)
        """Classes of the classifier that the data lacks; its outputs for them are not looked at."""

    def dropped(self) -> dict[str, int]:
        """Samples of each class that the classifier does not know."""
        counts = Counter(self.split.classes[label] for label in self.split.labels().tolist())
        return {name: counts[name] for name in self.split.classes if name not in self.classes and counts[name]}

    def __len__(self) -> int:
        return len(self._chosen)

    def labels(self) -> Tensor:
        """Places in `classes`: long (n,)."""
        return self._table[self.split.labels()[self._chosen]]

    def batch(self, indices: Tensor) -> RawBatch:
        """Labels are places in `classes`; -1 where an unreadable sample's replacement is of another class."""
        raw = self.split.batch(self._chosen[indices])
        return replace(raw, labels=self._table[raw.labels])

    def keys(self, indices: Tensor) -> list[str]:
        """Names of samples, for messages."""
        return self.split.keys(self._chosen[indices])
