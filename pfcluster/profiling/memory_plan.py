"""Estimate the memory that each backend will need on a rank, without running on the devices.

Exact for weights, gradients and optimizer state; activations are traced (profiling/step_trace.py). The events of a
traced step are passed to a `BackendMemory` per module (profiling/backend_memory.py); the peak is the largest sum of
what they and the step hold at any time. Compared with measurements of real ranks in benchmarks/memory.py.

Not included: CUDA's context, fragmentation of the allocator, NCCL's own buffers, compiled graphs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from pfcluster.config import ConfigError, EngineConfig, RunConfig
from pfcluster.models import factory
from pfcluster.profiling.backend_memory import BackendMemory, DdpMemory, Fsdp2Memory
from pfcluster.profiling.step_trace import StepEvent, trace_step
from pfcluster.profiling.zero_memory import Zero3Memory, ZeroMemory

BACKENDS = ("ddp", "zero1", "zero2", "zero3", "fsdp2")


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one rank. Each is the maximum over a step; `peak` is the maximum of their sum, so it may be smaller than
    the sum of the maxima.
    """

    parameters: int
    """Weights and module buffers as they are between steps, φ included."""
    gradients: int
    optimizer: int
    """Moments, fp32 master weights (ZeRO), moving average (`optim.ema`)."""
    activations: int
    """Inputs, activations and temporaries of forward and backward."""
    buffers: int
    """Gathered weights, and buckets and copies for communication."""
    peak: int
    host: int
    """Host memory of `engine.offload_optimizer`; not part of `peak`."""


def plan(
    config: RunConfig, classes: int, processes: int, backend: str, identity_net: nn.Module | None = None
) -> MemoryPlan:
    """Memory of a rank of `processes` under a backend. φ is included if `identity_net` is given (on the meta device).
    Raises ConfigError if the backend does not support the config's options.
    """
    return plans(config, classes, processes, [backend], identity_net)[backend]


def plans(
    config: RunConfig,
    classes: int,
    processes: int,
    backends: Sequence[str],
    identity_net: nn.Module | None = None,
) -> dict[str, MemoryPlan]:
    """`plan` for several backends, which share a traced step."""
    images = micro_batch_size(config, processes)
    with torch.device("meta"):
        modules = factory.build(config, classes, load_init=False)
    identity_net_bytes = 0 if identity_net is None else sum(tensor.nbytes for tensor in _tensors(identity_net))
    traces: dict[bool, list[StepEvent]] = {}
    memory_plans = {}
    for backend in backends:
        backend_config = with_backend(config, backend)
        # ZeRO-3 uses torch's reentrant activation checkpoints
        reentrant = backend_config.engine.activation_checkpointing and backend == "zero3"
        if reentrant not in traces:
            traces[reentrant] = trace_step(backend_config, classes, images, identity_net)
        memories = {name: _backend_memory(name, module, backend_config, processes) for name, module in modules.items()}
        memory_plans[backend] = _replay(traces[reentrant], memories, identity_net_bytes)
    return memory_plans


def micro_batch_size(config: RunConfig, processes: int) -> int:
    """Images of a rank's micro-batch. Raises ConfigError if the batch size is not divisible."""
    parts = processes * config.engine.grad_accumulation_steps
    images, rest = divmod(config.batch_size, parts)
    if rest:
        nearest = [str(parts * count) for count in (images, images + 1) if count]
        raise ConfigError(
            f"batch_size must be a multiple of {processes} processes times engine.grad_accumulation_steps"
            f" {config.engine.grad_accumulation_steps} = {parts}, got {config.batch_size};"
            f" {' or '.join(nearest)} would do"
        )
    return images


def with_backend(config: RunConfig, backend: str) -> RunConfig:
    """The config with another backend. Raises ConfigError if the backend does not support the config's options."""
    engine = EngineConfig(**vars(config.engine) | {"backend": backend})
    return replace(config, engine=engine)


def _backend_memory(name: str, module: nn.Module, config: RunConfig, processes: int) -> BackendMemory:
    backend = config.engine.backend
    if backend == "ddp":
        return DdpMemory(name, module, config, processes)
    if backend == "fsdp2":
        return Fsdp2Memory(name, module, config, processes)
    if backend == "zero3":
        return Zero3Memory(name, module, config, processes)
    return ZeroMemory(name, module, config, processes, stage=int(backend[-1]))


def _replay(events: Sequence[StepEvent], memories: Mapping[str, BackendMemory], identity_net_bytes: int) -> MemoryPlan:
    """Pass the events to the modules' memories, and take the maxima."""
    parts = list(memories.values())
    persistent = identity_net_bytes + sum(part.parameters + part.optimizer for part in parts)
    gradients = buffers = peak = 0.0
    for event in events:
        before = sum(part.gradients + part.buffers for part in parts)
        buffers_before = sum(part.buffers for part in parts)
        extra = sum(part.on_event(event, of_this_engine=name == event.engine) for name, part in memories.items())
        after = sum(part.gradients + part.buffers for part in parts)
        gradients = max(gradients, sum(part.gradients for part in parts))
        buffers = max(buffers, buffers_before + extra, sum(part.buffers for part in parts))
        peak = max(peak, persistent + before + extra + event.live_bytes, persistent + after + event.peak_bytes)
    return MemoryPlan(
        parameters=identity_net_bytes + sum(part.parameters for part in parts),
        gradients=round(gradients),
        optimizer=sum(part.optimizer for part in parts),
        activations=round(max(max(event.live_bytes, event.peak_bytes) for event in events)),
        buffers=round(buffers),
        peak=round(peak),
        host=sum(part.host for part in parts),
    )


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
