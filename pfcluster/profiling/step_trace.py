"""Trace the memory of a training step, besides weights, gradients and optimizer state, without allocating it.

The real step runs on fake tensors (torch's FakeTensorMode), which have shapes, a device and the kernels that would run
(including the CPU's fused attention), but no storage. The trace follows each storage from creation to release.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

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
"""Images of the two traced micro-batches; PF-MAG's images from which others are generated. Not 1, which has other
shapes (fewer copies)."""
MAX_PARTS = 3
"""Most micro-batches that are traced; each further one adds what the second adds to the first."""

EventKind = Literal[
    "start",
    "forward_start",
    "frozen_forward_start",
    "forward_end",
    "backward_start",
    "local_backward_start",
    "gradient",
    "backward_end",
    "local_backward_end",
    "optimizer_step",
]
"""`frozen_forward_start`: the module is called within the other engine's pass. `local_backward_*`: a backward pass
whose gradients are not synchronised between ranks. `gradient`: a parameter's gradient is complete."""


@dataclass(frozen=True)
class StepEvent:
    """An event of a step that changes what an engine holds, with the bytes of inputs, activations and temporaries."""

    kind: EventKind
    engine: str
    """model or discriminator."""
    parameter: str
    """Name of the parameter of a `gradient` event, else "". `live_bytes` includes the gradient; later events do not."""
    live_bytes: float
    """At the event."""
    peak_bytes: float
    """Maximum between this event and the next."""


def trace_step(config: RunConfig, classes: int, images: int, identity_net: nn.Module | None = None) -> list[StepEvent]:
    """Events of a step with micro-batches of `images` images. φ, if given, is on the meta device.

    Each event's bytes are linear in the number of images, so they are extrapolated from two small steps.
    """
    every = config.pf_mag.generate_every if config.objective == "pf_mag" else 1
    sizes = [size * every for size in SIZES]
    small, large = (FakeStep(config, classes, size, identity_net) for size in sizes)
    assert len(small.live_bytes) == len(large.live_bytes), (len(small.live_bytes), len(large.live_bytes))
    assert [mark[1:] for mark in small.marks] == [mark[1:] for mark in large.marks]
    share = (images - sizes[0]) / (sizes[1] - sizes[0])
    untraced_parts = config.engine.grad_accumulation_steps - small.parts
    retained = small.retained_bytes + share * (large.retained_bytes - small.retained_bytes)
    live = [
        low + share * (high - low) + untraced_parts * retained
        for low, high in zip(small.live_bytes, large.live_bytes, strict=True)
    ]
    ends = [mark[0] for mark in small.marks[1:]] + [len(live)]
    return [
        StepEvent(kind, engine, parameter, live[start], max(live[start + 1 : end], default=0))
        for (start, kind, engine, parameter), end in zip(small.marks, ends, strict=True)
    ]


