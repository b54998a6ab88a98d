"""Fréchet distance between sets of images: FID where the features are InceptionV3's (Heusel et al. 2017).

A distance between *sets*: it knows nothing of which face became which, and copying the input scores 0. Figures of
different features, or of different numbers of images, cannot be compared.

Legend: n images, f features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _Given(nn.Module):
    """Features that are there already."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(features: Tensor, reference: Tensor) -> float | None:
    """n f and m f -> the distance between normal distributions of their means and covariances; None where one of them
    has fewer than two images.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    if min(len(features), len(reference)) < 2:
        return None
    metric = FrechetInceptionDistance(_Given(features.shape[1]), sync_on_compute=False).set_dtype(torch.float64)
    metric.update(reference.cpu().double(), real=True)
    metric.update(features.cpu().double(), real=False)
    return max(float(metric.compute()), 0.0)  # rounding may leave a distance of 0 slightly below it
