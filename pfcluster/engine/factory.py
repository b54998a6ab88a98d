"""Choose the backend, prepare a module (compilation, activation checkpointing), and build its engine."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pfcluster.config import ConfigError, EngineConfig, OptimConfig
from pfcluster.distributed.process_group import World, ensure_group
from pfcluster.engine import selfcheck
from pfcluster.engine.attention import AttentionKernels, attend_with
from pfcluster.engine.base import Engine
from pfcluster.engine.ddp import DdpEngine
from pfcluster.engine.torch_engine import ConfiguredEngine
from pfcluster.system.extras import install_command

PREFERRED = ("zero2", "fsdp2", "ddp")
KNOWN_WARNINGS = (
    ".*returned a view tensor. An in-place op",  # FSDP2; the training steps have no in-place operations
    ".*find_unused_parameters=True was specified",  # DDP; intended
    "`broadcast_buffers` is deprecated",  # its new name in torch 2.13 does not exist in 2.9
    ".*is deprecated. Please use `torch.distributed",  # calls by DeepSpeed, a line per step each
)


@dataclass(frozen=True)
class BackendChoice:
    """The backend of a run, and the reason for it."""

    backend: str
    reason: str


def choose_backend(engine: EngineConfig, world: World) -> BackendChoice:
    """The config's backend, or for "auto" the first of ZeRO-2, FSDP2 and DDP that supports the config's options and
    passes the self-check here. A collective. Raises ConfigError if none does, or if the config's backend is not
    available.
    """
    check_backend(engine, world.size)
    if engine.backend != "auto":
        return BackendChoice(engine.backend, "set in the config")
    candidates = [backend for backend in PREFERRED if supports_options(backend, engine)]
    if world.size == 1 and "ddp" in candidates:
        return BackendChoice("ddp", "a single process needs no distribution")
    rejected: list[str] = []
    for backend in candidates:
        problem = _find_problem(backend, engine, world)
        if problem is None:
            reason = f"differs from one process by no more than {selfcheck.TOLERANCE:g} here"
            return BackendChoice(backend, "; ".join([reason, *rejected]))
        rejected.append(f"not {backend}: {problem}")
    raise ConfigError(f"engine.backend auto finds no backend that works here: {'; '.join(rejected)}")


def check_backend(engine: EngineConfig, processes: int) -> None:
    """Raises ConfigError if the backend is not installed or does not fit the number of processes."""
    if engine.backend.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            f"engine.backend {engine.backend} needs deepspeed, which is not installed: {install_command('zero')},"
            " or take fsdp2, ddp or auto"
        )
    if engine.fsdp_shard_size is not None and processes % engine.fsdp_shard_size:
        raise ConfigError(
            f"engine.fsdp_shard_size must divide the number of processes ({processes}), got {engine.fsdp_shard_size}"
        )


def supports_options(backend: str, engine: EngineConfig) -> bool:
    """Whether a backend supports the options that are set."""
    try:
        EngineConfig(**vars(engine) | {"backend": backend})
    except ConfigError:
        return False
    return True


def build_engine(
    backend: str,
    module: nn.Module,
    optim: OptimConfig,
    engine: EngineConfig,
    world: World,
    *,
    double_backward: bool = False,
) -> Engine:
    """Build an engine for a module, which is changed in place. A collective."""
    for message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    attention = prepare_module(module, engine, backend, double_backward=double_backward)
    if backend != "ddp":
        ensure_group(world, engine.timeout)
    built = _engine_class(backend)(module, optim, engine, world, double_backward=double_backward)
    built.attention = attention
    return built


def _engine_class(backend: str) -> type[ConfiguredEngine]:
    if backend == "ddp":
        return DdpEngine
    if backend == "fsdp2":
        from pfcluster.engine.fsdp2 import Fsdp2Engine

        return Fsdp2Engine
    from pfcluster.engine.zero import Zero1Engine, Zero2Engine, Zero3Engine

    kinds: dict[str, type[ConfiguredEngine]] = {"zero1": Zero1Engine, "zero2": Zero2Engine, "zero3": Zero3Engine}
    return kinds[backend]


def _allow_recompilations() -> None:
    """All blocks share one code object, which is compiled for each size of batch, with and without gradients: more
    often than the eight times after which torch falls back to eager execution for good.
    """
    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 64)


def prepare_module(
    module: nn.Module, engine: EngineConfig, backend: str, *, double_backward: bool = False
) -> AttentionKernels | None:
    """Apply torch.compile and activation checkpointing to a module's units as configured; -> with `double_backward`
    the choice of their attention kernels, else None. Parameter names do not change.
    """
    attention = AttentionKernels() if double_backward else None
    for unit in module.shard_units():  # type: ignore[operator]  # all networks in models/ have it
        forward: Any = unit.forward
        plain = forward
        if engine.compile:
            _allow_recompilations()
            forward = torch.compile(forward, dynamic=False)
        if attention is not None:
            forward = functools.partial(attend_with, attention, plain, forward)
        if engine.activation_checkpointing:
            forward = functools.partial(_checkpointed, forward, reentrant=backend == "zero3")
        if forward != unit.forward:
            unit.forward = forward
    return attention


def _checkpointed(forward: Callable[..., Any], *inputs: Any, reentrant: bool, **named: Any) -> Any:
    """Call a forward function with activation checkpointing. ZeRO-3 releases weights between two passes, which only the
    reentrant implementation supports.
    """
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    return checkpoint(functools.partial(forward, **named), *inputs, use_reentrant=reentrant, preserve_rng_state=False)


def _find_problem(backend: str, engine: EngineConfig, world: World) -> str | None:
    """Why a backend fails the self-check; None if it passes. A collective."""
    missing = backend.startswith("zero") and importlib.util.find_spec("deepspeed") is None
    if world.any(missing):
        return "deepspeed is not installed" if missing else "deepspeed is not installed on all nodes"
    problem = None
    try:
        difference = selfcheck.difference(
            functools.partial(_build_for_check, backend), functools.partial(_build_for_check, "ddp"), engine, world
        )
        if not difference <= selfcheck.TOLERANCE:
            problem = f"its weights differ from one process by {difference:.2g}"
    except Exception as error:  # backends and drivers raise errors of many classes
        problem = (
            f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else 'no message'}"
        )
    failed = world.any(problem is not None)
    return (problem or "it fails on another rank") if failed else None


def _build_for_check(backend: str, module: nn.Module, optim: OptimConfig, engine: EngineConfig, world: World) -> Engine:
    """An engine without compilation and activation checkpointing; "ddp" is the reference without any option."""
    if backend == "ddp":
        options = EngineConfig(device=engine.device, timeout=engine.timeout)
    else:
        changes = {"backend": backend, "compile": False, "activation_checkpointing": False}
        options = EngineConfig(**vars(engine) | changes)
    return build_engine(backend, module, optim, options, world)
