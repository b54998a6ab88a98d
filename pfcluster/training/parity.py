"""Does a backend train what one process trains? The real objectives on tiny nets and random images, side by side.

`jobs/launch.py doctor` runs this on a cluster's own nodes, tests/distributed on 1, 2 and 4 processes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pfcluster.config import (
    AugmentConfig,
    DataConfig,
    EngineConfig,
    LossWeights,
    ModelConfig,
    Objective,
    OptimConfig,
    PfMagConfig,
    RunConfig,
)
from pfcluster.data.batch import make_micro_batches
from pfcluster.data.types import RawBatch
from pfcluster.distributed.process_group import World, generator
from pfcluster.engine.base import Engine
from pfcluster.models import factory
from pfcluster.models.mae import MAE
from pfcluster.training.factory import build_engines
from pfcluster.training.finetune import FinetuneObjective
from pfcluster.training.mae import MaeObjective
from pfcluster.training.objective import Objective as Steps
from pfcluster.training.pf_mag import PfMagObjective, loss_settings

CLASSES, STEPS = 4, 4
MODEL = ModelConfig(patch=8, width=32, depth=2, heads=2, decoder_width=16, decoder_depth=2, decoder_heads=2)


@dataclass(frozen=True)
class Difference:
    """Relative differences between a backend and one process after `STEPS` steps."""

    weights: float
    """Norm of the difference of all weights over the norm of one process's."""
    metrics: float
    """Largest relative difference of a loss or gradient norm at any step."""


STABILISED = PfMagConfig(
    weights=LossWeights(confusion=0.1),
    fake_class_targets="source",
    adv_ramp_steps=2,
    discriminator_pretrain_steps=1,
    discriminator_patch_gain=2.0,
    discriminator_emotion_weight=3.0,
    discriminator_updates=2,
    real_label_smoothing=0.1,
    discriminator_augment=("flip", "translation", "cutout"),
    instance_noise=0.1,
    refine_channels=4,
    class_mask_bias=1.0,
    warmup_steps=1,
    loss_balancing_steps=2,
)
"""PF-MAG with everything of docs/guides/pf-mag.md but the change of colour, each sample's own affair: beside the
convolution it magnifies rounding to 1e-6 of a gradient's norm.
"""


def tiny_config(
    objective: Objective, engine: EngineConfig, *, r1: float = 0.0, batch_size: int = 16, stabilised: bool = False
) -> RunConfig:
    """A run of any objective that takes milliseconds a step; PF-MAG meets its adversary after the first, fine-tuning
    mixes images, leaves out branches and decays its rate by layers.
    """
    pf_mag = replace(STABILISED if stabilised else PfMagConfig(warmup_steps=1, loss_balancing_steps=2), r1=r1)
    finetunes = objective == "finetune"
    return RunConfig(
        objective=objective,
        batch_size=batch_size,
        data=DataConfig(size=32),
        augment=AugmentConfig(mixup=0.8, cutmix=1.0) if finetunes else AugmentConfig(),
        model=replace(MODEL, drop_path=0.3 if finetunes else 0.0),
        optim=OptimConfig(lr=1e-3, clip_norm=0.5, layer_decay=0.65 if finetunes else 1.0),
        discriminator_optim=OptimConfig(algorithm="adam", lr=1e-4, betas=(0.5, 0.999), weight_decay=0.0, clip_norm=0.5),
        engine=engine,
        pf_mag=pf_mag,
    )


