"""From a config to engines: which backend, why, and what is done to a module before one takes it."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from pfcluster.config import ConfigError, EngineConfig, OptimConfig
from pfcluster.distributed.process_group import World, ensure_group
from pfcluster.engine import selfcheck
from pfcluster.engine.base import Engine
from pfcluster.engine.ddp import DdpEngine

PREFERRED = ("zero2", "fsdp2", "ddp")
KNOWN_WARNINGS = (
    ".*returned a view tensor. An in-place op",  # FSDP2; our steps change nothing in place
    ".*find_unused_parameters=True was specified",  # DDP; it is meant
    "`broadcast_buffers` is deprecated",  # torch 2.13's name for it is not in 2.9
    ".*is deprecated. Please use `torch.distributed",  # DeepSpeed's calls, one line each a step
)


@dataclass(frozen=True)
class Choice:
    """The backend of a run and why it is this one."""

    backend: str
    reason: str


def choose(engine: EngineConfig, world: World) -> Choice:
    """The backend that a config asks for, or for "auto" the first of ZeRO-2, FSDP2 and DDP that knows the config's
    options and trains here what one process trains. A collective. Raises ConfigError where none does, or the one asked
    for cannot be had.
    """
    check(engine, world.size)
    if engine.backend != "auto":
        return Choice(engine.backend, "asked for")
    able = [backend for backend in PREFERRED if knows(engine, backend)]
    if world.size == 1 and "ddp" in able:
        return Choice("ddp", "one process has nothing to share")
    passed_over: list[str] = []
    for backend in able:
        problem = _problem(backend, engine, world)
        if problem is None:
            why = f"differs from one process by no more than {selfcheck.TOLERANCE:g} here"
            return Choice(backend, "; ".join([why, *passed_over]))
        passed_over.append(f"not {backend}: {problem}")
    raise ConfigError(f"engine.backend auto finds none that works here: {'; '.join(passed_over)}")


def check(engine: EngineConfig, processes: int) -> None:
    """What a config asks of so many processes and of what is installed, before anything starts. Raises ConfigError."""
    if engine.backend.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            f"engine.backend {engine.backend} needs deepspeed, which is not installed: pip install 'pfcluster[zero]',"
            " or take fsdp2, ddp or auto"
        )
    if engine.fsdp_shard_size is not None and processes % engine.fsdp_shard_size:
        raise ConfigError(
            f"engine.fsdp_shard_size must divide the number of processes ({processes}), got {engine.fsdp_shard_size}"
        )


def knows(engine: EngineConfig, backend: str) -> bool:
    """Whether a backend has the options that a config sets."""
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
    """An engine around a module, which is changed in place. A collective."""
    for message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    prepare(module, engine, backend, double_backward=double_backward)
    if backend == "ddp":
        return DdpEngine(module, optim, engine, world, double_backward=double_backward)
    ensure_group(world, engine.timeout)
    if backend == "fsdp2":
        from pfcluster.engine.fsdp2 import Fsdp2Engine

        return Fsdp2Engine(module, optim, engine, world, double_backward=double_backward)
    from pfcluster.engine.zero import Zero1Engine, Zero2Engine, Zero3Engine

    kind = {"zero1": Zero1Engine, "zero2": Zero2Engine, "zero3": Zero3Engine}[backend]
    return kind(module, optim, engine, world, double_backward=double_backward)


def prepare(module: nn.Module, engine: EngineConfig, backend: str, *, double_backward: bool = False) -> None:
    """Compile and checkpoint the units of a module where the config asks for it, and give them an attention that can be
    differentiated twice where `double_backward` does: no fused kernel can. Parameter names stay.
    """
    for unit in module.shard_units():  # type: ignore[operator]  # every net of nn/ has it
        forward: Any = unit.forward
        if double_backward:
            forward = functools.partial(_with_math_attention, forward)
        if engine.compile:
            forward = torch.compile(forward, dynamic=False)
        if engine.activation_checkpointing:
            forward = functools.partial(_recomputed, forward, reentrant=backend == "zero3")
        if forward != unit.forward:
            unit.forward = forward


def _with_math_attention(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    with sdpa_kernel(SDPBackend.MATH):
        return forward(*inputs, **named)


def _recomputed(forward: Callable[..., Any], *inputs: Any, reentrant: bool, **named: Any) -> Any:
    """Call a forward of which autograd keeps only the inputs. ZeRO-3 takes the weights away between two passes, which
    torch's newer, non-reentrant form does not survive.
    """
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    return checkpoint(functools.partial(forward, **named), *inputs, use_reentrant=reentrant, preserve_rng_state=False)


def _problem(backend: str, engine: EngineConfig, world: World) -> str | None:
    """Why a backend is not taken; None where it works."""
    missing = backend.startswith("zero") and importlib.util.find_spec("deepspeed") is None
    if world.any(missing):
        return "deepspeed is not installed" if missing else "deepspeed is not installed on all nodes"
    problem = None
    try:
        found = selfcheck.difference(
            functools.partial(_plain, backend), functools.partial(_plain, "ddp"), engine, world
        )
        if not found <= selfcheck.TOLERANCE:
            problem = f"its weights differ from one process by {found:.2g}"
    except Exception as error:  # backends, compilers and drivers raise anything
        problem = (
            f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else 'no message'}"
        )
    failed = world.any(problem is not None)
    return (problem or "it fails on another rank") if failed else None


def _plain(backend: str, module: nn.Module, optim: OptimConfig, engine: EngineConfig, world: World) -> Engine:
    if backend == "ddp":
        bare = EngineConfig(device=engine.device, timeout=engine.timeout)
    else:
        bare = EngineConfig(**vars(engine) | {"backend": backend, "compile": False, "activation_checkpointing": False})
    return build_engine(backend, module, optim, bare, world)
