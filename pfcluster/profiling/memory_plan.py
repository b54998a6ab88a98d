"""What each engine will hold on a rank, before the job: exact for weights, gradients and optimizer; activations traced.

A step's moments (profiling/step_trace.py) are shown to a keeper for each module (profiling/backend_memory.py);
the peak is the largest sum of what they hold and what the step itself does, at any moment. Checked against real ranks
in benchmarks/memory.py.
Not counted: CUDA's context, what the allocator loses between blocks, NCCL's own buffers, compiled graphs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from pfcluster.config import ConfigError, EngineConfig, RunConfig
from pfcluster.models import factory
from pfcluster.profiling.backend_memory import BackendMemory, create_backend_memory
from pfcluster.profiling.step_trace import StepEvent, trace_step

BACKENDS = ("ddp", "zero1", "zero2", "zero3", "fsdp2")


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one rank. Each is the most that is held of its kind at any moment of a step; the peak is the most of all
    together, which may be less than their sum.
    """

    parameters: int
    """Weights and buffers as they lie between steps, φ's among them."""
    gradients: int
    optimizer: int
    """Moments, fp32 masters besides the weights (ZeRO), moving average (`optim.ema`)."""
    activations: int
    """Inputs, activations and the temporaries of forward and backward."""
    buffers: int
    """Weights that are whole only while they compute, and buckets and copies of the communication."""
    peak: int
    host: int
    """What `engine.offload_optimizer` keeps in the host's memory instead; not in the peak."""


def plan(
    config: RunConfig, classes: int, processes: int, backend: str, identity_net: nn.Module | None = None
) -> MemoryPlan:
    """What a rank of so many processes holds under a backend. φ is counted where its module is given (on the meta
    device). Raises ConfigError where the backend does not know the config's options.
    """
    return plans(config, classes, processes, [backend], identity_net)[backend]


def plans(
    config: RunConfig,
    classes: int,
    processes: int,
    backends: Sequence[str],
    identity_net: nn.Module | None = None,
) -> dict[str, MemoryPlan]:
    """`plan` for several backends, which share a step where theirs is the same."""
    images = micro_batch_size(config, processes)
    with torch.device("meta"):
        modules = factory.build(config, classes, load_init=False)
    still = 0 if identity_net is None else sum(tensor.nbytes for tensor in _tensors(identity_net))
    steps: dict[bool, list[StepEvent]] = {}
    found = {}
    for backend in backends:
        own = with_backend(config, backend)
        nested = own.engine.activation_checkpointing and backend == "zero3"  # its checkpoints are of torch's older form
        if nested not in steps:
            steps[nested] = trace_step(own, classes, images, identity_net)
        keepers = {name: create_backend_memory(name, module, own, processes) for name, module in modules.items()}
        found[backend] = _play(steps[nested], keepers, still)
    return found


def micro_batch_size(config: RunConfig, processes: int) -> int:
    """Images of a rank's forward pass. Raises ConfigError where the batch cannot be shared out evenly."""
    parts = processes * config.engine.grad_accumulation_steps
    images, rest = divmod(config.batch_size, parts)
    if rest:
        near = [str(parts * count) for count in (images, images + 1) if count]
        raise ConfigError(
            f"batch_size must be a multiple of {processes} processes times engine.grad_accumulation_steps"
            f" {config.engine.grad_accumulation_steps} = {parts}, got {config.batch_size}; {' or '.join(near)} would do"
        )
    return images


def with_backend(config: RunConfig, backend: str) -> RunConfig:
    """The config under a backend. Raises ConfigError where that does not know the config's options."""
    engine = EngineConfig(**vars(config.engine) | {"backend": backend})
    return replace(config, engine=engine)


def _play(moments: Sequence[StepEvent], keepers: dict[str, BackendMemory], still: int) -> MemoryPlan:
    parts = list(keepers.values())
    fixed = still + sum(part.parameters + part.optimizer for part in parts)
    gradients = buffers = peak = 0.0
    for moment in moments:
        before = sum(part.gradients + part.buffers for part in parts)
        kept = sum(part.buffers for part in parts)
        extra = sum(part.on_event(moment, own=name == moment.engine) for name, part in keepers.items())
        after = sum(part.gradients + part.buffers for part in parts)
        gradients = max(gradients, sum(part.gradients for part in parts))
        buffers = max(buffers, kept + extra, sum(part.buffers for part in parts))
        peak = max(peak, fixed + before + extra + moment.live, fixed + after + moment.highest)
    return MemoryPlan(
        parameters=still + sum(part.parameters for part in parts),
        gradients=round(gradients),
        optimizer=sum(part.optimizer for part in parts),
        activations=round(max(max(moment.live, moment.highest) for moment in moments)),
        buffers=round(buffers),
        peak=round(peak),
        host=sum(part.host for part in parts),
    )


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
