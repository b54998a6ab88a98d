"""Process groups, ranks, devices and seeds. One process needs no group; several find each other by torchrun's
variables.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Rank 0 speaks and writes; the others compute."""
        return self.rank == 0

    def slice_of(self, count: int) -> slice:
        """This rank's part of `count` samples, which the number of ranks must divide."""
        assert count % self.size == 0, (count, self.size)
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks, on this world's device; the input is left alone."""
        values = values.detach().to(self.device, copy=True)
        if self.size > 1:
            torch_dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """The mean over ranks of floating-point values."""
        return self.sum(values) / self.size

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank. A collective: all ranks must ask together."""
        return self.any_of(flag)[0]

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """`any` of several flags, in one collective."""
        if self.size == 1:
            return flags
        return tuple(count > 0 for count in self.sum(torch.tensor(flags, dtype=torch.float32)).tolist())

    def from_main(self, find: Callable[[], T]) -> T:
        """What `find` gives on rank 0, on all ranks; what it raises there is raised on all. A collective."""
        if self.size == 1:
            return find()
        answer: list[Any] = [None, None]
        if self.is_main:
            try:
                answer[0] = find()
            except Exception as error:  # handed on to all ranks, which raise it
                answer[1] = error
        torch_dist.broadcast_object_list(answer, 0, device=self.device)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            torch_dist.barrier()


@contextmanager
def world(device: str = "auto", timeout: float = 600.0) -> Iterator[World]:
    """Join the process group that RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT describe, if they do.

    `device` is auto, cpu or cuda; `timeout` are the seconds that a collective waits. Raises ValueError where CUDA is
    asked for and absent.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    place = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    found = torch_dist.is_initialized()
    here = World(rank, size, place)
    if size > 1:
        ensure_group(here, timeout)
    failed = True
    try:
        yield here
        failed = False
    finally:
        if torch_dist.is_initialized() and not found and (size == 1 or not failed):
            torch_dist.destroy_process_group()  # after a failure it may wait for ranks that are gone


def ensure_group(here: World, timeout: float) -> None:
    """The process group, made where there is none yet: engines that cut things want one even for a single process."""
    if torch_dist.is_initialized():
        return
    backend = "nccl" if here.device.type == "cuda" else "gloo"
    limit = timedelta(seconds=timeout)
    store = torch_dist.HashStore() if here.size == 1 else None
    torch_dist.init_process_group(backend, rank=here.rank, world_size=here.size, timeout=limit, store=store)


def _device(name: str, local_rank: int) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("engine.device is cuda, but torch sees no CUDA device here; use cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from a run's seed and names: streams of random numbers that do not depend on each other."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator that depends on its parts alone: `generator(seed, "mask", step)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))
