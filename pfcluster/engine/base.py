"""What an engine promises: one module and one optimizer, and everything between a loss and the next weights.

The contract is the same for every engine and is checked in every one: a step that would be silently wrong under
DeepSpeed or FSDP2 raises EngineError under plain DDP too, before any weight has moved.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pfcluster.checkpoint.tensor_shards import TensorShard, TensorShards, unsharded
from pfcluster.distributed.process_group import World
from pfcluster.engine.precision import autocast
from pfcluster.engine.timing import Timestamp, mark

StateDict = dict[str, Tensor]
ADAM_SLOTS = ("step", "exp_avg", "exp_avg_sq")
"""What both of our optimizers keep for a parameter: a step count, and two moments of its shape."""


class NonFiniteError(RuntimeError):
    """A gradient is not finite. The weights are those from before the step."""


class EngineError(RuntimeError):
    """A step that breaks the engines' contract: some backend would go wrong without a word. Nothing was trained."""


class Engine(ABC):
    """Owns a module and its optimizer. Steps (`steps/`) know nothing else of precision, processes or sharding.

    A step is any number of `__call__` and `backward` pairs, of which only the last synchronises, then one `step()`.
    Engines are made in the same order on all ranks.
    """

    module: nn.Module
    """The module itself, its parameters whole or cut as the engine keeps them."""
    backend: str
    """The name by which `engine.backend` asks for it."""

    def __init__(
        self, module: nn.Module, world: World, *, precision: str, ema: float, double_backward: bool = False
    ) -> None:
        """`ema` is the decay of an exponential moving average of the weights, 0 keeps none; `double_backward` allows
        `input_gradient`.
        """
        self.module, self.world, self.double_backward = module, world, double_backward
        self.shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        self.precision = precision
        self.decay = ema
        self.average: dict[str, Tensor] = {}
        self.updates = 0
        """Steps taken since the start of the process: tells which engines already moved when a training step failed."""
        self.forward_began: Timestamp | None = None
        """When the latest step's first forward pass began."""
        self.backward_began: Timestamp | None = None
        """When its first backward began: until then ranks of DDP, ZeRO-1 and 2 do not wait for each other."""
        self._calling = self._in_backward = self._is_frozen = False
        self._open = self._closed = False
        self._fresh = True
        module.register_forward_pre_hook(self._check_call)

    def __call__(self, *inputs: Any, sync: bool = True, **named: Any) -> Any:
        """Forward pass under the engine's precision. `sync=False` keeps the gradients of this pass local for now.

        Raises EngineError while it is frozen, and where passes and backwards are not pairs that end with `sync`.
        """
        if self._is_frozen:
            raise EngineError(
                "a frozen engine was called: call what frozen() yields. Through the engine ZeRO-1 and 2 raise"
                " IndexError and ZeRO-3 trains wrong weights"
            )
        training = torch.is_grad_enabled()
        if training:
            if self._closed:
                raise EngineError(
                    "a synchronised pass is the last of its step: call step() before the next, or give sync=False to"
                    " all passes but the last. ZeRO-1 and 2 would train wrong weights"
                )
            if self._open:
                raise EngineError("two forward passes wait for one backward: put their inputs into one batch")
        if self._fresh:
            self.forward_began, self.backward_began, self._fresh = mark(self.world.device), None, False
        self._calling = True
        try:
            outputs = self._forward(inputs, named, sync=sync)
        finally:
            self._calling = False
        if training:
            self._open, self._sync = True, sync
            for tensor in tree_leaves(outputs):
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(self._check_turn)
        return outputs

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to those collected.

        A loss that is not finite spoils all its gradients, on all ranks, so that `step` sees it and refuses. Raises
        EngineError where gradients would reach another engine's module.
        """
        if not self._open:
            raise EngineError("backward without a forward pass of this engine: each takes one")
        if self.backward_began is None:
            self.backward_began = mark(self.world.device)
        self._in_backward = True
        try:
            self._backward(loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan))
        finally:
            self._in_backward = self._open = False
        self._closed = self._sync

    def input_gradient(self, output: Tensor, inputs: Tensor) -> Tensor:
        """The gradient of a scalar made of a pass's outputs by that pass's inputs, itself differentiable; the pass's
        `backward` must follow. Raises EngineError on an engine that was not built for it.
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
        """Clip, update the weights and their average, forget the gradients; -> the gradients' global norm before
        clipping, a scalar. `again` says that another step of the same training step follows: the marks of when it began
        stay.

        Raises NonFiniteError, on all ranks together, and leaves the weights alone.
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
        """The raw module, under this engine's precision, with its parameters' gradients off: to be used inside another
        engine's backward.

        Nothing else may be used there: called through itself, or unfrozen, a sharded engine is silently wrong.
        """
        trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)

        def judge(*inputs: Any, **named: Any) -> Any:
            with self.autocast():
                return self.module(*inputs, **named)

        self._is_frozen = True
        try:
            yield judge
        finally:
            self._is_frozen = False
            for parameter in trained:
                parameter.requires_grad_(True)

    def tensor_shards(self, name: str, *, loading: bool = False) -> TensorShards:
        """Everything to be saved that this rank holds, as views: `NAME/<parameter>`, `NAME_ema/<parameter>` and
        `NAME_optimizer/<parameter>/<slot>`.

        Replicated buffers are rank 0's when saving, and everybody's when `loading`; then write into the views and call
        `loaded()`. The optimizer's tensors are made where it has none yet.
        """
        found = {f"{name}/{key}": piece for key, piece in self._weights().items()}
        found |= {f"{name}_optimizer/{key}": piece for key, piece in self._optimizer_state().items()}
        if self.decay:
            weights = self._weights()
            found |= {
                f"{name}_ema/{key}": TensorShard(value, weights[key].offset, weights[key].shape)
                for key, value in self._averaged().items()
            }
        if loading or self.world.is_main:
            for key, buffer in self._saved_buffers().items():
                found[f"{name}/{key}"] = unsharded(buffer)
                if self.decay:
                    found[f"{name}_ema/{key}"] = unsharded(buffer)
        return {key: piece for key, piece in found.items() if len(piece.values)}

    def saved_shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Shape of every whole tensor that the ranks' `pieces` make up together."""
        held = self.shapes | {key: tuple(buffer.shape) for key, buffer in self._saved_buffers().items()}
        found = {f"{name}/{key}": shape for key, shape in held.items()}
        for key, shape in self.shapes.items():
            found |= {f"{name}_optimizer/{key}/{slot}": () if slot == "step" else shape for slot in ADAM_SLOTS}
        if self.decay:
            found |= {f"{name}_ema/{key}": shape for key, shape in held.items()}
        return found

    @abstractmethod
    def sync_after_load(self) -> None:
        """What `pieces(loading=True)` gave was written into: make the module follow. A collective."""

    def model_state(self, *, averaged: bool = False) -> StateDict:
        """Whole weights and buffers by name on the device, or their moving average. A collective; buffers are rank
        0's."""
        return self._whole(averaged=averaged) | self._common_buffers()

    @abstractmethod
    def set_lr(self, lr: float) -> None:
        """Learning rate of the next steps."""

    @abstractmethod
    def _forward(self, inputs: tuple[Any, ...], named: dict[str, Any], *, sync: bool) -> Any:
        """The module's outputs under `precision`."""

    @abstractmethod
    def _backward(self, loss: Tensor) -> None:
        """Add gradients, and average them over ranks after a synchronised pass."""

    @abstractmethod
    def _step(self) -> Tensor:
        """Clip, update, forget; the norm before clipping. Raises NonFiniteError."""

    @abstractmethod
    def _weights(self) -> TensorShards:
        """This rank's part of the fp32 parameters by name, as views."""

    @abstractmethod
    def _optimizer_state(self) -> TensorShards:
        """This rank's part of the optimizer's tensors by `<parameter>/<slot>`, as views."""

    @abstractmethod
    def _whole(self, *, averaged: bool) -> StateDict:
        """Whole fp32 parameters, or their average, by name."""

    def _averaged(self) -> dict[str, Tensor]:
        """The moving average of this rank's weights; it starts as a copy of them."""
        if not self.average:
            self.average = {name: piece.values.clone() for name, piece in self._weights().items()}
        return self.average

    @torch.no_grad()
    def _update_average(self) -> None:
        weights = {name: piece.values for name, piece in self._weights().items()}
        average = self._averaged()
        torch._foreach_lerp_([average[name] for name in weights], list(weights.values()), 1 - self.decay)

    def _saved_buffers(self) -> dict[str, Tensor]:
        """Buffers that a state dict holds."""
        kept = self.module.state_dict().keys()
        return {name: buffer for name, buffer in self.module.named_buffers() if name in kept}

    def _common_buffers(self) -> StateDict:
        """Rank 0's buffers, on all ranks."""
        found = {name: buffer.detach().clone() for name, buffer in self._saved_buffers().items()}
        if self.world.size > 1:
            for buffer in found.values():
                torch.distributed.broadcast(buffer, 0)
        return found

    def _check_turn(self, gradient: Tensor) -> None:
        if not self._in_backward:
            raise EngineError(
                "gradients reached an engine's outputs in another engine's backward: inside it use what frozen()"
                " yields, or detach the outputs. ZeRO-1 and 3 and FSDP2 would train wrong weights"
            )

    def _check_call(self, module: nn.Module, inputs: Any) -> None:
        if torch.is_grad_enabled() and not (self._calling or self._is_frozen):
            raise EngineError(
                "an engine's raw module was called with its gradients on: call the engine, or, inside another engine's"
                " backward, what frozen() yields. ZeRO-1 would train wrong weights"
            )


def adam_slots(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Adam's tensors of a parameter, `ADAM_SLOTS`; made as its first step would make them where none are there."""
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
