"""Optimizers, and learning rates as functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from pfcluster.config import OptimConfig


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over the parameters that train; vectors (biases, norms) and single tokens have no weight decay."""
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    matrices = [parameter for name, parameter in trained if parameter.ndim > 1 and not name.endswith("_token")]
    others = [parameter for name, parameter in trained if parameter.ndim <= 1 or name.endswith("_token")]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    algorithm = torch.optim.AdamW if config.algorithm == "adamw" else torch.optim.Adam
    return algorithm([group for group in groups if group["params"]], lr=config.lr, betas=config.betas, fused=True)


@dataclass(frozen=True)
class Plateau:
    """What the plateau schedule remembers: the best validation score, evaluations since, and its factor so far."""

    best: float = -math.inf
    waited: int = 0
    factor: float = 1.0

    def after(self, score: float, config: OptimConfig) -> Plateau:
        """The state after one more evaluation (higher scores are better)."""
        if score > self.best:
            return replace(self, best=score, waited=0)
        if self.waited + 1 < config.plateau_patience:
            return replace(self, waited=self.waited + 1)
        return replace(self, waited=0, factor=self.factor / config.plateau_divide)


def learning_rate(config: OptimConfig, step: int, total_steps: int, plateau: Plateau) -> float:
    """Rate of the given step, 0-based: linear warm-up to `lr`, then the schedule. A cosine ends at zero."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "plateau":
        return config.lr * plateau.factor
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