def compare(
    backend: str,
    objective: Objective,
    world: World,
    *,
    engine: EngineConfig,
    r1: float = 0.0,
    batch_size: int = 16,
    stabilised: bool = False,
) -> Difference:
    """Train `backend` with a config's engine options on this world, and plain torch in this process alone on the same
    batches, whole. A collective; all ranks get the same answer.
    """
    plain, asked = (
        tiny_config(objective, options, r1=r1, batch_size=batch_size, stabilised=stabilised)
        for options in (_plain(engine), engine)
    )
    wanted, seen = _reference(plain, alone(world))
    found, log = train(asked, backend, world)
    weights = float((found - wanted).norm() / wanted.norm())
    assert log.keys() == seen.keys()
    metrics = max(abs(log[key] - seen[key]) / max(abs(seen[key]), 1e-3) for key in seen)
    worst = torch.tensor([weights, metrics], dtype=torch.float64)
    if world.size > 1:
        worst = worst.to(world.device)
        torch.distributed.all_reduce(worst, torch.distributed.ReduceOp.MAX)
    return Difference(*worst.tolist())


@functools.lru_cache(maxsize=8)
def _reference(config: RunConfig, world: World) -> tuple[Tensor, dict[str, float]]:
    """What plain torch trains in one process: the same for every backend that is compared with it."""
    return train(config, "ddp", world)


def alone(world: World) -> World:
    """This process without the others, on the same device."""
    return World(0, 1, world.device)


def _plain(engine: EngineConfig) -> EngineConfig:
    return EngineConfig(device=engine.device, precision="fp32")


def train(config: RunConfig, backend: str, world: World) -> tuple[Tensor, dict[str, float]]:
    """All weights, flat and in double precision, after `STEPS` steps, and every step's scalars as means over ranks."""
    modules = factory.build(config, CLASSES)
    engines = build_engines(config, backend, modules, world)
    objective = build(config, engines, world)
    log: dict[str, float] = {}
    for step in range(STEPS):
        chance = generator(0, "parity", step)
        size = (config.batch_size, 3, config.data.size, config.data.size)
        images = torch.randint(0, 256, size, dtype=torch.uint8, generator=chance)
        labels = torch.randint(0, CLASSES, (config.batch_size,), generator=chance)
        mine = world.slice_of(config.batch_size)
        for name, engine in engines.items():
            engine.set_lr(config.discriminator_optim.lr if name == "discriminator" else config.optim.lr)
        metrics = objective.step(make_micro_batches(RawBatch(images[mine], labels[mine]), config, step, world), step)
        names = sorted(metrics)
        values = world.mean(torch.stack([metrics[name].detach().float() for name in names])).tolist()
        log |= {f"{step}/{name}": value for name, value in zip(names, values, strict=True)}
    states = {name: without_key_biases(engine.model_state()) for name, engine in engines.items()}
    flat = [states[name][key].flatten().double().cpu() for name in sorted(states) for key in sorted(states[name])]
    return torch.cat(flat), log


def build(config: RunConfig, engines: dict[str, Engine], world: World) -> Steps:
    """The objective of a tiny config, which needs nothing of a dataset."""
    model = engines["model"]
    if config.objective == "mae":
        assert isinstance(model.module, MAE)
        return MaeObjective(model, kept=model.module.kept, patch=config.model.patch, norm_pixels=True)
    if config.objective == "finetune":
        return FinetuneObjective(model, class_weights=None, label_smoothing=0.1)
    settings = loss_settings(config.pf_mag, 0, None, 0.0, None)
    return PfMagObjective(model, engines["discriminator"], settings, config.pf_mag, world)


def without_key_biases(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A net's weights, with the biases of attention's keys set to zero.

    Softmax cancels them: their gradient is zero but for rounding, which Adam, dividing it by its own size, turns into
    steps of any direction. They change nothing that a net computes.
    """
    kept = {}
    for name, value in weights.items():
        if name.endswith("qkv.bias"):
            query, key, rest = value.chunk(3)
            value = torch.cat([query, torch.zeros_like(key), rest])
        elif name.endswith("key_value.bias"):
            key, rest = value.chunk(2)
            value = torch.cat([torch.zeros_like(key), rest])
        kept[name] = value
    return kept


def with_accumulation(engine: EngineConfig, parts: int) -> EngineConfig:
    """The same engine options with so many micro-batches a step."""
    return replace(engine, grad_accumulation_steps=parts)
