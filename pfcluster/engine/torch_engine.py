"""What engines of a run have in common: how they are made from a config, and torch's optimizer where they keep it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pfcluster.checkpoint.tensor_shards import TensorShard, TensorShards
from pfcluster.config import EngineConfig, OptimConfig
from pfcluster.distributed.process_group import World
from pfcluster.engine.base import Engine, NonFiniteError, adam_slots
from pfcluster.engine.optimizer import build_optimizer, set_rates


class ConfiguredEngine(Engine):
    """Moves a module to this world's device and lets the backend wrap it."""

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
        self._build(optim, engine)

    @abstractmethod
    def _build(self, optim: OptimConfig, engine: EngineConfig) -> None:
        """Wrap the module and make its optimizer. A collective. Raises EngineError for what the backend cannot do."""


class TorchEngine(ConfiguredEngine):
    """Keeps torch's optimizer over the parameters that a module has after `_wrap`, whole or cut as they are."""

    optimizer: torch.optim.Optimizer

    @abstractmethod
    def _wrap(self, engine: EngineConfig) -> None:
        """Put torch's wrapper around the module."""

    @abstractmethod
    def _piece(self, tensor: Tensor) -> TensorShard:
        """This rank's part of a parameter or of one of its moments."""

    def _parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        return self.module.named_parameters()

    def _build(self, optim: OptimConfig, engine: EngineConfig) -> None:
        self._wrap(engine)
        self.optimizer = build_optimizer(self.module, optim)
        self.clip_norm = optim.clip_norm

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _step(self) -> Tensor:
        norm = clipped(self.optimizer, list(self.module.parameters()), self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def set_lr(self, lr: float) -> None:
        set_rates(self.optimizer.param_groups, lr)

    def _weights(self) -> TensorShards:
        return {name: self._piece(parameter) for name, parameter in self._parameters()}

    def _optimizer_state(self) -> TensorShards:
        return {
            f"{name}/{slot}": self._piece(value)
            for name, parameter in self._parameters()
            for slot, value in adam_slots(self.optimizer, parameter).items()
        }

    def sync_after_load(self) -> None:
        """The pieces are the parameters themselves."""


def clipped(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], clip_norm: float) -> Tensor:
    """Clip the gradients of all parameters by their global norm, where `clip_norm` is not 0; -> the norm before it.

    Raises NonFiniteError, and forgets the gradients then.
    """
    owners = [parameter for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in owners if parameter.grad is not None])
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    if not torch.isfinite(norm):
        optimizer.zero_grad(set_to_none=True)
        raise NonFiniteError(f"the gradients' norm is {norm.item()}")
    if clip_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(owners, clip_norm, norm)
    return norm