class FakeStep:
    """Runs a step on fake tensors and records the live bytes after each operation."""

    live_bytes: list[int]
    """After each operation."""
    marks: list[tuple[int, EventKind, str, str]]
    """Index into `live_bytes`, kind, engine and parameter of each event."""
    parts: int
    """Micro-batches of the step."""
    retained_bytes: int
    """What one micro-batch keeps allocated until the end of the step."""

    def __init__(self, config: RunConfig, classes: int, images: int, identity_net: nn.Module | None) -> None:
        self.live_bytes = []
        self.marks = []
        self.parts = min(config.engine.grad_accumulation_steps, MAX_PARTS)
        with torch.device("meta"):
            modules = factory.build(config, classes, load_init=False)
            if config.engine.precision == "bf16_params":
                modules = {name: module.bfloat16() for name, module in modules.items()}
        fake_identity_net = copy.deepcopy(identity_net)
        nets = [*modules.values(), *([] if fake_identity_net is None else [fake_identity_net])]
        with FakeTensorMode(allow_non_fake_inputs=True):
            for net in nets:
                net.to_empty(device="cpu")
            engines = {name: self._engine(config, name, module) for name, module in modules.items()}
            weights = [tensor for net in nets for tensor in (*net.parameters(), *net.buffers())]
            with _LiveBytes(weights, self.live_bytes):
                self.mark("start", "model")
                batches = empty_batches(config, images, self.parts)
                run_step(config, engines, batches, fake_identity_net)
        self.retained_bytes = self._retained(batches[0]) if self.parts == MAX_PARTS else 0

    def mark(self, kind: EventKind, engine: str, parameter: str = "") -> None:
        """Record an event."""
        if not self.live_bytes:
            self.live_bytes.append(0)
        self.live_bytes.append(self.live_bytes[-1])
        self.marks.append((len(self.live_bytes) - 1, kind, engine, parameter))

    def _retained(self, batch: object) -> int:
        inputs = sum(each.nbytes for each in tree_leaves(list(vars(batch).values())) if isinstance(each, Tensor))
        forwards = [
            self.live_bytes[start]
            for start, kind, engine, _ in self.marks
            if (kind, engine) == ("forward_start", "model")
        ]
        return inputs + forwards[2] - forwards[1]

    def _engine(self, config: RunConfig, name: str, module: nn.Module) -> CountingEngine:
        precision = config.engine.precision
        if precision == "bf16_params":
            for unit in module.shard_units():  # type: ignore[operator]  # every net of models/ has it
                unit.register_forward_pre_hook(_to_bf16)
        prepare_uncompiled(config, name, module)
        engine = _TracedEngine(module, precision, name, self, double_backward=needs_double_backward(config, name))
        module.register_forward_pre_hook(lambda *_: self.mark(engine.forward_kind(), name))
        module.register_forward_hook(lambda *_: self.mark("forward_end", name))
        for key, parameter in module.named_parameters():
            parameter.register_post_accumulate_grad_hook(lambda owner, key=key: self._drop_gradient(owner, name, key))
        return engine

    def _drop_gradient(self, parameter: Tensor, engine: str, name: str) -> None:
        self.mark("gradient", engine, name)
        parameter.grad = None


class _TracedEngine(CountingEngine):
    """Records the events of its passes and steps."""

    def __init__(self, module: nn.Module, precision: str, name: str, step: FakeStep, *, double_backward: bool) -> None:
        super().__init__(module, precision=precision, double_backward=double_backward)
        self.name, self.fake_step = name, step

    def forward_kind(self) -> EventKind:
        """Whether the module is called through this engine, or frozen within the other engine's pass."""
        return "frozen_forward_start" if self._is_frozen else "forward_start"

    def _forward(self, inputs: tuple[Any, ...], named: dict[str, Any], *, sync: bool) -> Any:
        self.synchronised = sync
        return super()._forward(inputs, named, sync=sync)

    def _backward(self, loss: Tensor) -> None:
        self.fake_step.mark("backward_start" if self.synchronised else "local_backward_start", self.name)
        super()._backward(loss)
        self.fake_step.mark("backward_end" if self.synchronised else "local_backward_end", self.name)

    def _step(self) -> Tensor:
        self.fake_step.mark("optimizer_step", self.name)
        return super()._step()


class _LiveBytes(TorchDispatchMode):
    """Appends to a list, after each operation, the bytes of all live storages that were created in this mode."""

    def __init__(self, excluded: Iterable[Tensor], live_bytes: list[int]) -> None:
        super().__init__()
        self.live_bytes, self.now = live_bytes, 0
        self.storages = {tensor.untyped_storage()._cdata: weakref.ref(tensor.untyped_storage()) for tensor in excluded}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor):
                self._track(tensor.untyped_storage())
        self.live_bytes.append(self.now)
        return outputs

    def _track(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.storages:
            return

        def released(_: Any) -> None:
            self.now -= size
            del self.storages[key]

        self.storages[key] = weakref.ref(storage, released)
        self.now += size


def _to_bf16(_unit: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Cast a unit's inputs to the precision of its weights, as mixed precision in FSDP2 and ZeRO does."""
    return tuple(each.bfloat16() if isinstance(each, Tensor) and each.is_floating_point() else each for each in inputs)
