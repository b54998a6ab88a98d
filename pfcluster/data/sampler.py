"""The order of samples, exactly resumable, and reading ahead.

Sample number s of a run is a pure function of (seed, s): epoch s // n, position s % n in that epoch's order. Step t of
batch size B takes samples t B ... (t + 1) B - 1, and each rank its slice of them, so resuming means starting at any
sample, in the middle of an epoch or on another number of processes; ranks always get equal batches.

Legend: n samples of the split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from pfcluster.distributed.process_group import generator

T = TypeVar("T")

KEPT_EPOCHS = 2
"""Epochs whose order is kept at hand; a batch may reach into the next one."""


@dataclass(frozen=True)
class FullShuffle:
    """Every epoch in an order of its own over the whole split. For memory, and disks without a seek time."""

    size: int
    seed: int

    def epoch(self, epoch: int) -> Tensor:
        """The epoch's samples in their order: a permutation, long (n,)."""
        return torch.randperm(self.size, generator=generator(self.seed, "order", epoch))


@dataclass(frozen=True)
class BlockShuffle:
    """Blocks of neighbouring samples in random order, and within a window of several blocks all samples shuffled.

    What is read at a time lies in a few places: for disks that seek, and for shards that are fetched whole.
    """

    size: int
    seed: int
    block: int
    """Neighbouring samples of a block."""
    window: int
    """Blocks that are shuffled into each other."""

    def epoch(self, epoch: int) -> Tensor:
        """The epoch's samples in their order: a permutation, long (n,)."""
        chance = generator(self.seed, "blocks", epoch)
        blocks = list(torch.arange(self.size).split(self.block))
        shuffled = [blocks[place] for place in torch.randperm(len(blocks), generator=chance).tolist()]
        parts = []
        for start in range(0, len(shuffled), self.window):
            near = torch.cat(shuffled[start : start + self.window])
            parts.append(near[torch.randperm(len(near), generator=chance)])
        return torch.cat(parts)


@dataclass(frozen=True)
class Balanced:
    """Every class equally often, to one sample, in each epoch of n samples; rare samples therefore more than once.

    Each class goes round its own samples, anew shuffled every round, over the epochs: none is seen twice more often
    than another of its class.
    """

    labels: Tensor
    """long (n,); classes without samples are passed over."""
    seed: int

    def epoch(self, epoch: int) -> Tensor:
        """The epoch's samples in their order: long (n,)."""
        size, present = len(self.labels), self.labels.unique().tolist()
        chosen = []
        for place, label in enumerate(present):
            # n = q k + r: in turn another r of the k classes have one sample more
            first, last = (self._taken(place, number, size, len(present)) for number in (epoch, epoch + 1))
            chosen.append(self._of_class(label, first, last))
        every = torch.cat(chosen)
        return every[torch.randperm(size, generator=generator(self.seed, "balanced", epoch))]

    def _taken(self, place: int, epochs: int, size: int, classes: int) -> int:
        """Samples that the class at `place` has had after so many epochs of `size`: sums to epochs · size."""
        return (epochs * size + classes - 1 - place) // classes

    def _of_class(self, label: int, first: int, last: int) -> Tensor:
        """The class's samples number first ... last - 1 of its endless sequence of rounds."""
        own = (self.labels == label).nonzero().flatten()
        rounds = [
            own[torch.randperm(len(own), generator=generator(self.seed, "class", label, turn))]
            for turn in range(first // len(own), -(-last // len(own)))
        ]
        begin = first - first // len(own) * len(own)
        return torch.cat(rounds)[begin : begin + last - first] if rounds else own[:0]


@dataclass
class SampleOrder:
    """A run's samples, number by number."""

    size: int
    """n."""
    shuffle: FullShuffle | BlockShuffle | Balanced
    _epochs: dict[int, Tensor] = field(default_factory=dict)

    def samples(self, first: int, count: int) -> Tensor:
        """Which samples of the split the run's samples first ... first + count - 1 are: long (count,)."""
        numbers = torch.arange(first, first + count)
        epochs, positions = numbers // self.size, numbers % self.size
        indices = torch.empty_like(numbers)
        for epoch in epochs.unique().tolist():
            chosen = epochs == epoch
            indices[chosen] = self._epoch(epoch)[positions[chosen]]
        return indices

    def _epoch(self, epoch: int) -> Tensor:
        """Threads may ask at once; at worst the same order is made twice."""
        found = self._epochs.get(epoch)
        if found is None:
            found = self.shuffle.epoch(epoch)
            self._epochs[epoch] = found
            for old in sorted(self._epochs)[:-KEPT_EPOCHS]:
                self._epochs.pop(old, None)
        return found


def read_ahead(load: Callable[[int], T], steps: range, workers: int = 2) -> Iterator[T]:
    """`load(step)` for each step in turn, by so many threads ahead of time (decoding releases the GIL); 0 loads each
    when it is asked for.
    """
    if workers == 0:
        yield from map(load, steps)
        return
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="reader") as pool:
        waiting: list[Future[T]] = []
        upcoming = iter(steps)
        try:
            while True:
                while len(waiting) < workers and (step := next(upcoming, None)) is not None:
                    waiting.append(pool.submit(load, step))
                if not waiting:
                    return
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
