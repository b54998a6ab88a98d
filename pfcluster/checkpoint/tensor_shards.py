"""Tensor shards: the parts of a run's tensors that one rank holds, independent of the engine.

A shard is a contiguous range of a tensor's elements in row-major order. Every engine describes its parameters and
optimizer state as shards, so checkpoints, weight averages and evaluation do not depend on how DDP, ZeRO or FSDP2
partition them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class TensorShard:
    """Elements `offset` ... `offset + len(values) - 1` of a flattened tensor of this `shape`."""

    values: Tensor
    """1-D; a view of the engine's memory."""
    offset: int
    shape: tuple[int, ...]

    @property
    def total(self) -> int:
        """Number of elements of the full tensor."""
        return math.prod(self.shape)


TensorShards = dict[str, TensorShard]


def unsharded(tensor: Tensor) -> TensorShard:
    """A full tensor as a single shard that shares its memory. Raises RuntimeError if it is not contiguous."""
    return TensorShard(tensor.detach().view(-1), 0, tuple(tensor.shape))


def gather(
    tensor_shards: TensorShards, shapes: dict[str, tuple[int, ...]], device: torch.device, group: ProcessGroup | None
) -> dict[str, Tensor]:
    """Full fp32 tensors by name from the shards of all ranks of a group; each element is held by exactly one rank. A
    collective.

    It is an all-reduce in which ranks contribute zeros for elements that they do not hold, so the result is exact.
    """
    offsets, end = {}, 0
    for name, shape in shapes.items():
        offsets[name], end = end, end + math.prod(shape)
    buffer = torch.zeros(end, device=device)
    for name, shard in tensor_shards.items():
        start = offsets[name] + shard.offset
        buffer[start : start + len(shard.values)] = shard.values
    torch.distributed.all_reduce(buffer, group=group)
    return {
        name: buffer[offsets[name] : offsets[name] + math.prod(shape)].view(shape) for name, shape in shapes.items()
    }
