"""One process, or DistributedDataParallel over several: every process holds everything and gradients are averaged."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pfcluster.config import EngineConfig, OptimConfig
from pfcluster.dist import World
from pfcluster.engine.base import Engine, NonFiniteError, StateDict
from pfcluster.optim import build_optimizer


class DdpEngine(Engine):
    """Plain torch: the reference that every other engine is held against."""

    def __init__(self, module: nn.Module, optim: OptimConfig, engine: EngineConfig, world: World) -> None:
        self.module = module.to(world.device)
        self.optimizer = build_optimizer(self.module, optim)
        self.clip_norm = optim.clip_norm
        self.device = world.device
        self.autocast = engine.precision == "bf16"
        self.replica: DistributedDataParallel | None = None
        if world.size > 1:
            devices = [world.device.index] if world.device.type == "cuda" else None
            self.replica = DistributedDataParallel(
                self.module, device_ids=devices, gradient_as_bucket_view=True, broadcast_buffers=False
            )

    def __call__(self, *inputs: Any, sync: bool = True, **named: Any) -> Any:
        with self.precision():
            if self.replica is None:
                return self.module(*inputs, **named)
            self.replica.require_backward_grad_sync = sync  # what DDP.no_sync() sets, read by this forward pass
            return self.replica(*inputs, **named)

    def precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast)

    def backward(self, loss: Tensor) -> None:
        # A loss that is not finite spoils all its gradients, on all ranks, so that `step` sees it and refuses.
        (loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)).backward()

    def step(self) -> Tensor:
        parameters = [parameter for parameter in self.module.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if not torch.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(f"the gradients' norm is {norm.item()}")
        if self.clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.clip_norm, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        return norm

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def model_state(self) -> StateDict:
        return dict(self.module.state_dict())

    def optimizer_state(self) -> StateDict:
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.module.named_parameters()}
        return {
            f"{names[parameter]}/{slot}": value
            for parameter, slots in self.optimizer.state.items()
            for slot, value in slots.items()
        }

    def load(self, model: StateDict, optimizer: StateDict | None) -> None:
        self.module.load_state_dict(model)
        if optimizer is None:
            return
        parameters = dict(self.module.named_parameters())
        self.optimizer.state.clear()
        for key, value in optimizer.items():
            name, slot = key.rsplit("/", 1)
            # Fused kernels want the step counter where the parameter is.
            self.optimizer.state[parameters[name]][slot] = value.to(parameters[name].device, copy=True)
