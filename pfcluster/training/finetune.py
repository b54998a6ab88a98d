"""Supervised fine-tuning of a classifier: docs/concepts/method.md, section 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pfcluster.data.batch import Batch
from pfcluster.engine.base import Engine
from pfcluster.models import losses
from pfcluster.training.objective import Metrics, mean


def finetune_step(
    batches: Sequence[Batch], model: Engine, *, class_weights: Tensor | None, label_smoothing: float
) -> Metrics:
    """Cross-entropy of the class token's logits. images b 3 h w, labels b, class_weights k. For mixed images
    train_accuracy uses the label with the larger share.
    """
    metrics = []
    for index, batch in enumerate(batches):
        scales = () if batch.drop_path_scales is None else (batch.drop_path_scales,)
        logits = model(batch.images, *scales, sync=index == len(batches) - 1)
        loss = losses.classification(logits, batch.labels, class_weights, label_smoothing, batch.mix_partners)
        model.backward(loss / len(batches))
        metrics.append({"loss": loss, "train_accuracy": (logits.argmax(1) == batch.main_labels).float().mean()})
    return {**mean(metrics), "grad_norm": model.step()}


class FinetuneObjective:
    """Fine-tuning of a classifier with one engine."""

    def __init__(self, model: Engine, *, class_weights: Tensor | None, label_smoothing: float) -> None:
        self.engines = {"model": model}
        self.discrete_metrics = frozenset({"train_accuracy"})
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing

    def step(self, batches: Sequence[Batch], step: int) -> Metrics:
        return finetune_step(
            batches,
            self.engines["model"],
            class_weights=self.class_weights,
            label_smoothing=self.label_smoothing,
        )

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        assert not state
