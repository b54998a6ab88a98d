"""How training is executed and checkpointed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pfcluster.config.validation import require, require_min, require_not_huge, require_positive

Backend = Literal["auto", "ddp", "fsdp2", "zero1", "zero2", "zero3"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Distributed backend, precision and memory options. Apart from rounding they do not change the result, except for
    the "cnn" (the judge), whose batch normalisation sees one process's micro-batch at a time."""

    backend: Backend = "auto"
    """Distributed backend. "auto" takes DeepSpeed ZeRO-2 if it is installed and passes a self-check on this device,
    else FSDP2, else DDP; a single process takes DDP, which is plain torch there."""
    precision: Literal["fp32", "bf16", "bf16_params"] = "fp32"
    """"bf16" runs forward passes under autocast and keeps weights and optimizer in fp32. "bf16_params" also gathers
    and computes with bf16 weights; the optimizer's master weights stay fp32 (FSDP2 and ZeRO)."""
    grad_accumulation_steps: int = 1
    """Micro-batches per step: the same update with less memory (not of the "cnn", see above)."""
    activation_checkpointing: bool = False
    """Store only the inputs of each block and recompute its activations in the backward pass."""
    compile: bool = False
    """Apply torch.compile to each block; not with ZeRO-3, which has hooks inside the blocks. The discriminator's passes
    with the R1 penalty are not compiled: compiled code has no second derivative."""
    offload_optimizer: bool = False
    """Keep the optimizer's moments and fp32 weights in host memory (ZeRO)."""
    fsdp_shard_size: int | None = None
    """Number of neighbouring processes over which weights are sharded (FSDP2), such as the GPUs of a node for hybrid
    sharding; None shards over all."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto" takes the GPU if there is one."""
    timeout: float = 600.0
    """Seconds after which a dead or stuck process ends the run on all processes."""
    log_every: int = 10
    """Steps between two lines of metrics."""

    peak_tflops: float | None = None
    """Peak TFLOP/s of one device, which MFU is measured against; None takes the data sheet's dense bf16 figure of known
    GPUs (pfcluster/engine/peak.py). Unknown on CPUs unless given."""

    def __post_init__(self) -> None:
        if self.peak_tflops is not None:
            require_positive("engine", self, "peak_tflops")
        require_min(1, "engine", self, "grad_accumulation_steps", "log_every")
        require_positive("engine", self, "timeout")
        require_not_huge("engine", self, "timeout")
        if self.fsdp_shard_size is not None:
            require_positive("engine", self, "fsdp_shard_size")
        supported_by = {
            "engine.offload_optimizer": (self.offload_optimizer, ("zero1", "zero2", "zero3")),
            "engine.fsdp_shard_size": (self.fsdp_shard_size is not None, ("fsdp2",)),
            "engine.precision bf16_params": (self.precision == "bf16_params", ("fsdp2", "zero1", "zero2", "zero3")),
            "engine.compile": (self.compile, ("ddp", "fsdp2", "zero1", "zero2")),
        }
        for option, (enabled, backends) in supported_by.items():
            requirement = f"be one of {', '.join(backends)} (or auto) with {option}"
            allowed = not enabled or self.backend in ("auto", *backends)
            require(allowed, "engine.backend", self.backend, requirement)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written, how, and how many are kept."""

    every_steps: int = 500
    """Steps between two checkpoints. Further ones are written at the end, at each new best validation score, and on
    SIGINT, SIGTERM and SIGUSR2."""
    keep: int = 2
    """Number of newest checkpoints to keep; the one with the best validation score is kept as well."""
    asynchronous: bool = True
    """Write in the background; a step then waits only for a copy of the weights."""

    def __post_init__(self) -> None:
        require_min(1, "checkpoint", self, "every_steps", "keep")
