"""The interface of engines. An engine owns one module and its optimizer, and does everything from the loss to the
updated weights.

The contract is the same for all engines and every engine checks it: a step that would be silently wrong under
DeepSpeed or FSDP2 raises EngineError under plain DDP too, before any weight has changed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from pfcluster.checkpoint.tensor_shards import TensorShard, TensorShards, unsharded
from pfcluster.distributed.process_group import World
from pfcluster.engine.attention import AttentionKernels
from pfcluster.engine.finite import UpdateGuard
from pfcluster.engine.precision import autocast
from pfcluster.engine.timing import Timestamp, timestamp

StateDict = dict[str, Tensor]
ADAM_SLOTS = ("step", "exp_avg", "exp_avg_sq")
"""State of Adam and AdamW for each parameter: a step count, and two moments of its shape."""


class NonFiniteError(RuntimeError):
    """A gradient is not finite. The weights are unchanged."""


class EngineError(RuntimeError):
    """A step violates the engines' contract; some backend would silently compute wrong weights. Nothing was updated."""


def norm_statistics(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of a module's batch norms by name."""
    return {
        f"{name}.{key}": buffer
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm)
        for key, buffer in part.named_buffers()
    }


class Engine(ABC):
    """Owns a module and its optimizer. Objectives (pfcluster/training) leave precision, processes and sharding to it.

    A step consists of pairs of `__call__` and `backward`, of which only the last synchronises gradients, and one
    `step()`. Engines must be built in the same order on all ranks.
    """

    module: nn.Module
    """The module; the engine may shard its parameters."""
    backend: str
    """The value of `engine.backend` that selects this engine."""

    def __init__(
        self, module: nn.Module, world: World, *, precision: str, ema: float, double_backward: bool = False
    ) -> None:
        """`ema` is the decay of the weights' exponential moving average, 0 keeps none; `double_backward` enables
        `input_gradient`.
        """
        self.module, self.world, self.double_backward = module, world, double_backward
        self.shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        self.precision = precision
        self.decay = ema
        self.average: dict[str, Tensor] = {}
        self.average_buffers: dict[str, Tensor] = {}
        """Buffers of the averaged weights that are not those of the weights: statistics of batch norms, recomputed."""
        self.attention: AttentionKernels | None = None
        """With `double_backward`: the attention kernels of the module's units."""
        self.guard: UpdateGuard | None = None
        """If set, an update whose gradients are not finite is skipped on the device, and `step` raises nothing."""
        self.updates = 0
        """Updates since the start of the process; shows which engines were updated before a training step failed."""
        self.forward_began: Timestamp | None = None
        """Start of the last step's first forward pass."""
        self.backward_began: Timestamp | None = None
        """Start of its first backward pass; DDP, ZeRO-1 and ZeRO-2 do not communicate before it."""
        self._calling = self._in_backward = self._is_frozen = False
        self._open = self._closed = False
        self._fresh = True
        module.register_forward_pre_hook(self._check_call)

    def __call__(self, *inputs: Any, sync: bool = True, **named: Any) -> Any:
        """Forward pass in the engine's precision. `sync=False` does not reduce the gradients of this pass over ranks.

        Raises EngineError while frozen, and unless passes and backwards alternate and end with `sync`.
        """
        if self._is_frozen:
            raise EngineError(
                "a frozen engine was called: call the module that frozen() yields. Through the engine ZeRO-1 and 2"
                " raise IndexError and ZeRO-3 trains wrong weights"
            )
        training = torch.is_grad_enabled()
        if training:
            if self._closed:
                raise EngineError(
                    "a synchronised pass is the last of its step: call step() before the next, or pass sync=False to"
                    " all passes but the last. ZeRO-1 and 2 would train wrong weights"
                )
            if self._open:
                raise EngineError("two forward passes wait for one backward: put their inputs into one batch")
        if self._fresh:
            self.forward_began, self.backward_began, self._fresh = timestamp(self.world.device), None, False
        if self.attention is not None:  # input_gradient differentiates with respect to inputs that require gradients
            self.attention.twice = any(isinstance(each, Tensor) and each.requires_grad for each in inputs)
        self._calling = True
        try:
            outputs = self._forward(inputs, named, sync=sync)
        finally:
            self._calling = False
        if training:
            self._open, self._sync = True, sync
            for tensor in tree_leaves(outputs):
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(self._check_output_gradient)
        return outputs

    def backward(self, loss: Tensor) -> None:
        """Accumulate the loss's gradients.

        A loss that is not finite makes all gradients NaN, on all ranks, so that `step` raises. Raises EngineError if
        gradients would reach another engine's module.
        """
        if not self._open:
            raise EngineError("backward without a forward pass of this engine: each backward needs its own")
        if self.backward_began is None:
            self.backward_began = timestamp(self.world.device)
        self._in_backward = True
        try:
            self._backward(loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan))
        finally:
            self._in_backward = self._open = False
        self._closed = self._sync

    def input_gradient(self, output: Tensor, inputs: Tensor) -> Tensor:
        """Differentiable gradient of a scalar, computed from a pass's outputs, with respect to the pass's inputs. The
        pass's `backward` must follow. Raises EngineError unless the engine was built with `double_backward`.
        """
        if not self.double_backward:
            raise EngineError("this engine was not built for input_gradient: it needs double_backward=True")
        self._in_backward = True
        try:
            (gradient,) = torch.autograd.grad(output, inputs, create_graph=True)
        finally:
            self._in_backward = False
        return gradient

    def step(self, *, more_updates_follow: bool = False) -> Tensor:
        """Clip, update the weights and their moving average, zero the gradients; -> global gradient norm before
        clipping, a scalar. With `more_updates_follow` in the same training step the timestamps of its start are kept.

        If a gradient is not finite, the weights stay unchanged on all ranks: raises NonFiniteError, or with a `guard`
        nothing here.
        """
        if self._open or not self._closed:
            raise EngineError("step() must follow the backward of a synchronised pass")
        self._closed, self._fresh = False, not more_updates_follow
        norm = self._step()
        self.updates += 1
        if self.decay:
            self._update_average()
        return norm

    def autocast(self) -> torch.autocast:
        """The autocast context in which this engine's module computes."""
        return autocast(self.world.device, self.precision)

    @contextmanager
    def frozen(self) -> Iterator[Callable[..., Any]]:
        """Yield a function that calls the module in this engine's precision, with gradients of its parameters disabled,
        for use inside another engine's backward.

        Use nothing else there: a sharded engine would silently compute wrong weights.
        """
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)

        def frozen_module(*inputs: Any, **named: Any) -> Any:
            with self.autocast():
                return self.module(*inputs, **named)

        self._is_frozen = True
        if self.attention is not None:
            self.attention.twice = False
        try:
            yield frozen_module
        finally:
            self._is_frozen = False
            for parameter in trained:
                parameter.requires_grad_(True)

    def tensor_shards(self, name: str, *, loading: bool = False) -> TensorShards:
        """All tensors to save from this rank, as views: `NAME/<parameter>`, `NAME_ema/<parameter>` and
        `NAME_optimizer/<parameter>/<slot>`.

        When saving only rank 0 includes replicated buffers; with `loading` every rank does: write into the views, then
        call `sync_after_load()`. Optimizer state that does not exist yet is created.
        """
        weights = self._weights()
        shards = {f"{name}/{key}": shard for key, shard in weights.items()}
        shards |= {f"{name}_optimizer/{key}": shard for key, shard in self._optimizer_state().items()}
        if self.decay:
            shards |= {
                f"{name}_ema/{key}": TensorShard(value, weights[key].offset, weights[key].shape)
                for key, value in self._averaged().items()
            }
        if loading and self.decay:
            self.average_buffers = {key: buffer.clone() for key, buffer in norm_statistics(self.module).items()}
        if loading or self.world.is_main:
            for key, buffer in self._saved_buffers().items():
                shards[f"{name}/{key}"] = unsharded(buffer)
                if self.decay:
                    shards[f"{name}_ema/{key}"] = unsharded(self.average_buffers.get(key, buffer))
        return {key: shard for key, shard in shards.items() if len(shard.values)}

    def saved_shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Full shape of every tensor in the ranks' `tensor_shards`."""
        tensors = self.shapes | {key: tuple(buffer.shape) for key, buffer in self._saved_buffers().items()}
        shapes = {f"{name}/{key}": shape for key, shape in tensors.items()}
        for key, shape in self.shapes.items():
            shapes |= {f"{name}_optimizer/{key}/{slot}": () if slot == "step" else shape for slot in ADAM_SLOTS}
        if self.decay:
            shapes |= {f"{name}_ema/{key}": shape for key, shape in tensors.items()}
        return shapes

    @abstractmethod
    def sync_after_load(self) -> None:
        """Update the module after the views of `tensor_shards(loading=True)` were written. A collective."""

    def model_state(self, *, averaged: bool = False) -> StateDict:
        """Full weights, or their moving average, and rank 0's buffers by name, on the device. A collective."""
        return self._whole(averaged=averaged) | self._common_buffers()

    @abstractmethod
    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next steps."""

    @abstractmethod
    def _forward(self, inputs: tuple[Any, ...], named: dict[str, Any], *, sync: bool) -> Any:
        """The module's outputs under `autocast`."""

    @abstractmethod
    def _backward(self, loss: Tensor) -> None:
        """Accumulate gradients, and average them over ranks after a synchronised pass."""

    @abstractmethod
    def _step(self) -> Tensor:
        """Clip, update, zero the gradients; the norm before clipping. Raises NonFiniteError."""

    @abstractmethod
    def _weights(self) -> TensorShards:
        """This rank's shards of the fp32 parameters by name, as views."""

    @abstractmethod
    def _optimizer_state(self) -> TensorShards:
        """This rank's shards of the optimizer state by `<parameter>/<slot>`, as views."""

    @abstractmethod
    def _whole(self, *, averaged: bool) -> StateDict:
        """Full fp32 parameters, or their moving average, by name."""

    def _averaged(self) -> dict[str, Tensor]:
        """The moving average of this rank's weights, initialised as a copy of them."""
        if not self.average:
            self.average = {name: shard.values.clone() for name, shard in self._weights().items()}
        return self.average

    @torch.no_grad()
    def _update_average(self) -> None:
        weights = {name: shard.values for name, shard in self._weights().items()}
        average = self._averaged()
        if self.guard is None:
            torch._foreach_lerp_([average[name] for name in weights], list(weights.values()), 1 - self.decay)
            return
        share = torch.where(self.guard.skips.bool(), 0.0, 1 - self.decay)
        for name, values in weights.items():  # torch's foreach takes no share that is on the device
            average[name].lerp_(values, share.to(values.device))  # in host memory with offload_optimizer

    def _saved_buffers(self) -> dict[str, Tensor]:
        """Persistent buffers."""
        persistent = self.module.state_dict().keys()
        return {name: buffer for name, buffer in self.module.named_buffers() if name in persistent}

    def _common_buffers(self) -> StateDict:
        """Copies of rank 0's buffers on all ranks. A collective."""
        buffers = {name: buffer.detach().clone() for name, buffer in self._saved_buffers().items()}
        if self.world.size > 1:
            for buffer in buffers.values():
                torch.distributed.broadcast(buffer, 0)
        return buffers

    def _check_output_gradient(self, gradient: Tensor) -> None:
        if not self._in_backward:
            raise EngineError(
                "gradients reached an engine's outputs in another engine's backward: use the module that frozen()"
                " yields there, or detach the outputs. ZeRO-1 and 3 and FSDP2 would train wrong weights"
            )

    def _check_call(self, module: nn.Module, inputs: Any) -> None:
        if torch.is_grad_enabled() and not (self._calling or self._is_frozen):
            raise EngineError(
                "an engine's raw module was called with its gradients on: call the engine, or, inside another engine's"
                " backward, the module that frozen() yields. ZeRO-1 would train wrong weights"
            )


def adam_slots(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Adam's state of a parameter (`ADAM_SLOTS`), created as Adam's first step would if there is none."""
    slots: dict[str, Tensor] = optimizer.state.get(parameter, {})
    if not slots:
        on_device = parameter.device if optimizer.defaults.get("fused") else "cpu"
        slots = {
            "step": torch.zeros((), dtype=torch.float32, device=on_device),
            "exp_avg": torch.zeros_like(parameter.detach(), memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter.detach(), memory_format=torch.preserve_format),
        }
        optimizer.state[parameter] = slots
    return slots
