"""What an engine holds of one module while a step goes on: bytes that stay, and bytes that come and go.

A keeper is shown a step's moments (profiling/step_trace.py) and knows when its engine makes
gradients, gathers weights and fills its buckets. What is written here was read in torch's and DeepSpeed's sources and
is held against real ranks in benchmarks/memory.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import nn

from pfcluster.config import ConfigError, RunConfig
from pfcluster.engine.optimizer import optimizers_of
from pfcluster.engine.zero import deepspeed_settings
from pfcluster.profiling.step_trace import StepEvent
from pfcluster.training.factory import needs_double_backward

FP32, MOMENTS = 4, 2


class BackendMemory(ABC):
    """What an engine keeps of one module, in bytes of one rank; the fields are those of `memory.MemoryPlan`."""

    parameters: int
    optimizer: int
    host = 0
    gradients = 0
    """Now: they come and go with the moments of a step, as buffers do."""
    buffers = 0

    def __init__(self, name: str, module: nn.Module, config: RunConfig, processes: int) -> None:
        self.optim = optimizers_of(config)[name]
        self.sizes = {key: parameter.numel() for key, parameter in module.named_parameters()}
        self.whole = sum(self.sizes.values())
        self.fixed = sum(buffer.nbytes for buffer in module.buffers())
        self.item = 2 if config.engine.precision == "bf16_params" else FP32
        self.copies = MOMENTS + (self.optim.ema > 0)
        """fp32 tensors of a weight's size that its optimizer keeps."""

    @abstractmethod
    def on_event(self, moment: StepEvent, *, own: bool) -> int:
        """Follow what the engine does; `own` tells its moments from another's. -> bytes of that instant alone, besides
        those that were held before it.
        """


class DdpMemory(BackendMemory):
    """Everything whole. Gradients live in DDP's buckets, which stay, and besides them those of passes that are not
    synchronised. One process has no buckets: gradients come anew in every step.
    """

    def __init__(self, name: str, module: nn.Module, config: RunConfig, processes: int) -> None:
        super().__init__(name, module, config, processes)
        self.parameters = FP32 * self.whole + self.fixed
        self.optimizer = FP32 * self.whole * self.copies
        self.buckets = FP32 * self.whole if processes > 1 else 0
        self.gradients = self.buckets
        self.loose: set[str] = set()
        self.local = False

    def on_event(self, moment: StepEvent, *, own: bool) -> int:
        if not own:
            return 0
        if moment.what.startswith("backward"):
            self.local = moment.what == "backward locally" or not self.buckets
        elif moment.what == "gradient":
            (self.loose.add if self.local else self.loose.discard)(moment.parameter)
        elif moment.what == "stepped":
            self.loose.clear()
        self.gradients = self.buckets + FP32 * sum(self.sizes[key] for key in self.loose)
        return 0


