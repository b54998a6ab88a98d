"""Masked-autoencoder pre-training: docs/concepts/method.md, section 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pfcluster.data.batch import Batch
from pfcluster.engine.base import Engine
from pfcluster.models import losses
from pfcluster.models.mae import hidden_patches
from pfcluster.training.objective import Metrics, mean


def mae_step(batches: Sequence[Batch], model: Engine, *, kept: int, patch: int, norm_pixels: bool) -> Metrics:
    """Predict the hidden patches. images b 3 h w, order b n with the `kept` visible patches first."""
    metrics = []
    for index, batch in enumerate(batches):
        assert batch.order is not None
        prediction = model(batch.images, batch.order, sync=index == len(batches) - 1)
        target = hidden_patches(batch.images, batch.order, kept, patch)
        loss = losses.mae(prediction, target, norm_pixels=norm_pixels)
        model.backward(loss / len(batches))
        metrics.append({"loss": loss})
    return {**mean(metrics), "grad_norm": model.step()}


class MaeObjective:
    """MAE pre-training with one engine."""

    def __init__(self, model: Engine, *, kept: int, patch: int, norm_pixels: bool) -> None:
        self.engines = {"model": model}
        self.discrete_metrics: frozenset[str] = frozenset()
        self.options: dict[str, Any] = {"kept": kept, "patch": patch, "norm_pixels": norm_pixels}

    def step(self, batches: Sequence[Batch], step: int) -> Metrics:
        """Train on micro-batches: images b 3 h w, order b n; -> scalars of this rank. A collective."""
        return mae_step(batches, self.engines["model"], **self.options)

    def state(self) -> dict[str, Any]:
        """Empty: an exact resume needs the engine alone. Not a collective."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Accept the empty state. Not a collective."""
        assert not state
