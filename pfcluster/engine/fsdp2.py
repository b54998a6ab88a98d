"""FSDP2 (torch's fully_shard): parameters, gradients and moments are cut over the ranks, whole only while they compute.

Each engine's module is an FSDP root of its own. With `engine.shard_ranks` the weights are cut over that many
neighbouring ranks (the GPUs of a node) and replicated between the groups: hybrid sharding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from pfcluster.config import EngineConfig, OptimConfig
from pfcluster.dist import World
from pfcluster.engine.base import Engine, StateDict, adam_slots, clipped
from pfcluster.optim import build_optimizer
from pfcluster.pieces import Piece, Pieces, gather, whole_piece


class Fsdp2Engine(Engine):
    """A module cut at its `shard_units()` and at its root."""

    backend = "fsdp2"

    def __init__(
        self,
        module: nn.Module,
        optim: OptimConfig,
        engine: EngineConfig,
        world: World,
        *,
        double_backward: bool = False,
    ) -> None:
        """`double_backward` keeps the weights whole from the forward to the end of the backward: `input_gradient` needs
        them twice."""
        super().__init__(
            module.to(world.device), world, precision=engine.precision, ema=optim.ema, double_backward=double_backward
        )
        shard = engine.shard_ranks or world.size
        sizes, names = ((world.size // shard, shard), ("replicate", "shard"))
        self.mesh = init_device_mesh(world.device.type, sizes, mesh_dim_names=names)
        mesh = self.mesh if world.size > shard else self.mesh["shard"]
        half = torch.bfloat16 if engine.precision == "bf16_params" else None
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32 if half else None)
        for unit in module.shard_units():  # type: ignore[operator]  # every net of nn/ has it
            fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=not double_backward)
        self.root: Any = fully_shard(
            module, mesh=mesh, mp_policy=policy, reshard_after_forward=False if double_backward else None
        )
        self.optimizer = build_optimizer(self.module, optim)
        self.clip_norm = optim.clip_norm

    def _forward(self, inputs: tuple[Any, ...], named: dict[str, Any], *, sync: bool) -> Any:
        self.root.set_requires_gradient_sync(sync)
        if self.double_backward:
            self.root.set_reshard_after_backward(False)  # the weights are wanted again after the inner backward
        with self.precision():
            return self.module(*inputs, **named)

    def _backward(self, loss: Tensor) -> None:
        loss.backward()
        if self.double_backward:
            self.root.set_reshard_after_backward(True)
            self._reshard()

    def _step(self) -> Tensor:
        norm = clipped(self.optimizer, list(self.module.parameters()), self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _reshard(self) -> None:
        """Let go of whole parameters that a pass without a backward left behind."""
        for part in self.module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        self._reshard()
        return self.module.named_parameters()

    def _weights(self) -> Pieces:
        return {name: _piece(parameter) for name, parameter in self._parameters()}

    def _optimizer_state(self) -> Pieces:
        return {
            f"{name}/{slot}": _piece(value)
            for name, parameter in self._parameters()
            for slot, value in adam_slots(self.optimizer, parameter).items()
        }

    def _whole(self, *, averaged: bool) -> StateDict:
        if not averaged:
            return {name: _full(parameter.detach()) for name, parameter in self._parameters()}
        weights, average = self._weights(), self._averaged()
        group = self.mesh["shard"].get_group()
        pieces = {name: Piece(average[name], piece.offset, piece.shape) for name, piece in weights.items()}
        return gather(pieces, self.shapes, self.world.device, group)

    def loaded(self) -> None:
        """The pieces are the sharded parameters themselves."""


def _full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be cut. A collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _piece(tensor: Tensor) -> Piece:
    """This rank's rows of a tensor cut along its first dimension."""
    if not isinstance(tensor, DTensor):
        return whole_piece(tensor)
    _, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    local: Tensor = tensor.to_local().detach()
    row = tensor.numel() // max(1, tensor.shape[0]) if tensor.ndim else 1
    return Piece(local.view(-1), offsets[0] * row if offsets else 0, tuple(tensor.shape))
