"""FSDP2 (torch's fully_shard): parameters, gradients and moments are sharded over the ranks and gathered to compute.

Each engine's module is a separate FSDP root. With `engine.fsdp_shard_size` the weights are sharded over that many
neighbouring ranks (the GPUs of a node) and replicated between these groups: hybrid sharding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.utils._pytree import tree_map

from pfcluster.checkpoint.tensor_shards import TensorShard, gather, unsharded
from pfcluster.config import EngineConfig
from pfcluster.engine.base import StateDict
from pfcluster.engine.torch_engine import TorchEngine


class _Hidden:
    """A tensor that FSDP2's hooks do not see among the inputs of a module; they look into dataclasses."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class Fsdp2Engine(TorchEngine):
    """Shards a module's `shard_units()` and its root separately.

    With `double_backward` it shards the root alone and hides inputs that require gradients from FSDP2, which then
    reduces the gradients after the whole backward pass. It would reduce a unit's when the gradients of the unit's
    inputs are known; but those of its weights may come later: a GPU's backward runs in a thread of its own, and
    autograd orders the nodes that `input_gradient` makes there after those of the forward pass.
    """

    backend = "fsdp2"

    def _wrap(self, engine: EngineConfig) -> None:
        # `input_gradient` needs the weights twice: they stay gathered from the forward to the end of the backward pass.
        world, module, keep_gathered = self.world, self.module, self.double_backward
        shard = engine.fsdp_shard_size or world.size
        sizes, names = ((world.size // shard, shard), ("replicate", "shard"))
        self.mesh = init_device_mesh(world.device.type, sizes, mesh_dim_names=names)
        mesh = self.mesh if world.size > shard else self.mesh["shard"]
        half = torch.bfloat16 if engine.precision == "bf16_params" else None
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32 if half else None)
        if not keep_gathered:
            for unit in module.shard_units():  # type: ignore[operator]  # all networks in models/ have it
                fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        reshard_root = False if keep_gathered else None
        self.root: Any = fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_root)
        if keep_gathered:
            module.register_forward_pre_hook(_reveal, with_kwargs=True)  # FSDP2's comes before it
            for part in (module, *module.shard_units()) if half else ():  # type: ignore[operator]
                part.register_forward_pre_hook(_round, with_kwargs=True)

    def _forward(self, inputs: tuple[Any, ...], named: dict[str, Any], *, sync: bool) -> Any:
        self.root.set_requires_gradient_sync(sync)
        if self.double_backward:
            self.root.set_reshard_after_backward(False)  # the weights are needed after the inner backward pass
            inputs, named = tree_map(_hidden, (inputs, named))
        with self.autocast():
            return self.module(*inputs, **named)

    def _backward(self, loss: Tensor) -> None:
        super()._backward(loss)
        if self.double_backward:
            self.root.set_reshard_after_backward(True)
            self._reshard()

    @contextmanager
    def frozen(self) -> Iterator[Callable[..., Any]]:
        with super().frozen() as frozen_module:
            yield frozen_module
        self._reshard()  # gathered parameters would stay frozen: `requires_grad` takes effect when gathering

    def _reshard(self) -> None:
        """Free gathered parameters after a forward pass without a backward pass."""
        for part in self.module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        self._reshard()
        return self.module.named_parameters()

    def _shard(self, tensor: Tensor) -> TensorShard:
        """This rank's rows of a tensor that is sharded along its first dimension."""
        if not isinstance(tensor, DTensor):
            return unsharded(tensor)
        _, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        local: Tensor = tensor.to_local().detach()
        row = tensor.numel() // max(1, tensor.shape[0]) if tensor.ndim else 1
        return TensorShard(local.view(-1), offsets[0] * row if offsets else 0, tuple(tensor.shape))

    def _whole(self, *, averaged: bool) -> StateDict:
        if not averaged:
            return {name: _full(parameter.detach()) for name, parameter in self._parameters()}
        weights, average = self._weights(), self._averaged()
        group = self.mesh["shard"].get_group()
        tensor_shards = {name: TensorShard(average[name], shard.offset, shard.shape) for name, shard in weights.items()}
        return gather(tensor_shards, self.shapes, self.world.device, group)


def _hidden(value: Any) -> Any:
    return _Hidden(value) if isinstance(value, Tensor) and value.requires_grad else value


def _reveal(_module: nn.Module, inputs: Any, named: Any) -> Any:
    """A hook that takes hidden tensors out."""
    return tree_map(lambda value: value.tensor if isinstance(value, _Hidden) else value, (inputs, named))


def _round(_module: nn.Module, inputs: Any, named: Any) -> Any:
    """A hook that casts inputs to bf16, as FSDP2 casts those of modules that it shards and that it sees."""

    def rounded(value: Any) -> Any:
        return value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value

    return tree_map(rounded, (inputs, named))


def _full(tensor: Tensor) -> Tensor:
    """The full tensor, gathered if it is sharded. A collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
