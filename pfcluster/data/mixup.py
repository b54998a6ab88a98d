"""Mixup and cutmix within pairs of neighbouring samples, so that the result does not depend on the number of ranks.

Legend: b images, h w pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pfcluster.config import AugmentConfig


@dataclass(frozen=True)
class MixParams:
    """How all pairs of a step are mixed."""

    weight: float
    """Weight of the image itself, 0..1; the partner has 1 - weight. A factor of each pixel, or a share of the area."""
    box: tuple[int, int, int, int] | None
    """Cutmix: top, bottom, left, right of the rectangle taken from the partner. None: mixup."""


def draw_mix_params(config: AugmentConfig, size: int, generator: torch.Generator) -> MixParams:
    """Draw one weight from Beta(α, α) for a whole step, as timm's Mixup in batch mode. Where both are enabled, mixup
    and cutmix have probability 1/2 each.

    Random draws cover the global batch, independent of rank count.
    """
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    cutmix = config.cutmix > 0 and (config.mixup == 0 or rng.random() < 0.5)
    alpha = config.cutmix if cutmix else config.mixup
    weight = float(rng.beta(alpha, alpha))
    if not cutmix:
        return MixParams(weight, None)
    side = math.sqrt(1 - weight) * size
    row, column = (rng.random(2) * size).tolist()
    box = [
        round(min(max(edge, 0.0), size))
        for edge in (row - side / 2, row + side / 2, column - side / 2, column + side / 2)
    ]
    top, bottom, left, right = box
    return MixParams(1 - (bottom - top) * (right - left) / size**2, (top, bottom, left, right))


def swap_pairs(values: Tensor) -> Tensor:
    """Each row's partner: swaps rows 2 j and 2 j + 1 of b rows; b must be even."""
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def mix_pairs(images: Tensor, params: MixParams) -> Tensor:
    """Mix each image with its partner: b 3 h w -> b 3 h w."""
    partners = swap_pairs(images)
    if params.box is None:
        return images * params.weight + partners * (1 - params.weight)
    top, bottom, left, right = params.box
    images = images.clone()
    images[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
    return images
