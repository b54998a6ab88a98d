"""Weights of PF-ViT's loss terms over time: warm-up and automatic balancing (docs/concepts/method.md, Losses)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pfcluster.config import LossWeights, PfMagConfig
from pfcluster.distributed.process_group import World
from pfcluster.training.objective import Metrics

TERMS = ("cls", "adv", "rec", "ort", "confusion", "anchor", "swap")
SMALLEST_MAGNITUDE = 1e-4
MAGNITUDE_OF = {"swap": "rec"}
"""Terms that use another term's magnitude. The swap cycle is a squared error of pixels, too, and 0 in steps without
neutral images: its own mean would depend on how many these first steps had.
"""


@dataclass
class LossBalancer:
    """Weights λ of the loss terms: fixed, or relative to each term's mean magnitude.

    Automatic balancing divides each term by its mean magnitude over the first `steps` steps after the warm-up, over
    all ranks; during those steps by the mean so far. Afterwards the divisors are constant.
    """

    weights: LossWeights
    automatic: bool
    steps: int
    warmup_rec: float
    warmup_cls: float
    world: World
    steps_measured: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """Magnitude of each term, summed over the measured steps."""

    @classmethod
    def from_config(cls, config: PfMagConfig, world: World) -> LossBalancer:
        """The balancer that a config specifies."""
        automatic = config.loss_balancing == "auto"
        return cls(config.weights, automatic, config.loss_balancing_steps, config.warmup_rec, config.warmup_cls, world)

    @property
    def measuring(self) -> bool:
        """Whether `observe` must be called in the next step after the warm-up."""
        return self.automatic and self.steps_measured < self.steps

    def observe(self, terms: Metrics) -> None:
        """Add the magnitudes of a step's terms, as means over its micro-batches. A collective."""
        assert self.measuring
        names = [name for name in TERMS if name in terms]
        values = self.world.mean(torch.stack([terms[name].detach().double().abs() for name in names])).tolist()
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in zip(names, values, strict=True)}
        self.steps_measured += 1

    def weight(self, name: str) -> float:
        """λ of a term."""
        weight = float(getattr(self.weights, name))
        if not self.automatic:
            return weight
        magnitude = self.sums[MAGNITUDE_OF.get(name, name)] / self.steps_measured
        return weight / max(magnitude, SMALLEST_MAGNITUDE)

    def total(self, terms: Metrics, *, warmup: bool) -> Tensor:
        """L_PFViT = Σ λ_i L_i; in the warm-up λ_rec L_rec + λ_cls L_cls."""
        if warmup:
            return self.warmup_rec * terms["rec"] + self.warmup_cls * terms["cls"]
        return torch.stack([self.weight(name) * terms[name] for name in TERMS if name in terms]).sum()

    def state(self) -> dict[str, Any]:
        """JSON values for a checkpoint."""
        return {"balance_seen": self.steps_measured, "balance_sums": self.sums}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.steps_measured, self.sums = state["balance_seen"], dict(state["balance_sums"])
