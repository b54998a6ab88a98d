"""Project classifier features to two dimensions with t-SNE and UMAP, and measure class separation in all dimensions.

Legend: n samples, d features.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfcluster.distributed.process_group import derive_seed, generator
from pfcluster.system.extras import install_command

MAX_POINTS = 2000
"""Samples plotted at most; larger splits are subsampled."""
MIN_POINTS = 10
"""Below this number of samples t-SNE and UMAP are not meaningful."""
UMAP_MISSING = f"UMAP is not shown: it needs the package umap-learn ({install_command('umap')})."


def has_umap() -> bool:
    """Whether umap-learn is installed."""
    return find_spec("umap") is not None


def draw_points(count: int, seed: int) -> Tensor:
    """Random subset of `count` samples, in ascending order: long (n,), n at most `MAX_POINTS`."""
    return torch.randperm(count, generator=generator(seed, "embedding"))[:MAX_POINTS].sort().values


def tsne(features: Tensor, seed: int) -> NDArray[np.float32]:
    """n d -> n 2 (van der Maaten and Hinton 2008; scikit-learn, initialised with PCA)."""
    from sklearn.manifold import TSNE

    values = features.numpy()
    perplexity = min(30.0, (len(values) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=_numpy_seed(seed, "t-sne")).fit_transform(values)
    return np.asarray(points, np.float32)


def umap(features: Tensor, seed: int) -> NDArray[np.float32]:
    """n d -> n 2 (McInnes et al. 2018). Raises ImportError without umap-learn."""
    from umap import UMAP

    values = features.numpy()
    neighbours = min(15, len(values) - 1)
    points = UMAP(n_neighbors=neighbours, random_state=_numpy_seed(seed, "umap"), n_jobs=1).fit_transform(values)
    return np.asarray(points, np.float32)


def silhouette(features: Tensor, labels: Tensor) -> float | None:
    """Mean silhouette of the classes (Rousseeuw 1987), in -1..1, by Euclidean distance between features n d with
    labels n. None with fewer than two classes, or with as many classes as samples.
    """
    from sklearn.metrics import silhouette_score

    if not 1 < len(labels.unique()) < len(labels):
        return None
    return float(silhouette_score(features.numpy(), labels.numpy()))


def _numpy_seed(seed: int, name: str) -> int:
    """A derived seed in the 32-bit range of numpy's legacy generators."""
    return derive_seed(seed, name) % 2**32
