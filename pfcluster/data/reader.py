"""The order of samples, exactly resumable, and reading ahead.

Sample number s of a run is a pure function of (seed, s): epoch s // n, position s % n in that epoch's permutation.
Step t of batch size B takes samples t B ... (t + 1) B - 1, and each rank its slice of them, so resuming means
starting at a step, in the middle of an epoch or on another number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from pfcluster.dist import generator

T = TypeVar("T")


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(size, generator=generator(seed, "order", epoch))


def sample_indices(first: int, count: int, *, size: int, seed: int) -> Tensor:
    """Which samples of a split of `size` the run's samples first ... first + count - 1 are: -> long (count,)."""
    numbers = torch.arange(first, first + count)
    epochs, positions = numbers // size, numbers % size
    indices = torch.empty_like(numbers)
    for epoch in epochs.unique().tolist():
        chosen = epochs == epoch
        indices[chosen] = _permutation(size, seed, epoch)[positions[chosen]]
    return indices


def read_ahead(load: Callable[[int], T], steps: range, ahead: int = 2) -> Iterator[T]:
    """`load(step)` for each step in turn, up to `ahead` of them under way in threads (decoding releases the GIL)."""
    with ThreadPoolExecutor(max_workers=ahead, thread_name_prefix="reader") as pool:
        waiting: list[Future[T]] = []
        upcoming = iter(steps)
        try:
            while True:
                while len(waiting) < ahead and (step := next(upcoming, None)) is not None:
                    waiting.append(pool.submit(load, step))
                if not waiting:
                    return
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
