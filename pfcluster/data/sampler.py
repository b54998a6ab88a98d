"""Sample order, exactly resumable, and prefetching threads.

Sample number s of a run is a pure function of (seed, s): epoch s // n, position s % n in that epoch's order. Step t
with batch size B takes samples t B ... (t + 1) B - 1, and each rank its slice of them. So a run can resume at any step,
in the middle of an epoch and on another number of processes; all ranks get batches of the same size.

Legend: n samples of the split.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from pfcluster.distributed.process_group import generator

T = TypeVar("T")

CACHED_EPOCHS = 2
"""Number of epochs whose order is cached; a batch may span two epochs."""


@dataclass(frozen=True)
class FullShuffle:
    """A random permutation of the whole split for each epoch. For data in memory or on SSDs."""

    size: int
    seed: int

    def epoch(self, epoch: int) -> Tensor:
        """Sample indices of an epoch in order, a permutation: long (n,)."""
        return torch.randperm(self.size, generator=generator(self.seed, "order", epoch))


@dataclass(frozen=True)
class BlockShuffle:
    """Shuffles blocks of neighbouring samples, then the samples within each window of several blocks.

    Consecutive reads come from few places: for hard disks, and for remote shards that are downloaded as a whole.
    """

    size: int
    seed: int
    block: int
    """Samples per block."""
    window: int
    """Blocks per window."""

    def epoch(self, epoch: int) -> Tensor:
        """Sample indices of an epoch in order, a permutation: long (n,)."""
        rng = generator(self.seed, "blocks", epoch)
        blocks = list(torch.arange(self.size).split(self.block))
        shuffled = [blocks[index] for index in torch.randperm(len(blocks), generator=rng).tolist()]
        windows = []
        for start in range(0, len(shuffled), self.window):
            samples = torch.cat(shuffled[start : start + self.window])
            windows.append(samples[torch.randperm(len(samples), generator=rng)])
        return torch.cat(windows)


@dataclass(frozen=True)
class Balanced:
    """Class-balanced sampling: each epoch of n samples has equally many of each class, up to one sample.

    Each class cycles through its samples across epochs, reshuffled in each cycle, so within a class the number of times
    that samples have been drawn differs by at most one.
    """

    labels: Tensor
    """long (n,); classes without samples are ignored."""
    seed: int

    def epoch(self, epoch: int) -> Tensor:
        """Sample indices of an epoch in order: long (n,)."""
        size, present = len(self.labels), self.labels.unique().tolist()
        per_class = []
        for place, label in enumerate(present):
            # n = q k + r: in each epoch r of the k classes, in rotation, have one sample more
            first, end = (self._drawn_before(number, place, size, len(present)) for number in (epoch, epoch + 1))
            per_class.append(self._of_class(label, first, end))
        samples = torch.cat(per_class)
        return samples[torch.randperm(size, generator=generator(self.seed, "balanced", epoch))]

    def _drawn_before(self, epoch: int, place: int, size: int, classes: int) -> int:
        """Samples drawn before `epoch` from the class at `place`; over all classes they sum to epoch · size."""
        return (epoch * size + classes - 1 - place) // classes

    def _of_class(self, label: int, first: int, end: int) -> Tensor:
        """Samples number first ... end - 1 of the class's infinite sequence of shuffled cycles."""
        samples = (self.labels == label).nonzero().flatten()
        cycles = [
            samples[torch.randperm(len(samples), generator=generator(self.seed, "class", label, cycle))]
            for cycle in range(first // len(samples), -(-end // len(samples)))
        ]
        begin = first % len(samples)
        return torch.cat(cycles)[begin : begin + end - first] if cycles else samples[:0]


@dataclass
class SampleOrder:
    """Maps a run's sample numbers to samples of the split."""

    size: int
    """Samples of the split, n."""
    shuffle: FullShuffle | BlockShuffle | Balanced
    _epochs: dict[int, Tensor] = field(default_factory=dict)

    def samples(self, first: int, count: int) -> Tensor:
        """Indices into the split of the run's samples first ... first + count - 1: long (count,)."""
        numbers = torch.arange(first, first + count)
        epochs, positions = numbers // self.size, numbers % self.size
        indices = torch.empty_like(numbers)
        for epoch in epochs.unique().tolist():
            in_epoch = epochs == epoch
            indices[in_epoch] = self._epoch(epoch)[positions[in_epoch]]
        return indices

    def _epoch(self, epoch: int) -> Tensor:
        """Cached order of an epoch. Threads may call it concurrently; at worst an order is computed twice."""
        order = self._epochs.get(epoch)
        if order is None:
            order = self.shuffle.epoch(epoch)
            self._epochs[epoch] = order
            for old in sorted(self._epochs)[:-CACHED_EPOCHS]:
                self._epochs.pop(old, None)
        return order


def read_ahead(load: Callable[[int], T], steps: range, workers: int = 2) -> Generator[T, None, None]:
    """Yield `load(step)` for each step in order, computed ahead by `workers` threads (decoding releases the GIL). With
    0 workers, each step is loaded in the caller's thread.
    """
    if workers == 0:
        yield from map(load, steps)
        return
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="reader") as pool:
        pending: list[Future[T]] = []
        upcoming = iter(steps)
        try:
            while True:
                while len(pending) < workers and (step := next(upcoming, None)) is not None:
                    pending.append(pool.submit(load, step))
                if not pending:
                    return
                yield pending.pop(0).result()
        finally:
            for future in pending:
                future.cancel()
