"""The identity task: a dataset's identities as classes, to train a face recognition net. Legend: n samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfcluster.data.splits import sharded
from pfcluster.data.types import DataError, Dataset, RawBatch, Split

VALIDATION_EVERY = 8
"""One of this many faces is held out for validation."""


@dataclass(frozen=True)
class IdentitySplit:
    """A subset of a split, labelled by identity."""

    split: Split
    indices: Tensor
    """Samples of `split`: long (n,)."""
    targets: Tensor
    """Their identities, as indices into `classes`: long (n,)."""
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def labels(self) -> Tensor:
        return self.targets

    def batch(self, indices: Tensor) -> RawBatch:
        """A damaged sample is replaced by the next readable one of these samples. Raises DataError if there is none."""
        images = self.split.batch(self.indices[indices]).images
        while (damaged := self._damaged(indices)).any():
            indices = torch.where(damaged, (indices + 1) % len(self), indices)
            if damaged.all() and self._damaged(torch.arange(len(self))).all():
                raise DataError("no sample with an identity can be read; check with `pfcluster inspect --verify`")
            images = self.split.batch(self.indices[indices]).images
        return RawBatch(images, self.targets[indices])

    def _damaged(self, indices: Tensor) -> Tensor:
        """Which samples are known to be damaged, so that `split` replaces them: bool (b,)."""
        source = sharded(self.split)
        names = {} if source is None else source.damaged
        if not names:
            return torch.zeros(len(indices), dtype=torch.bool)
        return torch.tensor([key in names for key in self.keys(indices)])

    def keys(self, indices: Tensor) -> list[str]:
        return self.split.keys(self.indices[indices])


def identity_dataset(dataset: Dataset, identities: list[str]) -> Dataset:
    """Training and validation splits with identities as classes, both from the training split.

    `identities` names the identity of each training sample, "" if unknown. Identities with a single face are dropped,
    and every eighth face is held out for validation, never an identity's first. There is no test split, because its
    identities do not occur in training. Raises DataError if there are too few identities or faces.
    """
    samples_of: dict[str, list[int]] = {}
    for index, identity in enumerate(identities):
        if identity:
            samples_of.setdefault(identity, []).append(index)
    samples_of = {identity: samples for identity, samples in sorted(samples_of.items()) if len(samples) > 1}
    if len(samples_of) < 2:
        raise DataError(
            f"data.target is identity, but {dataset.name} has fewer than two identities with two faces or more; build"
            " its shards from a dataset with identities, or train on the synthetic faces"
        )
    classes = tuple(samples_of)
    samples: tuple[list[int], list[int]] = ([], [])
    targets: tuple[list[int], list[int]] = ([], [])
    count = 0
    for target, identity in enumerate(classes):
        for place, index in enumerate(samples_of[identity]):
            count += 1
            split = int(place > 0 and count % VALIDATION_EVERY == 0)
            samples[split].append(index)
            targets[split].append(target)
    if not samples[1]:
        raise DataError(
            f"data.target is identity, but {dataset.name} has too few faces to hold out every eighth for validation"
        )
    train, validation = (
        IdentitySplit(dataset.train, torch.tensor(indices), torch.tensor(labels), classes)
        for indices, labels in zip(samples, targets, strict=True)
    )
    return Dataset(f"{dataset.name}-identities", classes, train, validation, None, remote=dataset.remote)
