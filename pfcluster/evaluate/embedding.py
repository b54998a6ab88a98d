"""Classifiers' features in the plane, t-SNE and UMAP, and how far the classes part in all their dimensions.

Legend: n samples, d features.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfcluster.distributed.process_group import derive_seed, generator

POINTS = 2000
"""Faces that are drawn from a larger split."""
LEAST = 10
"""Fewer points have no neighbourhoods to show."""
WITHOUT_UMAP = "UMAP is not shown: it needs the package umap-learn (pip install -e '.[umap]')."


def has_umap() -> bool:
    """Whether umap-learn is installed."""
    return find_spec("umap") is not None


def draw_points(count: int, seed: int) -> Tensor:
    """Which of `count` samples are shown, in ascending order: long (n,), n at most `POINTS`."""
    return torch.randperm(count, generator=generator(seed, "embedding"))[:POINTS].sort().values


def tsne(features: Tensor, seed: int) -> NDArray[np.float32]:
    """n d -> n 2 (van der Maaten and Hinton 2008; scikit-learn, started from the principal components)."""
    from sklearn.manifold import TSNE

    points = features.numpy()
    perplexity = min(30.0, (len(points) - 1) / 3)
    found = TSNE(perplexity=perplexity, init="pca", random_state=_short(seed, "t-sne")).fit_transform(points)
    return np.asarray(found, np.float32)


def umap(features: Tensor, seed: int) -> NDArray[np.float32]:
    """n d -> n 2 (McInnes et al. 2018). Raises ImportError without umap-learn."""
    from umap import UMAP

    points = features.numpy()
    neighbours = min(15, len(points) - 1)
    found = UMAP(n_neighbors=neighbours, random_state=_short(seed, "umap"), n_jobs=1).fit_transform(points)
    return np.asarray(found, np.float32)


def silhouette(features: Tensor, labels: Tensor) -> float | None:
    """Mean silhouette of the classes (Rousseeuw 1987), in -1..1, by Euclidean distance between features n d, of labels
    n. None where there are not two classes, or as many classes as samples.
    """
    from sklearn.metrics import silhouette_score

    if not 1 < len(labels.unique()) < len(labels):
        return None
    return float(silhouette_score(features.numpy(), labels.numpy()))


def _short(seed: int, name: str) -> int:
    """A seed that numpy's old generators take."""
    return derive_seed(seed, name) % 2**32
