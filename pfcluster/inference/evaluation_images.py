"""Images on which an exported model is checked: of the run's own data where they can be read, else random ones.

Legend: b images, s side of a stored image, k classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfcluster.data.dataset import open_dataset
from pfcluster.data.manifest import ShardError
from pfcluster.data.types import DataError, RawBatch, Split
from pfcluster.evaluate.classification import confusion_matrix, scores
from pfcluster.inference.model_info import ModelInfo
from pfcluster.inference.runtime_info import Int8Figures
from pfcluster.runs.folder import enclosing_run, read_config

N_CHECKED = 32
BATCH = 32
"""As `pfcluster predict` by default: dynamic quantisation takes one scale of the activations of a batch."""
Classify = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Stored images b s s 3 -> logits b k."""


@dataclass(frozen=True)
class EvaluationImages:
    """Images to check with, and the labelled split that they are of."""

    crops: NDArray[np.uint8]
    """b s s 3."""
    origin: str
    split: Split | None
    name: Literal["test", "validation"]
    reason: str | None
    """Why there is no split."""

    def compare(self, float32: Classify, int8: Classify) -> tuple[Int8Figures | None, str | None]:
        """Accuracy of two classifiers over the split, or the reason why there is none."""
        if self.split is None:
            return None, self.reason
        truth: list[Tensor] = []  # of the images that are read: a damaged one is replaced by the next
        answers: tuple[list[Tensor], list[Tensor]] = ([], [])
        for indices in torch.arange(len(self.split)).split(BATCH):
            batch = self.split.batch(indices)
            truth.append(batch.labels)
            crops = _crops(batch)
            for classify, logits in zip((float32, int8), answers, strict=True):
                logits.append(torch.from_numpy(classify(crops)))
        labels, first, second = torch.cat(truth), *(torch.cat(logits) for logits in answers)
        accuracies = [
            scores(confusion_matrix(logits, labels), self.split.classes)["accuracy"] for logits in (first, second)
        ]
        figures = Int8Figures(
            split=self.name,
            n=int((labels != -1).sum()),
            accuracy_float32=accuracies[0],
            accuracy_int8=accuracies[1],
            agreement=(first.argmax(1) == second.argmax(1)).double().mean().item(),
        )
        return figures, None


def evaluation_images(run: Path, info: ModelInfo, shards: str | None = None) -> EvaluationImages:
    """Images of the run's test split; of its validation split if it has no test split or does not use it. `shards`:
    where the run's shards are now.
    """
    config = read_config(enclosing_run(run) or run)
    data = (
        config.data
        if config.data.shards is None
        else dataclasses.replace(config.data, shards=shards or config.data.shards)
    )
    name: Literal["test", "validation"] = "test"
    try:
        dataset = open_dataset(data, config.seed)
        split = dataset.test
        if split is None or config.evaluate.final_split != "test":
            split, name = dataset.validation, "validation"
        reason = None if split.classes == info.classes else "the classes of the run's data are not those of the run"
        if reason is None and len(split):
            crops = _crops(split.batch(torch.arange(min(N_CHECKED, len(split)))))
            return EvaluationImages(crops, f"{len(crops)} images of the {name} split", split, name, None)
        reason = reason or f"the {name} split is empty"
    except (DataError, ShardError, OSError) as error:
        reason = f"the run's data cannot be read: {error}"
    return random_images(info, reason)


def random_images(
    info: ModelInfo, reason: str = "the source is a model, and only runs record their data"
) -> EvaluationImages:
    """Noise at the size of the model's crops. `reason`: why there is no split."""
    side = info.preprocessing.crop_size
    noise = np.random.default_rng(0).integers(0, 256, (N_CHECKED, side, side, 3), np.uint8)
    return EvaluationImages(noise, f"{N_CHECKED} random images", None, "test", reason)


def _crops(batch: RawBatch) -> NDArray[np.uint8]:
    return batch.images.permute(0, 2, 3, 1).contiguous().numpy()
