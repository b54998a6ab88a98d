"""One process, or DistributedDataParallel over several: every process holds everything and gradients are averaged."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pfcluster.checkpoint.tensor_shards import TensorShard, unsharded
from pfcluster.config import EngineConfig
from pfcluster.engine.base import StateDict
from pfcluster.engine.torch_engine import TorchEngine


class DdpEngine(TorchEngine):
    """Plain torch: the reference that every other engine is held against."""

    backend = "ddp"

    def _wrap(self, engine: EngineConfig) -> None:
        self.replica: DistributedDataParallel | None = None
        if self.world.size > 1:
            device = self.world.device
            devices = [device.index] if device.type == "cuda" else None
            # Looking for unused parameters keeps DDP from ordering its buckets anew after its first step, which would
            # sum in another order: a run that goes on would differ in its last bits from one that never stopped.
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
            self.replica.require_backward_grad_sync = sync  # what DDP.no_sync() sets, read by this forward pass
            return self.replica(*inputs, **named)

    def _piece(self, tensor: Tensor) -> TensorShard:
        return unsharded(tensor)

    def _whole(self, *, averaged: bool) -> StateDict:
        if averaged:
            return {name: value.view(self.shapes[name]) for name, value in self._averaged().items()}
        return {name: parameter.detach() for name, parameter in self.module.named_parameters()}
