"""Pieces: what one rank holds of the tensors of a run, whatever cut them.

A piece is a contiguous part of a tensor laid out flat in row-major order. Every engine says what it holds in pieces, so
that checkpoints, averages and whole weights need not know how ZeRO, FSDP2 or DDP keep theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class TensorShard:
    """`values`, 1-D and a view of the engine's own memory, are `shape`'s flat elements from `offset` on."""

    values: Tensor
    offset: int
    shape: tuple[int, ...]

    @property
    def total(self) -> int:
        """Elements of the whole tensor."""
        return math.prod(self.shape)


TensorShards = dict[str, TensorShard]


def whole_shard(tensor: Tensor) -> TensorShard:
    """All of a tensor; the values share its memory. Raises RuntimeError for one that is not contiguous."""
    return TensorShard(tensor.detach().view(-1), 0, tuple(tensor.shape))


def gather(
    tensor_shards: TensorShards, shapes: dict[str, tuple[int, ...]], device: torch.device, group: ProcessGroup | None
) -> dict[str, Tensor]:
    """Whole fp32 tensors by name from the pieces of a group's ranks, each element held by exactly one of them. A
    collective.

    The values of a rank that holds nothing of a tensor are zeros in a sum, so the result is exact.
    """
    offsets, end = {}, 0
    for name, shape in shapes.items():
        offsets[name], end = end, end + math.prod(shape)
    buffer = torch.zeros(end, device=device)
    for name, piece in tensor_shards.items():
        start = offsets[name] + piece.offset
        buffer[start : start + len(piece.values)] = piece.values
    torch.distributed.all_reduce(buffer, group=group)
    return {
        name: buffer[offsets[name] : offsets[name] + math.prod(shape)].view(shape) for name, shape in shapes.items()
    }
