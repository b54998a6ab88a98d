"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pfcluster.config import OptimConfig, RunConfig
from pfcluster.engine.base import Engine

BLOCK, EMBEDDING = re.compile(r"encoder\.blocks\.(\d+)\."), re.compile(r"encoder\.(patch_embed|cls_token)")


def optimizers_of(config: RunConfig) -> dict[str, OptimConfig]:
    """The optimizer options of each module of a run, by the module's name."""
    return {"model": config.optim, "discriminator": config.discriminator_optim}


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Adam or AdamW on the trainable parameters, without weight decay for vectors (biases, norms), single tokens and
    position biases.

    Each parameter group has the factor `lr_scale` of its learning rate, which `set_rates` applies.
    """
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    scales = layer_scales([name for name, _ in trained], config.layer_decay)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in trained:
        decays = parameter.ndim > 1 and not name.endswith("_token") and ".position_bias." not in name
        factor = config.encoder_lr_factor if name.startswith("encoder.") else 1.0
        groups.setdefault((scales[name] * factor, decays), []).append(parameter)
    order = sorted(groups, key=lambda key: (key[0], not key[1]))
    algorithm = torch.optim.AdamW if config.algorithm == "adamw" else torch.optim.Adam
    return algorithm(
        [
            {
                "params": groups[scale, decays],
                "weight_decay": config.weight_decay if decays else 0.0,
                "lr_scale": scale,
                "lr": config.lr * scale,
            }
            for scale, decays in order
        ],
        lr=config.lr,
        betas=config.betas,
        fused=True,
    )


def layer_scales(names: Sequence[str], decay: float) -> dict[str, float]:
    """Learning-rate factor of each parameter: decay^(l + 1 - i) with i = 0 for the embedding, 1 ... l for the encoder's
    blocks and l + 1 for later layers (He et al. 2021, counted as in facebookresearch/mae).
    """
    blocks = {name: int(match.group(1)) for name in names if (match := BLOCK.search(name))}
    last = max(blocks.values(), default=-1) + 2

    def depth(name: str) -> int:
        if name in blocks:
            return blocks[name] + 1
        return 0 if EMBEDDING.search(name) else last

    return {name: decay ** (last - depth(name)) for name in names}


def set_rates(groups: Iterable[dict[str, Any]], lr: float) -> None:
    """Set the learning rate of each parameter group, scaled by its `lr_scale`."""
    for group in groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def set_learning_rates(
    engines: Mapping[str, Engine], config: RunConfig, step: int, total_steps: int, plateaus: Mapping[str, Plateau]
) -> None:
    """Give every engine the learning rate of a 0-based step. `plateaus`: the plateau schedules by engine, if begun. The
    schedule of a discriminator that is not trained during the warm-up begins after it.
    """
    optimizers = optimizers_of(config)
    for name, engine in engines.items():
        plateau = plateaus.get(name, Plateau())
        if name == "model" and config.objective == "pf_mag" and config.pf_mag.warmup_lr is not None:
            engine.set_lr(_rate_around_warmup(config, config.pf_mag.warmup_lr, step, total_steps, plateau))
        else:
            waits = name == "discriminator" and not config.pf_mag.warmup_discriminator
            start = config.pf_mag.warmup_steps if waits else 0
            engine.set_lr(learning_rate(optimizers[name], max(0, step - start), total_steps - start, plateau))


def _rate_around_warmup(config: RunConfig, warmup_lr: float, step: int, total_steps: int, plateau: Plateau) -> float:
    """PF-ViT's learning rate with `pf_mag.warmup_lr`: constant in the warm-up, then the schedule of `optim`."""
    warmup_steps = config.pf_mag.warmup_steps
    if step < warmup_steps:
        return learning_rate(replace(config.optim, lr=warmup_lr, schedule="constant"), step, warmup_steps, plateau)
    after = replace(config.optim, warmup_steps=0) if warmup_steps else config.optim
    return learning_rate(after, step - warmup_steps, total_steps - warmup_steps, plateau)


@dataclass(frozen=True)
class Plateau:
    """State of the plateau schedule: the best validation score, evaluations since then, and the current factor."""

    best: float = -math.inf
    waited: int = 0
    factor: float = 1.0

    def after(self, score: float, config: OptimConfig) -> Plateau:
        """The state after another evaluation (higher scores are better)."""
        if score > self.best:
            return replace(self, best=score, waited=0)
        if self.waited + 1 < config.plateau_patience:
            return replace(self, waited=self.waited + 1)
        return replace(self, waited=0, factor=self.factor * config.plateau_factor)


def learning_rate(config: OptimConfig, step: int, total_steps: int, plateau: Plateau) -> float:
    """Learning rate of a 0-based step: linear warm-up to `lr`, then the schedule. The cosine ends at zero."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "plateau":
        return config.lr * plateau.factor
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
