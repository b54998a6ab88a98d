"""Memory that each engine backend holds for one module during a training step, in bytes of one rank.

A `BackendMemory` receives the events of a step (profiling/step_trace.py) and follows when its engine allocates
gradients, gathers weights and fills communication buckets. The rules come from the sources of torch and DeepSpeed and
are compared with measurements of real ranks in benchmarks/memory.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from pfcluster.config import ConfigError, RunConfig
from pfcluster.engine.optimizer import optimizers_of
from pfcluster.profiling.step_trace import StepEvent
from pfcluster.training.factory import needs_double_backward

FP32 = 4
"""Bytes of an fp32 element."""
ADAM_MOMENTS = 2
FORWARD_STARTS = ("forward_start", "frozen_forward_start")
BACKWARD_STARTS = ("backward_start", "local_backward_start")
BACKWARD_ENDS = ("backward_end", "local_backward_end")


class BackendMemory(ABC):
    """Bytes that an engine holds on one rank; the attributes are fields of `memory_plan.MemoryPlan`."""

    parameters: int
    optimizer: int
    host = 0
    gradients = 0
    """Current bytes, changed by `on_event`."""
    buffers = 0
    """Current bytes, changed by `on_event`."""

    def __init__(self, name: str, module: nn.Module, config: RunConfig) -> None:
        self.optim = optimizers_of(config)[name]
        self.sizes = {key: parameter.numel() for key, parameter in module.named_parameters()}
        self.total = sum(self.sizes.values())
        """Elements of all parameters."""
        self.module_buffers = sum(buffer.nbytes for buffer in module.buffers())
        self.element = 2 if config.engine.precision == "bf16_params" else FP32
        """Bytes of an element of the weights and gradients."""
        self.states = ADAM_MOMENTS + (self.optim.ema > 0)
        """fp32 optimizer states per parameter, moving average included."""

    @abstractmethod
    def on_event(self, event: StepEvent, *, of_this_engine: bool) -> int:
        """Update `gradients` and `buffers`. Returns bytes that are held only during the event, on top of those held
        before it.
        """


class DdpMemory(BackendMemory):
    """DDP: full weights, gradients and optimizer state. Gradients are views of DDP's buckets, which stay allocated;
    gradients of local backward passes are held in addition. With one process there are no buckets, and gradients are
    allocated anew in each step.
    """

    def __init__(self, name: str, module: nn.Module, config: RunConfig, processes: int) -> None:
        super().__init__(name, module, config)
        self.parameters = FP32 * self.total + self.module_buffers
        self.optimizer = FP32 * self.total * self.states
        self.buckets = FP32 * self.total if processes > 1 else 0
        self.gradients = self.buckets
        self.outside_buckets: set[str] = set()
        self.local = False

    def on_event(self, event: StepEvent, *, of_this_engine: bool) -> int:
        if not of_this_engine:
            return 0
        if event.kind in BACKWARD_STARTS + BACKWARD_ENDS:
            self.local = event.kind == "local_backward_start" or not self.buckets
        elif event.kind == "gradient":
            (self.outside_buckets.add if self.local else self.outside_buckets.discard)(event.parameter)
        elif event.kind == "optimizer_step":
            self.outside_buckets.clear()
        self.gradients = self.buckets + FP32 * sum(self.sizes[key] for key in self.outside_buckets)
        return 0


class Fsdp2Memory(BackendMemory):
    """FSDP2: all parameters are sharded along their first dimension, padded to equal shards. A unit is gathered while
    it computes, and the next unit's weights are prefetched; the root (parameters in no unit) is gathered from the
    forward pass to the end of the backward pass.
    """

    def __init__(self, name: str, module: nn.Module, config: RunConfig, processes: int) -> None:
        super().__init__(name, module, config)
        ranks = config.engine.fsdp_shard_size or processes
        if processes % ranks:
            raise ConfigError(f"engine.fsdp_shard_size must divide the number of processes ({processes}), got {ranks}")
        self.shards = {key: -(-len(each) // ranks) * each[0].numel() for key, each in module.named_parameters()}
        units = [set(unit.parameters()) for unit in module.shard_units()]  # type: ignore[operator]
        named = dict(module.named_parameters())
        self.units = [{key for key, parameter in named.items() if parameter in unit} for unit in units]
        root = set(named).difference(*self.units)
        self.root = ranks * sum(self.shards[key] for key in root)
        """Elements of the gathered root."""
        self.unit = ranks * max((sum(self.shards[key] for key in unit) for unit in self.units), default=0)
        """Elements of the largest gathered unit."""
        shard = sum(self.shards.values())
        self.parameters = FP32 * shard + self.module_buffers
        self.optimizer = FP32 * shard * self.states
        self.always_gathered = ranks * shard if needs_double_backward(config, name) else 0
        """Elements of all parameters if they stay gathered during a pass, which double backward requires; else 0."""
        self.local = self.frozen = False
        self.unreduced: set[str] = set()
        self.reduced: set[str] = set()
        self.unreduced_element = self.element

    def on_event(self, event: StepEvent, *, of_this_engine: bool) -> int:
        extra = 0
        if not of_this_engine:
            if event.kind in BACKWARD_ENDS and self.frozen:
                self.frozen, self.buffers = False, 0
            return 0
        gathered = self.element * (self.always_gathered or self.root + 2 * self.unit)
        if event.kind in FORWARD_STARTS:
            self.frozen = event.kind == "frozen_forward_start"
            self.buffers = gathered
        elif event.kind == "forward_end" and not self.frozen:
            self.buffers = self.element * (self.always_gathered or self.root)
        elif event.kind in BACKWARD_STARTS:
            self.local = event.kind == "local_backward_start"
            self.buffers = gathered + FP32 * self.unit * (not self.local)
        elif event.kind == "gradient":
            self._collect(event.parameter)
        elif event.kind in BACKWARD_ENDS:
            extra = self._end_backward()
        elif event.kind == "optimizer_step":
            self.reduced.clear()
        unreduced = self.unreduced_element * sum(self.sizes[key] for key in self.unreduced)
        self.gradients = unreduced + FP32 * sum(self.shards[key] for key in self.reduced)
        return extra

    def _end_backward(self) -> int:
        extra = 0 if self.local else max(0, FP32 * self.root - self.buffers)
        self.buffers = 0
        if self.local:
            self.unreduced_element = FP32  # gradients of local passes are accumulated in fp32
        else:
            self.reduced, self.unreduced, self.unreduced_element = set(self.sizes), set(), self.element
        return extra

    def _collect(self, parameter: str) -> None:
        """Keep a full gradient until all gradients of its unit are complete (after local passes: until those of the
        last pass), then its shard.
        """
        self.unreduced.add(parameter)
        for unit in self.units:
            if not self.local and parameter in unit and unit <= self.unreduced:
                self.unreduced -= unit
                self.reduced |= unit
