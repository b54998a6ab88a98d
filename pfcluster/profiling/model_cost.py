"""What a model costs: parameters, FLOPs, and how fast this machine's device is with it.

The paper's tables speak of two models: what remains at test time (E, S, C), and all that trains (PF-ViT and Δ).

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
LEAST_SECONDS, LEAST_TURNS = 0.5, 5
"""A timing takes at least so long, and so many turns after one that warms up."""


@dataclass(frozen=True)
class Speed:
    """Median time of a batch."""

    batch: int
    forward_ms: float
    """What remains at test time, without gradients."""
    step_ms: float
    """A training step of all engines: forward, backward and update."""

    @property
    def forward_images_per_s(self) -> float:
        return 1000 * self.batch / self.forward_ms

    @property
    def step_images_per_s(self) -> float:
        return 1000 * self.batch / self.step_ms


@dataclass(frozen=True)
class ModelCost:
    """Of one config, for one image. A multiplication and an addition are two FLOPs: papers often count them as one."""

    train_parameters: int
    test_parameters: int
    step_gflop: float
    """A training step: forward, backward, both turns."""
    test_gflop: float
    speeds: tuple[Speed, ...]


def measure_model_cost(config: RunConfig, classes: int, device: torch.device) -> ModelCost:
    """Count a config's model and time it in the config's precision. Random weights, φ's too: they cost the same."""
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
        _at_test_time(model)(torch.empty(1, 3, config.data.size, config.data.size))
    return int(counter.get_total_flops())


def _at_test_time(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """What remains of a model: E, S and C of PF-ViT, MAE's encoder, a classifier whole."""
    if isinstance(model, PFViT):
        return model.classify
    return model.encoder if isinstance(model, MAE) else model


def _speed(config: RunConfig, classes: int, batch: int, device: torch.device, identity_net: nn.Module | None) -> Speed:
    modules = factory.build(config, classes, load_init=False)
    here = World(0, 1, device)
    engines = build_engines(config, "ddp", modules, here)
    with torch.device(device):
        batches = empty_batches(config, batch, 1)
    for each in batches:
        each.images.uniform_(-1, 1)
        each.labels.random_(classes)
        if each.order is not None:
            each.order.copy_(torch.rand(each.order.shape, device=device).argsort(1))
    step = _median(lambda: run_step(config, engines, batches, identity_net), device)
    model = engines["model"].module.eval()
    with (
        torch.inference_mode(),
        autocast(device, config.engine.precision),
    ):
        forward = _median(lambda: _at_test_time(model)(batches[0].images), device)
    return Speed(batch, 1000 * forward, 1000 * step)


def _median(turn: Callable[[], object], device: torch.device) -> float:
    """Seconds of a turn."""
    turn()
    seconds: list[float] = []
    while len(seconds) < LEAST_TURNS or sum(seconds) < LEAST_SECONDS:
        _wait(device)
        start = time.perf_counter()
        turn()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