class ZeroMemory(BackendMemory):
    """ZeRO-1 and 2: whole weights, a rank's part of the masters and moments. Gradients meet in a bucket, are reduced in
    a copy of it, and the rank's part stays until the step; ZeRO-1 keeps all of them until the last backward's end.
    """

    def __init__(self, name: str, module: nn.Module, config: RunConfig, processes: int, *, stage: int) -> None:
        super().__init__(name, module, config, processes)
        options = deepspeed_settings(self.optim, config.engine, stage, module)["zero_optimization"]
        self.stage, self.bucket, self.offload = stage, options["reduce_bucket_size"], "offload_optimizer" in options
        self.part = -(-self.whole // processes)
        self.parameters = self.item * self.whole + self.fixed
        self.optimizer = FP32 * self.part * (1 + self.copies)
        largest = max(self.sizes.values())
        self.owned = self.item * min(self.whole, self.part + largest)
        """Gradients of the parameters that the rank's part touches."""
        if self.offload:
            self.host = self.optimizer + (FP32 + self.item) * self.part + self.item * largest
            self.optimizer = self.owned = 0
        self.staging = self.buffers = self.item * largest if self.offload else 0
        """Where gradients of a parameter wait for their way to the host."""
        self.copy = self.item + (FP32 if self.item < FP32 else 0)
        """Bytes of an element while it is reduced, in fp32."""
        self.filled, self.reduced = 0, 0
        self.seen: set[str] = set()

    def on_event(self, moment: StepEvent, *, own: bool) -> int:
        if not own:
            return 0
        if moment.what == "gradient":
            self.buffers = self.staging + self.item * self.bucket
            return self._collect(moment.parameter)
        if moment.what.startswith("backwarded"):
            return self._end_backward(local=moment.what == "backwarded locally")
        if moment.what == "stepped":
            self.gradients = self.reduced = 0
            self.seen.clear()
            return 0 if self.offload else self.copy * self.part
        return 0

    def _collect(self, parameter: str) -> int:
        size = self.sizes[parameter]
        if self.stage == 1:
            self.gradients += 0 if parameter in self.seen else self.item * size
            self.seen.add(parameter)
            return 0
        extra = self._reduce() if self.filled + size > self.bucket else 0
        self.filled += size
        return extra

    def _reduce(self) -> int:
        extra, self.filled = self.copy * self.filled, 0
        self.gradients = self.reduced + self.owned
        return extra

    def _end_backward(self, *, local: bool) -> int:
        if self.stage == 1 and local:
            return 0
        if self.stage == 1:
            extra = self._drain()
            self.gradients = self.owned
        else:
            extra = self._reduce()
            self.gradients = self.reduced = self.owned
        self.buffers = self.staging
        return extra

    def _drain(self) -> int:
        """The most that reducing whole gradients bucket by bucket holds besides gradients and bucket."""
        most, left, owned, filled = 0, self.whole, 0, 0
        for size in [*self.sizes.values(), self.bucket]:
            if filled + size > self.bucket:
                most = max(most, self.item * (left - self.whole) + owned + self.copy * filled)
                owned, filled = self.owned, 0
            left, filled = left - size, filled + size
        return most


class Zero3Memory(BackendMemory):
    """ZeRO-3: weights are cut too. Those that fit within DeepSpeed's reuse distance (10⁹ elements: all of ours) stay
    whole from a pass's start until their gradients are there; small ones always.
    """

    PERSISTENT = 100_000
    """DeepSpeed's param_persistence_threshold."""

    def __init__(self, name: str, module: nn.Module, config: RunConfig, processes: int) -> None:
        super().__init__(name, module, config, processes)
        options = deepspeed_settings(self.optim, config.engine, 3, module)["zero_optimization"]
        self.bucket, self.offload = options["reduce_bucket_size"], "offload_optimizer" in options
        self.part = sum(-(-size // processes) for size in self.sizes.values())
        self.cut = {key: size for key, size in self.sizes.items() if size > self.PERSISTENT}
        self.parameters = self.item * (self.part + self.whole - sum(self.cut.values())) + self.fixed
        self.optimizer = FP32 * self.part * (1 + self.copies)
        self.gradients = self.item * self.part
        if self.offload:
            self.host = self.optimizer + FP32 * self.part + self.gradients
            self.optimizer = self.gradients = 0
        self.prefetched = min(options["stage3_prefetch_bucket_size"], sum(self.cut.values()))
        self.gathered: set[str] = set()
        self.filled = self.frozen = self.flat = 0
        self._hold()

    def on_event(self, moment: StepEvent, *, own: bool) -> int:
        extra = 0
        if not own:
            if moment.what.startswith("backwarded") and self.frozen:
                self.gathered, self.frozen = set(), 0
        elif moment.what in ("forward", "frozen forward"):
            self.flat = 0 if self.gathered else self.prefetched
            self.gathered, self.frozen = set(self.cut), moment.what == "frozen forward"
        elif moment.what == "forwarded":
            self.flat = 0
        elif moment.what == "gradient":
            extra = self._collect(self.sizes[moment.parameter])
            self.gathered.discard(moment.parameter)
        elif moment.what.startswith("backwarded"):
            extra = self._collect(self.bucket + 1)
            self.gathered, self.filled = set(), 0
        elif moment.what == "stepped" and not self.offload:
            extra = (self.item + (FP32 if self.item < FP32 else 0)) * self.part
        self._hold()
        return extra

    def _collect(self, size: int) -> int:
        """Fill the bucket; -> a reduction's copies."""
        extra = 0
        if self.filled and self.filled + size > self.bucket:
            extra, self.filled = FP32 * self.filled * (2 if self.item < FP32 else 1), 0
        self.filled += size
        return extra

    def _hold(self) -> None:
        whole = sum(self.cut[key] for key in self.gathered)
        self.buffers = FP32 * self.bucket + self.item * (whole + self.flat)


class Fsdp2Memory(BackendMemory):
    """FSDP2: everything cut along first dimensions, padded to equal parts. A unit is whole while it computes, and the
    next one's weights are on their way; the root (all that is in no unit) is whole from the forward to the backward's
    end.
    """

    def __init__(self, name: str, module: nn.Module, config: RunConfig, processes: int) -> None:
        super().__init__(name, module, config, processes)
        ranks = config.engine.fsdp_shard_size or processes
        if processes % ranks:
            raise ConfigError(f"engine.fsdp_shard_size must divide the number of processes ({processes}), got {ranks}")
        self.parts = {key: -(-len(each) // ranks) * each[0].numel() for key, each in module.named_parameters()}
        units = [set(unit.parameters()) for unit in module.shard_units()]  # type: ignore[operator]
        named = dict(module.named_parameters())
        self.units = [{key for key, parameter in named.items() if parameter in unit} for unit in units]
        root = set(named).difference(*self.units)
        self.root = ranks * sum(self.parts[key] for key in root)
        self.unit = ranks * max((sum(self.parts[key] for key in unit) for unit in self.units), default=0)
        self.parameters = FP32 * sum(self.parts.values()) + self.fixed
        self.optimizer = FP32 * sum(self.parts.values()) * self.copies
        self.all = ranks * sum(self.parts.values()) if needs_double_backward(config, name) else 0
        self.local = self.frozen = False
        self.waiting: set[str] = set()
        self.cut: set[str] = set()
        self.width = self.item

    def on_event(self, moment: StepEvent, *, own: bool) -> int:
        extra = 0
        if not own:
            if moment.what.startswith("backwarded") and self.frozen:
                self.frozen, self.buffers = False, 0
            return 0
        if moment.what in ("forward", "frozen forward"):
            self.frozen = moment.what == "frozen forward"
            self.buffers = self.item * (self.all or self.root + 2 * self.unit)
        elif moment.what == "forwarded" and not self.frozen:
            self.buffers = self.item * (self.all or self.root)
        elif moment.what in ("backward", "backward locally"):
            self.local = moment.what == "backward locally"
            self.buffers = self.item * (self.all or self.root + 2 * self.unit) + FP32 * self.unit * (not self.local)
        elif moment.what == "gradient":
            self._collect(moment.parameter)
        elif moment.what.startswith("backwarded"):
            extra = max(0, FP32 * self.root - self.buffers) if not self.local else 0
            self.buffers = 0
            if self.local:
                self.width = FP32  # what waits for the last pass is added up in fp32
            else:
                self.cut, self.waiting, self.width = set(self.sizes), set(), self.item
        elif moment.what == "stepped":
            self.cut.clear()
        waiting = self.width * sum(self.sizes[key] for key in self.waiting)
        self.gradients = waiting + FP32 * sum(self.parts[key] for key in self.cut)
        return extra

    def _collect(self, parameter: str) -> None:
        """A whole gradient waits for its unit's others, or through all passes but the last, before it is cut."""
        self.waiting.add(parameter)
        for unit in self.units:
            if not self.local and parameter in unit and unit <= self.waiting:
                self.waiting -= unit
                self.cut |= unit


def create_backend_memory(name: str, module: nn.Module, config: RunConfig, processes: int) -> BackendMemory:
    """The keeper of a run's module under the config's backend."""
    backend = config.engine.backend
    if backend in ("zero1", "zero2"):
        return ZeroMemory(name, module, config, processes, stage=int(backend[-1]))
    made: dict[str, Callable[..., BackendMemory]] = {"ddp": DdpMemory, "zero3": Zero3Memory, "fsdp2": Fsdp2Memory}
    return made[backend](name, module, config, processes)
