"""Parity check: train the real objectives with a backend and with one process on the same random batches, and compare.

`pfcluster doctor` runs this on the nodes of a cluster, tests/distributed on 1, 2 and 4 processes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pfcluster.config import (
    AugmentConfig,
    ClassifierConfig,
    DataConfig,
    EngineConfig,
    LossWeights,
    ModelConfig,
    Objective,
    OptimConfig,
    PfMagConfig,
    RunConfig,
)
from pfcluster.config.data import no_augment
from pfcluster.data.batch import make_micro_batches, require_fitting_micro_batch
from pfcluster.data.labels import CANONICAL
from pfcluster.data.types import RawBatch
from pfcluster.distributed.process_group import World, generator
from pfcluster.engine.optimizer import set_learning_rates
from pfcluster.models import factory
from pfcluster.training.factory import build_engines, build_objective

CLASS_NAMES = CANONICAL[:4]
CLASSES, STEPS = len(CLASS_NAMES), 4
MODEL = ModelConfig(patch=8, width=32, depth=2, heads=2, decoder_width=16, decoder_depth=2, decoder_heads=2)
SMALLEST_METRIC = 1e-3
"""Differences of metrics are relative to their magnitude, but at least to this: a loss near zero is all rounding."""
ALL_STABILISERS = PfMagConfig(
    weights=LossWeights(confusion=0.1, anchor=0.5, swap=0.5),
    fake_class_targets="source",
    discriminator_init="classifier",
    discriminator_updates=2,
    fusion_bias=4.0,
    patch_overlap=2,
    generate_every=2,
    encoder_grad_share=0.25,
    r1_every=2,
    class_mask_bias=1.0,
    patch_mask_bias=-1.0,
    erasure_start=1,
    warmup_steps=1,
    warmup_lr=2e-3,
    warmup_discriminator=False,
    loss_balancing_steps=2,
)
"""PF-MAG with all options of docs/guides/pf-mag.md."""


@dataclass(frozen=True)
class Difference:
    """Relative differences between a backend and one process after `STEPS` steps."""

    weights: float
    """Norm of the difference of all weights over the norm of one process's weights."""
    metrics: float
    """Largest relative difference of a loss or norm at any step; discrete metrics are left out."""


@dataclass(frozen=True)
class ParityRun:
    """What `train` computed."""

    weights: Tensor
    """All weights, flat, in double precision."""
    metrics: dict[str, float]
    """Means over ranks by "STEP/NAME"."""
    discrete: frozenset[str]
    """The objective's discrete metrics."""


def tiny_config(
    objective: Objective, engine: EngineConfig, *, r1: float = 0.0, batch_size: int = 16, stabilised: bool = False
) -> RunConfig:
    """A config with steps of milliseconds. PF-MAG has one warm-up step; fine-tuning has mixup, stochastic depth and
    layer decay.
    """
    pf_mag = replace(ALL_STABILISERS if stabilised else PfMagConfig(warmup_steps=1, loss_balancing_steps=2), r1=r1)
    finetune = objective == "finetune"
    seen = AugmentConfig(crop_scale=(0.6, 1.0), erasing=0.5) if stabilised else no_augment()
    return RunConfig(
        objective=objective,
        batch_size=batch_size,
        data=DataConfig(size=32),
        augment=AugmentConfig(mixup=0.8, cutmix=1.0) if finetune else AugmentConfig(),
        model=replace(MODEL, drop_path=0.3 if finetune else 0.0, stem_channels=(8, 8, 16) if stabilised else ()),
        classifier=ClassifierConfig(label_smoothing=0.1 if finetune else 0.0),
        discriminator_augment=seen,
        optim=OptimConfig(
            lr=1e-3,
            schedule="constant",
            clip_norm=0.5,
            layer_decay=0.65 if finetune else 1.0,
            encoder_lr_factor=0.5 if stabilised else 1.0,
        ),
        discriminator_optim=OptimConfig(
            algorithm="adam", lr=1e-4, betas=(0.5, 0.999), weight_decay=0.0, schedule="constant", clip_norm=0.5
        ),
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
    """Train with `backend` and the given engine options on this world, and in fp32 with plain torch in one process on
    the same global batches. A collective; all ranks return the same difference.
    """
    plain, tested = (
        tiny_config(objective, options, r1=r1, batch_size=batch_size, stabilised=stabilised)
        for options in (EngineConfig(device=engine.device, precision="fp32"), engine)
    )
    require_fitting_micro_batch(tested, world.size)
    reference, run = _train_reference(plain, single_process(world)), train(tested, backend, world)
    weights = float((run.weights - reference.weights).norm() / reference.weights.norm())
    metrics = relative_difference(run.metrics, reference.metrics, run.discrete)
    worst = torch.tensor([weights, metrics], dtype=torch.float64)
    if world.size > 1:
        worst = worst.to(world.device)
        torch.distributed.all_reduce(worst, torch.distributed.ReduceOp.MAX)
    return Difference(*worst.tolist())


def relative_difference(
    metrics: Mapping[str, float], reference: Mapping[str, float], discrete: Set[str] = frozenset()
) -> float:
    """Largest relative difference of the metrics "STEP/NAME" whose names are not discrete."""
    assert metrics.keys() == reference.keys()
    continuous = [key for key in reference if key.split("/")[1] not in discrete]
    return max(abs(metrics[key] - reference[key]) / max(abs(reference[key]), SMALLEST_METRIC) for key in continuous)


def single_process(world: World) -> World:
    """A world of this process only, on the same device."""
    return World(0, 1, world.device)


@functools.lru_cache(maxsize=8)
def _train_reference(config: RunConfig, world: World) -> ParityRun:
    """Plain torch in one process; cached, because all backends are compared with it."""
    return train(config, "ddp", world)


def train(config: RunConfig, backend: str, world: World) -> ParityRun:
    """Train `STEPS` steps on random images and labels that depend on the step only. A collective."""
    engines = build_engines(config, backend, factory.build(config, CLASSES), world)
    objective = build_objective(config, engines, CLASS_NAMES, world)
    log: dict[str, float] = {}
    for step in range(STEPS):
        random = generator(0, "parity", step)
        shape = (config.batch_size, 3, config.data.size, config.data.size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
        labels = torch.randint(0, CLASSES, (config.batch_size,), generator=random)
        rows = world.slice_of(config.batch_size)
        set_learning_rates(engines, config, step, STEPS, {})
        metrics = objective.step(make_micro_batches(RawBatch(images[rows], labels[rows]), config, step, world), step)
        names = sorted(metrics)
        values = world.mean(torch.stack([metrics[name].detach().float() for name in names])).tolist()
        log |= {f"{step}/{name}": value for name, value in zip(names, values, strict=True)}
    states = {name: zero_key_biases(engine.model_state()) for name, engine in engines.items()}
    flat = [states[name][key].flatten().double().cpu() for name in sorted(states) for key in sorted(states[name])]
    return ParityRun(torch.cat(flat), log, objective.discrete_metrics)


def zero_key_biases(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a state dict with the key biases of attention layers set to zero.

    The softmax cancels them: their gradient is pure rounding, which Adam normalises to steps in random directions.
    They do not change a net's output.
    """
    zeroed = {}
    for name, value in weights.items():
        if name.endswith("qkv.bias"):
            query, key, rest = value.chunk(3)
            value = torch.cat([query, torch.zeros_like(key), rest])
        elif name.endswith("key_value.bias"):
            key, rest = value.chunk(2)
            value = torch.cat([torch.zeros_like(key), rest])
        zeroed[name] = value
    return zeroed
