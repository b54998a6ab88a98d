"""Base classes of the engines: building from a config, and engines that use torch's optimizer directly."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from pfcluster.checkpoint.tensor_shards import TensorShard, TensorShards
from pfcluster.config import EngineConfig, OptimConfig
from pfcluster.distributed.process_group import World
from pfcluster.engine.base import Engine, NonFiniteError, adam_slots
from pfcluster.engine.optimizer import build_optimizer, set_rates


class ConfiguredEngine(Engine):
    """Moves a module to this rank's device and lets the backend wrap it."""

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
        """Wrap the module and build its optimizer. A collective. Raises EngineError for unsupported options."""


class TorchEngine(ConfiguredEngine):
    """Uses torch's optimizer on the module's parameters as they are after `_wrap`, replicated or sharded."""

    optimizer: torch.optim.Optimizer

    @abstractmethod
    def _wrap(self, engine: EngineConfig) -> None:
        """Wrap or shard the module with torch's means."""

    @abstractmethod
    def _shard(self, tensor: Tensor) -> TensorShard:
        """This rank's shard of a parameter or of one of its moments."""

    def _parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        return self.module.named_parameters()

    def _build(self, optim: OptimConfig, engine: EngineConfig) -> None:
        self._wrap(engine)
        self.optimizer = build_optimizer(self.module, optim)
        self.clip_norm = optim.clip_norm

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def _step(self) -> Tensor:
        trained = [parameter for parameter in self.module.parameters() if parameter.grad is not None]
        norm = gradient_norm(trained)
        if self.guard is not None:
            self.optimizer.found_inf = self.guard.observe(norm)  # type: ignore[attr-defined]  # of fused optimizers
        elif not torch.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError(f"the gradients' norm is {norm.item()}")
        if self.clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(trained, self.clip_norm, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def set_lr(self, lr: float) -> None:
        set_rates(self.optimizer.param_groups, lr)

    def _weights(self) -> TensorShards:
        return {name: self._shard(parameter) for name, parameter in self._parameters()}

    def _optimizer_state(self) -> TensorShards:
        return {
            f"{name}/{slot}": self._shard(value)
            for name, parameter in self._parameters()
            for slot, value in adam_slots(self.optimizer, parameter).items()
        }

    def sync_after_load(self) -> None:
        """Nothing to do: the shards are views of the parameters."""


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The global norm of the parameters' gradients, over all ranks where they are sharded: a scalar on the device."""
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
