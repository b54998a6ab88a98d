"""The interface of training objectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pfcluster.data.batch import Batch
from pfcluster.engine.base import Engine

Metrics = dict[str, Tensor]


class Objective(Protocol):
    """A training objective and the engines that it trains. Its metrics are scalars of this rank."""

    engines: dict[str, Engine]
    discrete_metrics: frozenset[str]
    """Metrics that are fractions of images or values: rounding can change them by whole images."""

    def step(self, batches: Sequence[Batch], step: int) -> Metrics:
        """Train on the micro-batches of one batch."""

    def state(self) -> dict[str, Any]:
        """State apart from the engines' that an exact resume needs, as JSON values."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""


def mean(metrics: Sequence[Metrics]) -> Metrics:
    """Mean of each metric over micro-batches, detached."""
    return {name: torch.stack([each[name].detach() for each in metrics]).mean() for name in metrics[0]}
