"""What the training loop asks of an objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pfcluster.data.batch import Batch
from pfcluster.engine.base import Engine

Metrics = dict[str, Tensor]


class Objective(Protocol):
    """One training objective with the engines that it drives. Scalars it returns are this rank's, without history."""

    engines: dict[str, Engine]
    discrete_metrics: frozenset[str]
    """Metrics that count images or values, as fractions: rounding can change them by a whole image."""

    def step(self, batches: Sequence[Batch], step: int) -> Metrics:
        """One training step on the micro-batches of one batch."""

    def state(self) -> dict[str, Any]:
        """What else must be saved to go on exactly: JSON values."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""


def mean(metrics: Sequence[Metrics]) -> Metrics:
    """The mean over micro-batches, name by name."""
    return {name: torch.stack([each[name].detach() for each in metrics]).mean() for name in metrics[0]}
