"""Memory of DeepSpeed's ZeRO backends for one module; see profiling/backend_memory.py."""

from __future__ import annotations

from torch import nn

from pfcluster.config import RunConfig
from pfcluster.engine.zero import deepspeed_settings
from pfcluster.profiling.backend_memory import BACKWARD_ENDS, FORWARD_STARTS, FP32, BackendMemory
from pfcluster.profiling.step_trace import StepEvent


class ZeroMemory(BackendMemory):
    """ZeRO-1 and 2: full weights, and a shard of the fp32 master weights and moments. Gradients are collected in a
    bucket and reduced in a copy of it; the rank's shard is kept until the optimizer step. ZeRO-1 keeps all gradients
    until the end of the last backward pass.
    """

    def __init__(self, name: str, module: nn.Module, config: RunConfig, processes: int, *, stage: int) -> None:
        super().__init__(name, module, config)
        options = deepspeed_settings(self.optim, config.engine, stage, module)["zero_optimization"]
        self.stage, self.bucket, self.offload = stage, options["reduce_bucket_size"], "offload_optimizer" in options
        self.shard = -(-self.total // processes)
        self.parameters = self.element * self.total + self.module_buffers
        self.optimizer = FP32 * self.shard * (1 + self.states)
        largest = max(self.sizes.values())
        self.shard_gradients = self.element * min(self.total, self.shard + largest)
        """Gradients of all parameters that overlap the rank's shard."""
        if self.offload:
            self.host = self.optimizer + (FP32 + self.element) * self.shard + self.element * largest
            self.optimizer = self.shard_gradients = 0
        self.staging = self.buffers = self.element * largest if self.offload else 0
        """Buffer of a gradient that is copied to the host."""
        self.reduction = self.element + (FP32 if self.element < FP32 else 0)
        """Bytes of an element during the reduction, which is in fp32."""
        self.bucket_fill, self.reduced = 0, 0
        self.accumulated: set[str] = set()

    def on_event(self, event: StepEvent, *, of_this_engine: bool) -> int:
        if not of_this_engine:
            return 0
        if event.kind == "gradient":
            self.buffers = self.staging + self.element * self.bucket
            return self._collect(event.parameter)
        if event.kind in BACKWARD_ENDS:
            return self._end_backward(local=event.kind == "local_backward_end")
        if event.kind == "optimizer_step":
            self.gradients = self.reduced = 0
            self.accumulated.clear()
            return 0 if self.offload else self.reduction * self.shard
        return 0

    def _collect(self, parameter: str) -> int:
        """Add a gradient to the bucket, reducing the bucket first if it is full; returns the bytes of the reduction."""
        size = self.sizes[parameter]
        if self.stage == 1:
            self.gradients += 0 if parameter in self.accumulated else self.element * size
            self.accumulated.add(parameter)
            return 0
        extra = self._reduce() if self.bucket_fill + size > self.bucket else 0
        self.bucket_fill += size
        return extra

    def _reduce(self) -> int:
        extra, self.bucket_fill = self.reduction * self.bucket_fill, 0
        self.gradients = self.reduced + self.shard_gradients
        return extra

    def _end_backward(self, *, local: bool) -> int:
        if self.stage == 1 and local:
            return 0
        if self.stage == 1:
            extra = self._reduce_all()
            self.gradients = self.shard_gradients
        else:
            extra = self._reduce()
            self.gradients = self.reduced = self.shard_gradients
        self.buffers = self.staging
        return extra

    def _reduce_all(self) -> int:
        """Peak bytes, besides all gradients and the bucket, of reducing all gradients bucket by bucket (ZeRO-1)."""
        peak, left, reduced, fill = 0, self.total, 0, 0
        for size in [*self.sizes.values(), self.bucket]:
            if fill + size > self.bucket:
                peak = max(peak, self.element * (left - self.total) + reduced + self.reduction * fill)
                reduced, fill = self.shard_gradients, 0
            left, fill = left - size, fill + size
        return peak


class Zero3Memory(BackendMemory):
    """ZeRO-3: weights are sharded, too. Weights within DeepSpeed's reuse distance (10⁹ elements, more than any of our
    modules) stay gathered from the start of a pass until their gradients are complete; small parameters always.
    """

    PERSISTENT = 100_000
    """DeepSpeed's param_persistence_threshold: smaller parameters are not sharded."""

    def __init__(self, name: str, module: nn.Module, config: RunConfig, processes: int) -> None:
        super().__init__(name, module, config)
        options = deepspeed_settings(self.optim, config.engine, 3, module)["zero_optimization"]
        self.bucket, self.offload = options["reduce_bucket_size"], "offload_optimizer" in options
        self.shard = sum(-(-size // processes) for size in self.sizes.values())
        self.sharded = {key: size for key, size in self.sizes.items() if size > self.PERSISTENT}
        persistent = self.total - sum(self.sharded.values())
        self.parameters = self.element * (self.shard + persistent) + self.module_buffers
        self.optimizer = FP32 * self.shard * (1 + self.states)
        self.gradients = self.element * self.shard
        if self.offload:
            self.host = self.optimizer + FP32 * self.shard + self.gradients
            self.optimizer = self.gradients = 0
        self.prefetch = min(options["stage3_prefetch_bucket_size"], sum(self.sharded.values()))
        self.gathered: set[str] = set()
        self.bucket_fill = self.prefetching = 0
        self.frozen = False
        self._update_buffers()

    def on_event(self, event: StepEvent, *, of_this_engine: bool) -> int:
        extra = 0
        if not of_this_engine:
            if event.kind in BACKWARD_ENDS and self.frozen:
                self.gathered, self.frozen = set(), False
        elif event.kind in FORWARD_STARTS:
            self.prefetching = 0 if self.gathered else self.prefetch
            self.gathered, self.frozen = set(self.sharded), event.kind == "frozen_forward_start"
        elif event.kind == "forward_end":
            self.prefetching = 0
        elif event.kind == "gradient":
            extra = self._collect(self.sizes[event.parameter])
            self.gathered.discard(event.parameter)
        elif event.kind in BACKWARD_ENDS:
            extra = self._collect(self.bucket + 1)
            self.gathered, self.bucket_fill = set(), 0
        elif event.kind == "optimizer_step" and not self.offload:
            extra = (self.element + (FP32 if self.element < FP32 else 0)) * self.shard
        self._update_buffers()
        return extra

    def _collect(self, size: int) -> int:
        """Add a gradient to the bucket, reducing the bucket first if it is full; returns the bytes of the reduction."""
        extra = 0
        if self.bucket_fill and self.bucket_fill + size > self.bucket:
            extra, self.bucket_fill = FP32 * self.bucket_fill * (2 if self.element < FP32 else 1), 0
        self.bucket_fill += size
        return extra

    def _update_buffers(self) -> None:
        gathered = sum(self.sharded[key] for key in self.gathered)
        self.buffers = FP32 * self.bucket + self.element * (gathered + self.prefetching)
