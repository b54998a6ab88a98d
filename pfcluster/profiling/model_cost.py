"""Cost of a model: parameters, FLOPs, and speed on a device.

As in the paper's tables, "test" covers the modules used for inference (E, S, C) and "train" all that are trained
(PF-ViT and Δ).

Legend: b images.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pfcluster.config import RunConfig
from pfcluster.distributed.process_group import World
from pfcluster.engine.precision import autocast
from pfcluster.models import factory
from pfcluster.models.from_runs import build_identity_net
from pfcluster.models.mae import MAE
from pfcluster.models.pf_vit import PFViT
from pfcluster.profiling.flops import empty_batches, profile, run_step
from pfcluster.training.factory import build_engines

BATCHES = (1, 64)
MIN_SECONDS, MIN_REPEATS = 0.5, 5
"""A timing runs for at least this long and this often, after one warm-up call."""


@dataclass(frozen=True)
class Speed:
    """Median times of a batch."""

    batch: int
    forward_ms: float
    """Inference, without gradients."""
    step_ms: float
    """A training step of all engines: forward, backward and update."""


@dataclass(frozen=True)
class ModelCost:
    """Cost of a config; FLOPs are per image. A multiply-add is 2 FLOPs; many papers count it as 1."""

    train_parameters: int
    test_parameters: int
    step_gflop: float
    """Training step: forward, backward, discriminator and PF-ViT updates."""
    test_gflop: float
    speeds: tuple[Speed, ...]


def measure_model_cost(config: RunConfig, classes: int, device: torch.device) -> ModelCost:
    """Count the FLOPs of a config's model, and time it in the config's precision. Weights are random, φ's included."""
    with torch.device("meta"):
        counted = profile(config, classes, identity_net=build_identity_net(config))
    identity_net = build_identity_net(config)
    if identity_net is not None:
        identity_net.to(device)
    speeds = tuple(_speed(config, classes, batch, device, identity_net) for batch in BATCHES)
    gflop = counted.flops / 1e9, inference_flops(config, classes) / 1e9
    return ModelCost(counted.train_parameters, counted.test_parameters, *gflop, speeds)


def inference_flops(config: RunConfig, classes: int) -> int:
    """FLOPs of classifying one image."""
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model = factory.build(config, classes, load_init=False)["model"]
        _inference_function(model)(torch.empty(1, 3, config.data.size, config.data.size))
    return int(counter.get_total_flops())


def _inference_function(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The part of a model used for inference: E, S and C of PF-ViT, the encoder of MAE, or a whole classifier."""
    if isinstance(model, PFViT):
        return model.classify
    return model.encoder if isinstance(model, MAE) else model


def _speed(config: RunConfig, classes: int, batch: int, device: torch.device, identity_net: nn.Module | None) -> Speed:
    modules = factory.build(config, classes, load_init=False)
    engines = build_engines(config, "ddp", modules, World(0, 1, device))
    with torch.device(device):
        batches = empty_batches(config, batch, 1)
    for each in batches:
        each.images.uniform_(-1, 1)
        each.labels.random_(classes)
        if each.order is not None:
            each.order.copy_(torch.rand(each.order.shape, device=device).argsort(1))
    step = _median(lambda: run_step(config, engines, batches, identity_net), device)
    model = engines["model"].module.eval()
    with torch.inference_mode(), autocast(device, config.engine.precision):
        forward = _median(lambda: _inference_function(model)(batches[0].images), device)
    return Speed(batch, 1000 * forward, 1000 * step)


def _median(call: Callable[[], object], device: torch.device) -> float:
    """Median duration of a call, in seconds."""
    call()
    seconds: list[float] = []
    while len(seconds) < MIN_REPEATS or sum(seconds) < MIN_SECONDS:
        _synchronize(device)
        start = time.perf_counter()
        call()
        _synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
