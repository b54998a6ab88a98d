"""One process, or DistributedDataParallel over several: parameters are replicated and gradients averaged."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pfcluster.checkpoint.tensor_shards import TensorShard, unsharded
from pfcluster.config import EngineConfig
from pfcluster.engine.base import StateDict
from pfcluster.engine.torch_engine import TorchEngine


class DdpEngine(TorchEngine):
    """Plain torch: the reference for all other engines."""

    backend = "ddp"

    def _wrap(self, engine: EngineConfig) -> None:
        self.replica: DistributedDataParallel | None = None
        if self.world.size > 1:
            device = self.world.device
            devices = [device.index] if device.type == "cuda" else None
            # find_unused_parameters prevents DDP from rebuilding its buckets after the first step. New buckets would
            # change the order of summation, so a resumed run would not be bit-identical to an uninterrupted one.
            self.replica = DistributedDataParallel(
                self.module,
                device_ids=devices,
                gradient_as_bucket_view=True,
                broadcast_buffers=False,
                find_unused_parameters=True,
            )

    def _forward(self, inputs: tuple[Any, ...], named: dict[str, Any], *, sync: bool) -> Any:
        with self.autocast():
            if self.replica is None:
                return self.module(*inputs, **named)
            self.replica.require_backward_grad_sync = sync  # as DDP.no_sync() does; read in the forward pass
            return self.replica(*inputs, **named)

    def _shard(self, tensor: Tensor) -> TensorShard:
        return unsharded(tensor)

    def _whole(self, *, averaged: bool) -> StateDict:
        if averaged:
            return {name: value.view(self.shapes[name]) for name, value in self._averaged().items()}
        return {name: parameter.detach() for name, parameter in self.module.named_parameters()}
