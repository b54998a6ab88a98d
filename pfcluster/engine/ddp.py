"""One process, or DistributedDataParallel over several: every process holds everything and gradients are averaged."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pfcluster.config import EngineConfig, OptimConfig
from pfcluster.dist import World
from pfcluster.engine.base import Engine, StateDict, adam_slots, clipped
from pfcluster.optim import build_optimizer
from pfcluster.pieces import Pieces, whole_piece


class DdpEngine(Engine):
    """Plain torch: the reference that every other engine is held against."""

    backend = "ddp"

    def __init__(
        self,
        module: nn.Module,
        optim: OptimConfig,
        engine: EngineConfig,
        world: World,
        *,
        double_backward: bool = False,
    ) -> None:
        super().__init__(
            module.to(world.device), world, precision=engine.precision, ema=optim.ema, double_backward=double_backward
        )
        self.optimizer = build_optimizer(self.module, optim)
        self.clip_norm = optim.clip_norm
        self.replica: DistributedDataParallel | None = None
        if world.size > 1:
            devices = [world.device.index] if world.device.type == "cuda" else None
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
        with self.precision():
            if self.replica is None:
                return self.module(*inputs, **named)
            self.replica.require_backward_grad_sync = sync  # what DDP.no_sync() sets, read by this forward pass
            return self.replica(*inputs, **named)

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _step(self) -> Tensor:
        norm = clipped(self.optimizer, list(self.module.parameters()), self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _weights(self) -> Pieces:
        return {name: whole_piece(parameter) for name, parameter in self.module.named_parameters()}

    def _optimizer_state(self) -> Pieces:
        return {
            f"{name}/{slot}": whole_piece(value)
            for name, parameter in self.module.named_parameters()
            for slot, value in adam_slots(self.optimizer, parameter).items()
        }

    def _whole(self, *, averaged: bool) -> StateDict:
        if averaged:
            return {name: value.view(self.shapes[name]) for name, value in self._averaged().items()}
        return {name: parameter.detach() for name, parameter in self.module.named_parameters()}

    def loaded(self) -> None:
        """The pieces are the parameters themselves."""
