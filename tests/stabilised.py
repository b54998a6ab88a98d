"""A small PF-MAG without a dataset: its config, engines, and a random batch, for tests of single options and steps."""

from __future__ import annotations

from dataclasses import replace

import torch

from pfcluster.config import (
    EngineConfig,
    LossWeights,
    OptimConfig,
    PfMagConfig,
    RunConfig,
)
from pfcluster.data.types import RawBatch
from pfcluster.distributed.process_group import World
from pfcluster.engine.ddp import DdpEngine
from pfcluster.models import factory
from pfcluster.training import parity
from pfcluster.training.loss_balancing import LossBalancer
from pfcluster.training.pf_mag_terms import LossSettings, loss_settings

SINGLE = World(0, 1, torch.device("cpu"))
CLASSES = 4
MOVING = OptimConfig(algorithm="adam", lr=1e-3, betas=(0.5, 0.999), weight_decay=0.0, schedule="constant")
FIXED = PfMagConfig(warmup_steps=2, loss_balancing="fixed", weights=LossWeights(cls=1.0, adv=0.5, rec=2.0, ort=0.1))


def config(**changes: object) -> RunConfig:
    base = parity.tiny_config("pf_mag", EngineConfig(device="cpu"), batch_size=8)
    return replace(base, pf_mag=replace(FIXED, **changes))  # type: ignore[arg-type]


def engines(run: RunConfig, optim: OptimConfig = MOVING) -> tuple[DdpEngine, DdpEngine]:
    modules = factory.build(run, CLASSES)
    model, discriminator = (
        DdpEngine(modules[name], optim, EngineConfig(), SINGLE) for name in ("model", "discriminator")
    )
    return model, discriminator


def raw(images: int = 8) -> RawBatch:
    chance = torch.Generator().manual_seed(3)
    pictures = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=chance)
    return RawBatch(pictures, torch.randint(0, CLASSES, (images,), generator=chance))


def settings(run: RunConfig) -> LossSettings:
    return loss_settings(run.pf_mag, 0, None, 0.0, None)


def balancer(run: RunConfig) -> LossBalancer:
    return LossBalancer(run.pf_mag.weights, False, 1, 1.0, 1.0, SINGLE)


def weights_of(engine: DdpEngine) -> torch.Tensor:
    return torch.cat([value.flatten() for value in engine.model_state().values()])
