"""Mixup and cutmix: images of a batch in pairs, neighbour with neighbour, so that the result depends on no layout.

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
class Mixing:
    """How a step's pairs are mixed."""

    share: float
    """Of the image itself, the rest is its partner's: of each pixel, or of the area."""
    box: tuple[int, int, int, int] | None
    """Top, bottom, left, right of the rectangle that is the partner's; None blends."""


def draw_mixing(config: AugmentConfig, size: int, generator: torch.Generator) -> Mixing:
    """One draw for a whole step: a share from Beta(α, α), blended or as a rectangle (as timm's Mixup does by batch)."""
    chance = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    pastes = config.cutmix > 0 and (config.mixup == 0 or chance.random() < 0.5)
    alpha = config.cutmix if pastes else config.mixup
    share = float(chance.beta(alpha, alpha))
    if not pastes:
        return Mixing(share, None)
    side = math.sqrt(1 - share) * size
    row, column = (chance.random(2) * size).tolist()
    box = [
        round(min(max(edge, 0.0), size))
        for edge in (row - side / 2, row + side / 2, column - side / 2, column + side / 2)
    ]
    top, bottom, left, right = box
    return Mixing(1 - (bottom - top) * (right - left) / size**2, (top, bottom, left, right))


def neighbours(values: Tensor) -> Tensor:
    """Each row's partner: rows 2 j and 2 j + 1 change places. b must be even."""
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def mix(images: Tensor, mixing: Mixing) -> Tensor:
    """b 3 h w -> b 3 h w, each with its partner."""
    others = neighbours(images)
    if mixing.box is None:
        return images * mixing.share + others * (1 - mixing.share)
    top, bottom, left, right = mixing.box
    images = images.clone()
    images[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
    return images
