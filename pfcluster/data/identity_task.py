"""A dataset's people as its classes, for a net that tells them apart. Legend: n samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfcluster.data.types import DataError, Dataset, RawBatch, Split

EVERY = 8
"""One face of so many is kept out to validate."""


@dataclass(frozen=True)
class IdentitySplit:
    """Some samples of a split, labelled by person."""

    split: Split
    chosen: Tensor
    numbers: Tensor
    """Each chosen sample's place in `classes`."""
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.chosen)

    def labels(self) -> Tensor:
        return self.numbers

    def batch(self, indices: Tensor) -> RawBatch:
        return RawBatch(self.split.batch(self.chosen[indices]).images, self.numbers[indices])

    def keys(self, indices: Tensor) -> list[str]:
        return self.split.keys(self.chosen[indices])


def identity_dataset(dataset: Dataset, names: list[str]) -> Dataset:
    """Training and validation on the people of the training split, whose names are given by sample; every eighth of a
    person's faces validates. There is no test split: its people are others. Raises DataError.
    """
    faces: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        if name:
            faces.setdefault(name, []).append(index)
    faces = {name: found for name, found in sorted(faces.items()) if len(found) > 1}
    if len(faces) < 2:
        raise DataError(
            f"data.target is identity, but {dataset.name} names fewer than two people with two faces or more; build its"
            " shards from a dataset that tells who is shown, or train on the synthetic faces"
        )
    people = tuple(faces)
    parts: tuple[list[int], list[int]] = ([], [])
    labels: tuple[list[int], list[int]] = ([], [])
    turn = 0
    for number, name in enumerate(people):
        for place, index in enumerate(faces[name]):
            turn += 1
            part = int(place > 0 and turn % EVERY == 0)  # a person's first face always trains
            parts[part].append(index)
            labels[part].append(number)
    if not parts[1]:
        raise DataError(f"data.target is identity, but {dataset.name} has too few faces to keep every eighth out")
    train, validation = (
        IdentitySplit(dataset.train, torch.tensor(chosen), torch.tensor(numbers), people)
        for chosen, numbers in zip(parts, labels, strict=True)
    )
    return Dataset(f"{dataset.name}-people", people, train, validation, None, remote=dataset.remote)
