"""The interface between the pipeline, which reads photos and writes tables, and a runtime that computes the network.

Every runtime takes images as stored in a shard and does resizing and normalisation itself. This module, and the modules
that read, track and write, do not import torch.

Legend: b images, s side of a stored image (`Preprocessing.crop_size`), z side of the network's input, k classes, d
features.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pfcluster.inference.model_info import ModelInfo


class Predictor(Protocol):
    """A model in some runtime."""

    @property
    def info(self) -> ModelInfo:
        """Classes, sizes and preprocessing."""

    def logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Stored images b s s 3, RGB -> b k."""

    def features(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Stored images b s s 3, RGB -> input of the classifier's last layer, b d."""

    def poker_faces(self, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Stored images b s s 3, RGB -> poker faces b z z 3. Raises NoGeneratorError."""


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of logits b k, in double precision; NaN for a row whose logits are not all finite."""
    logits = np.where(np.isfinite(logits).all(axis=1, keepdims=True), logits, np.nan)
    values = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = values / values.sum(axis=1, keepdims=True)
    return probabilities
