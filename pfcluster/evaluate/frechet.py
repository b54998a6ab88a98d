"""Fréchet distance between two sets of images; FID if the features are InceptionV3's (Heusel et al. 2017).

The distance compares sets, not pairs: it ignores which output belongs to which input, and copies of the reference score
0. Values from different feature nets or different numbers of images are not comparable.

Legend: n m images, f features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class _PrecomputedFeatures(nn.Module):
    """Identity in place of torchmetrics' feature net."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(features: Tensor, reference: Tensor) -> float | None:
    """n f and m f -> Fréchet distance between the normal distributions with their means and covariances; None if either
    set has fewer than two images.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    if min(len(features), len(reference)) < 2:
        return None
    net = _PrecomputedFeatures(features.shape[1])
    metric = FrechetInceptionDistance(net, sync_on_compute=False).set_dtype(torch.float64)
    metric.update(reference.cpu().double(), real=True)
    metric.update(features.cpu().double(), real=False)
    return max(float(metric.compute()), 0.0)  # rounding may give slightly negative values for equal sets
