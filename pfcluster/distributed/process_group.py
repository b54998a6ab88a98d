"""Process groups, ranks, devices and seeds. Several processes find each other by torchrun's environment variables; a
single process needs no process group.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor
from torch.distributed import ProcessGroup, Store, TCPStore

T = TypeVar("T")
LOOPBACK = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class World:
    """Rank, number of ranks and device of this process."""

    rank: int
    size: int
    device: torch.device
    host_group: ProcessGroup | None = None
    """Group for tensors in host memory, beside NCCL's; None where the default group takes them."""

    @property
    def is_main(self) -> bool:
        """Rank 0, which prints and writes files."""
        return self.rank == 0

    def slice_of(self, count: int) -> slice:
        """This rank's part of `count` samples; `count` must be a multiple of `size`."""
        assert count % self.size == 0, (count, self.size)
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, as a new tensor on this rank's device. A collective."""
        values = values.detach().to(self.device, copy=True)
        if self.size > 1:
            torch_dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """Mean of floating-point values over ranks. A collective."""
        return self.sum(values) / self.size

    def any(self, flag: bool) -> bool:
        """Whether a flag is set on any rank. A collective."""
        return self.any_of(flag)[0]

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """`any` for several flags in one collective of the hosts, which does not wait for the devices."""
        if self.size == 1:
            return flags
        counts = torch.tensor(flags, dtype=torch.float32)
        torch_dist.all_reduce(counts, group=self.host_group)
        return tuple(count > 0 for count in counts.tolist())

    def from_main(self, compute: Callable[[], T]) -> T:
        """Call `compute` on rank 0; returns its result, or raises its exception, on all ranks. A collective."""
        if self.size == 1:
            return compute()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = compute()
            except Exception as error:  # raised on all ranks below
                outcome[1] = error
        torch_dist.broadcast_object_list(outcome, 0, device=self.device)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def gather(self, value: T) -> list[T]:
        """The value of every rank, on all ranks. A collective."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch_dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until all ranks have called this."""
        if self.size > 1:
            torch_dist.barrier()


@contextmanager
def world(device: str = "auto", timeout: float = 600.0) -> Iterator[World]:
    """Join the process group that RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT describe, if they are set.

    `device`: auto, cpu or cuda. `timeout`: seconds after which a collective fails. Raises ValueError if CUDA is
    requested and not available.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    torch_device = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if torch_device.type == "cuda":
        torch.cuda.set_device(torch_device)
    existed = torch_dist.is_initialized()
    ranks = World(rank, size, torch_device)
    if size > 1:
        ensure_group(ranks, timeout)
        if torch_device.type == "cuda":
            group = torch_dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
            assert isinstance(group, ProcessGroup)
            ranks = replace(ranks, host_group=group)
    failed = True
    try:
        yield ranks
        failed = False
    finally:
        if torch_dist.is_initialized() and not existed and (size == 1 or not failed):
            torch_dist.destroy_process_group()  # after a failure it might block on lost ranks


def ensure_group(world: World, timeout: float) -> None:
    """Initialize the process group if there is none. Engines that shard need one even for a single process."""
    if torch_dist.is_initialized():
        return
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    limit = timedelta(seconds=timeout)
    store = torch_dist.HashStore() if world.size == 1 else _loopback_store(world, limit)
    torch_dist.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=limit, store=store)


def _loopback_store(world: World, timeout: timedelta) -> Store | None:
    """The store of ranks on one machine, whose server listens on the loopback interface alone; torch's own listens on
    all. None where MASTER_ADDR is not a loopback address, or where torchrun runs the store.
    """
    host, port = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", "0"))
    if host not in LOOPBACK or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    if not world.is_main:
        return TCPStore(host, port, world.size, is_master=False, timeout=timeout)
    with socket.create_server((LOOPBACK[0], port), backlog=max(128, world.size)) as server:
        descriptor = server.detach()  # the store closes it
    return TCPStore(
        host,
        port,
        world.size,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=descriptor,
    )


def _device(name: str, local_rank: int) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("engine.device is cuda, but torch sees no CUDA device here; use cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank)


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed derived from a run's seed and names, for independent streams of random numbers."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `derive_seed(*parts)`, e.g. `generator(seed, "mask", step)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))
