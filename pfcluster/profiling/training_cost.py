"""Budget of a whole run: steps, images, epochs and training FLOPs, from its config and the size of its data."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch

from pfcluster.config import CheckpointConfig, DataConfig, EvaluateConfig, OptimConfig, RunConfig
from pfcluster.models.from_runs import build_identity_net
from pfcluster.profiling.flops import profile
from pfcluster.training.schedule import total_steps


@dataclass(frozen=True)
class TrainingCost:
    """Budget of one or several runs. A multiply-add is 2 FLOPs."""

    steps: int
    images: int
    epochs: float
    """Passes over the training split."""
    flops: float
    """Forward and backward passes of all training steps, without evaluations and diagnostics, and without what saves
    memory by computing twice (activation checkpointing, accumulation in PF-MAG)."""

    def __add__(self, other: TrainingCost) -> TrainingCost:
        return TrainingCost(
            self.steps + other.steps,
            self.images + other.images,
            self.epochs + other.epochs,
            self.flops + other.flops,
        )


def training_cost(config: RunConfig, classes: int, samples: int, steps: int | None = None) -> TrainingCost:
    """The budget of a run on `samples` training images, for all its steps or the first `steps` of them. Nothing is
    computed or loaded.
    """
    planned = total_steps(config, samples)
    steps = planned if steps is None else steps
    images = steps * config.batch_size
    complete = steps == planned == total_steps(replace(config, max_steps=None), samples)
    epochs = config.epochs if complete else images / samples  # steps are rounded
    return TrainingCost(steps, images, epochs, config.batch_size * _flops_of_steps(config, classes, steps))


def _flops_of_steps(config: RunConfig, classes: int, steps: int) -> float:
    """FLOPs of a run's first steps for one image of each batch."""
    warmup = min(steps, config.pf_mag.warmup_steps) if config.objective == "pf_mag" else 0
    flops = 0.0
    for count, is_warmup in ((warmup, True), (steps - warmup, False)):
        if count:
            flops += count * _flops_per_image(_counted(config), classes, warmup=is_warmup)
    return flops


def _counted(config: RunConfig) -> RunConfig:
    """The config with what the count does not depend on set to defaults, so that runs share their counts."""
    return replace(
        config,
        name="run",
        seed=0,
        epochs=1.0,
        max_steps=None,
        data=DataConfig(size=config.data.size),
        optim=OptimConfig(),
        engine=replace(config.engine, activation_checkpointing=False, grad_accumulation_steps=1),
        evaluate=EvaluateConfig(),
        checkpoint=CheckpointConfig(),
    )


def step_flops(config: RunConfig, classes: int, warmup: bool) -> float:
    """The model's FLOPs in a step for one of its images, of PF-MAG's warm-up or of its adversarial part; what is
    computed a second time to save memory does not count.
    """
    return _flops_per_image(_counted(config), classes, warmup=warmup)


@functools.cache
def _flops_per_image(config: RunConfig, classes: int, *, warmup: bool) -> float:
    with torch.device("meta"):
        identity_net = build_identity_net(config)
    return profile(config, classes, identity_net=identity_net, warmup=warmup).flops


def with_epochs(config: RunConfig, name: str, epochs: float) -> RunConfig:
    """The config under another name, trained for some epochs with its schedule over all of them. Of less than one epoch
    six digits are kept: with `max_steps` the few steps of a run may be a small part of one.
    """
    rounded = round(epochs, 3) if epochs >= 1 else float(f"{epochs:.6g}")
    return replace(config, name=name, epochs=rounded, max_steps=None)


def equal_epochs(config: RunConfig, budget: TrainingCost, name: str) -> RunConfig:
    """The config, trained for as many epochs as a budget has."""
    return with_epochs(config, name, budget.epochs)


def equal_flops(config: RunConfig, budget: TrainingCost, classes: int, samples: int, name: str) -> RunConfig:
    """The config of a classifier, trained for as many epochs as a budget's FLOPs suffice for."""
    per_image = _flops_of_steps(config, classes, 1)
    return with_epochs(config, name, budget.flops / (per_image * samples))
