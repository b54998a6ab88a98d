"""What lives in memory during a training step besides weights, gradients and optimizer, without a byte being allocated.

The real step runs on fake tensors (torch's FakeTensorMode), which know their shapes, their device and the kernels that
would run, the CPU's fused attention among them, but hold nothing. Every storage is followed from its making to its end.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pfcluster.config import RunConfig
from pfcluster.models import factory
from pfcluster.profiling.flops import CountingEngine, empty_batches, prepare_uncompiled, run_step
from pfcluster.training.factory import needs_double_backward

SIZES = 2, 3
"""Images of the micro-batches that are run; a single one has shapes of its own (no copy where others need one)."""
PARTS = 3
"""Micro-batches that are run at most: any other adds what the second adds to the first."""


@dataclass(frozen=True)
class StepEvent:
    """Something that an engine acts on, and the bytes that the step itself holds then."""

    what: str
    """start; forward or frozen forward, forwarded; backward, gradient, backwarded (with "locally" where the pass is not
    synchronised); stepped.
    """
    engine: str
    """model or discriminator."""
    parameter: str
    """Whose gradient it is, or nothing. The gradient is among the bytes of this instant, not later."""
    live: float
    """Bytes in this instant."""
    highest: float
    """The most after it, until the next moment."""


def trace_step(config: RunConfig, classes: int, images: int, identity_net: nn.Module | None = None) -> list[StepEvent]:
    """The moments of a step of a rank whose micro-batches have so many images. φ, if given, lies on the meta device.

    Bytes are linear in the images, instant by instant; so two small micro-batches tell those of any.
    """
    small, large = (FakeStep(config, classes, size, identity_net) for size in SIZES)
    assert len(small.live) == len(large.live), (len(small.live), len(large.live))
    assert [mark[1:] for mark in small.marks] == [mark[1:] for mark in large.marks]
    share = (images - SIZES[0]) / (SIZES[1] - SIZES[0])
    missing = config.engine.grad_accumulation_steps - small.parts
    beside = small.left_behind + share * (large.left_behind - small.left_behind)
    live = [low + share * (high - low) + missing * beside for low, high in zip(small.live, large.live, strict=True)]
    ends = [mark[0] for mark in small.marks[1:]] + [len(live)]
    return [
        StepEvent(what, engine, parameter, live[start], max(live[start + 1 : end], default=0))
        for (start, what, engine, parameter), end in zip(small.marks, ends, strict=True)
    ]


class FakeStep:
    """A step on fake tensors: the live bytes after each operation, where among them the marks lie, and what a
    micro-batch leaves behind for the rest of the step.
    """

    def __init__(self, config: RunConfig, classes: int, images: int, identity_net: nn.Module | None) -> None:
        self.live: list[int] = []
        self.marks: list[tuple[int, str, str, str]] = []
        self.parts = min(config.engine.grad_accumulation_steps, PARTS)
        with torch.device("meta"):
            modules = factory.build(config, classes, load_init=False)
            if config.engine.precision == "bf16_params":
                modules = {name: module.bfloat16() for name, module in modules.items()}
        judge = copy.deepcopy(identity_net)
        everything = [*modules.values(), *([] if judge is None else [judge])]
        with FakeTensorMode(allow_non_fake_inputs=True):
            for module in everything:
                module.to_empty(device="cpu")
            engines = {name: self._engine(config, name, module) for name, module in modules.items()}
            own = [tensor for part in everything for tensor in (*part.parameters(), *part.buffers())]
            with _Storages(own, self.live):
                self.mark("start", "model")
                batches = empty_batches(config, images, self.parts)
                run_step(config, engines, batches, judge)
        inputs = sum(each.nbytes for each in tree_leaves(list(vars(batches[0]).values())) if isinstance(each, Tensor))
        passes = [self.live[start] for start, what, engine, _ in self.marks if (what, engine) == ("forward", "model")]
        self.left_behind = inputs + passes[2] - passes[1] if self.parts == PARTS else 0

    def mark(self, what: str, engine: str, parameter: str = "") -> None:
        """Note that something happens with an engine now."""
        if not self.live:
            self.live.append(0)
        self.live.append(self.live[-1])
        self.marks.append((len(self.live) - 1, what, engine, parameter))

    def _engine(self, config: RunConfig, name: str, module: nn.Module) -> CountingEngine:
        precision = config.engine.precision
        if precision == "bf16_params":
            for unit in module.shard_units():  # type: ignore[operator]  # every net of nn/ has it
                unit.register_forward_pre_hook(_to_bf16)
        prepare_uncompiled(config, name, module)
        engine = _TracedEngine(module, precision, name, self, double_backward=needs_double_backward(config, name))
        module.register_forward_pre_hook(lambda *_: self.mark(engine.kind_of_pass(), name))
        module.register_forward_hook(lambda *_: self.mark("forwarded", name))
        for key, parameter in module.named_parameters():
            parameter.register_post_accumulate_grad_hook(lambda owner, key=key: self._take(owner, name, key))
        return engine

    def _take(self, parameter: Tensor, engine: str, name: str) -> None:
        self.mark("gradient", engine, name)
        parameter.grad = None


class _TracedEngine(CountingEngine):
    """Marks its passes and steps."""

    def __init__(self, module: nn.Module, precision: str, name: str, run: FakeStep, *, double_backward: bool) -> None:
        super().__init__(module, precision=precision, double_backward=double_backward)
        self.name, self.run = name, run

    def kind_of_pass(self) -> str:
        """Whether the module is called through the engine, or raw, inside another engine's turn."""
        return "frozen forward" if self._is_frozen else "forward"

    def _forward(self, inputs: tuple[Any, ...], named: dict[str, Any], *, sync: bool) -> Any:
        self.synchronised = sync
        return super()._forward(inputs, named, sync=sync)

    def _backward(self, loss: Tensor) -> None:
        self.run.mark("backward" if self.synchronised else "backward locally", self.name)
        super()._backward(loss)
        self.run.mark("backwarded" if self.synchronised else "backwarded locally", self.name)

    def _step(self) -> Tensor:
        self.run.mark("stepped", self.name)
        return super()._step()


class _Storages(TorchDispatchMode):
    """Adds to a list, after each operation, the bytes of all storages that were made under it and still live."""

    def __init__(self, own: Iterable[Tensor], live: list[int]) -> None:
        """`own` tensors are not counted."""
        super().__init__()
        self.live, self.now = live, 0
        self.alive = {tensor.untyped_storage()._cdata: weakref.ref(tensor.untyped_storage()) for tensor in own}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        self.live.append(self.now)
        return outputs

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.alive:
            return

        def ended(_: Any) -> None:
            self.now -= size
            del self.alive[key]

        self.alive[key] = weakref.ref(storage, ended)
        self.now += size


def _to_bf16(unit: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """What mixed precision of FSDP2 and ZeRO does: a unit's inputs in the precision of its weights."""
    return tuple(each.bfloat16() if isinstance(each, Tensor) and each.is_floating_point() else each for each in inputs)
