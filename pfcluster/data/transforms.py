"""Batched image augmentation on the training device, with parameters drawn on the CPU.

Legend: b images, h w pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pfcluster.config import AugmentConfig


def to_float(images: Tensor) -> Tensor:
    """uint8 b 3 h w -> float in -1..1."""
    return images.float().div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """Float in -1..1 (clipped) -> uint8, b 3 h w."""
    return images.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def resize(images: Tensor, size: int) -> Tensor:
    """Resize with antialiasing: uint8 or float b 3 h w -> float b 3 size size, same value range."""
    images = images.to(torch.float32, memory_format=torch.contiguous_format)
    if images.shape[2:] == (size, size):
        return images
    return functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def network_input(images: Tensor, size: int) -> Tensor:
    """What a network gets of stored images, without augmentation: uint8 b 3 h w -> float b 3 size size in -1..1."""
    return resize(images, size).div_(127.5).sub_(1.0)


N_DRAWS = 14
"""Random numbers that an image's augmentation takes."""


@dataclass(frozen=True)
class AugmentParams:
    """Augmentation parameters of each image of a batch."""

    affine: Tensor
    """b 2 3: output coordinates to input coordinates, both in -1..1 (crop, flip and rotation combined)."""
    colour: Tensor
    """b 3: brightness, contrast and saturation factors."""
    erased: Tensor
    """b 4: left, top, right, bottom in 0..1 of a rectangle set to grey; empty if left = right."""

    def __getitem__(self, samples: slice) -> AugmentParams:
        return AugmentParams(self.affine[samples], self.colour[samples], self.erased[samples])

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All fields."""
        return self.affine, self.colour, self.erased

    def part(self, number: int, parts: int) -> AugmentParams:
        """Chunk `number` of `parts` equal chunks."""
        return AugmentParams(*(values.chunk(parts)[number] for values in self.tensors()))

    def to(self, device: torch.device) -> AugmentParams:
        """The parameters on a device."""
        return AugmentParams(*(values.to(device, non_blocking=True) for values in self.tensors()))


def params_from(config: AugmentConfig, drawn: Tensor) -> AugmentParams:
    """The parameters that a config gives to uniform random numbers: b N_DRAWS in [0, 1)."""
    columns = iter(drawn.unbind(1))

    def uniform(low: float, high: float) -> Tensor:
        return next(columns) * (high - low) + low

    area = uniform(*config.crop_scale)
    ratio = uniform(math.log(config.crop_ratio[0]), math.log(config.crop_ratio[1])).exp()
    width, height = (area * ratio).sqrt().clamp(max=1.0), (area / ratio).sqrt().clamp(max=1.0)
    left, top = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    mirror = torch.where(uniform(0, 1) < config.flip, -1.0, 1.0)
    angle = uniform(-config.rotation, config.rotation) * (math.pi / 180)
    cos, sin = angle.cos(), angle.sin()
    affine = torch.stack([cos * width * mirror, -sin * height, left, sin * width * mirror, cos * height, top], dim=1)
    colour = torch.stack([uniform(1 - config.jitter, 1 + config.jitter) for _ in range(3)], dim=1)
    return AugmentParams(affine.view(-1, 2, 3), colour, _draw_erased(config.erasing, uniform))


def _draw_erased(probability: float, uniform: Callable[[float, float], Tensor]) -> Tensor:
    """Random erasing (Zhong et al. 2017): rectangles of 2-20 % of the area, aspect ratio 1/3 to 3: -> b 4 in 0..1."""
    area, ratio = uniform(0.02, 0.2), uniform(math.log(1 / 3), math.log(3)).exp()
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    left, top = uniform(0, 1) * (1 - width), uniform(0, 1) * (1 - height)
    enabled = (uniform(0, 1) < probability).float()
    return torch.stack([left, top, left + enabled * width, top + height], dim=1)


def crop_on_host(images: Tensor, params: AugmentParams, size: int) -> Tensor:
    """Apply `params.affine` on the CPU: uint8 b 3 h w -> uint8 b 3 size size, a view of b h w 3.

    Larger images are first reduced to the size as a whole, as on the device, against aliasing. A crop without rotation
    is rounded to whole pixels, as in torchvision.
    """
    import cv2

    if min(images.shape[2:]) > size:
        images = functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    height, width = pixels.shape[1:3]
    cropped = np.empty((len(pixels), size, size, 3), dtype=np.uint8)
    for image, out, (horizontal, vertical) in zip(pixels, cropped, params.affine.tolist(), strict=True):
        (xx, xy, left), (yx, yy, top) = horizontal, vertical  # output to input, both in -1..1
        if xy == 0 and yx == 0:
            x0, x1 = round((left - abs(xx) + 1) * width / 2), round((left + abs(xx) + 1) * width / 2)
            y0, y1 = round((top - yy + 1) * height / 2), round((top + yy + 1) * height / 2)
            crop = image[max(0, y0) : max(y0 + 1, y1), max(0, x0) : max(x0 + 1, x1)]
            cv2.resize(crop, (size, size), dst=out, interpolation=cv2.INTER_LINEAR)
            if xx < 0:
                cv2.flip(out, 1, dst=out)
            continue
        lines = ((horizontal, width), (vertical, height))
        matrix = np.array([_in_pixels(line, extent, size) for line, extent in lines])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        cv2.warpAffine(image, matrix, (size, size), dst=out, flags=flags, borderMode=cv2.BORDER_REFLECT)
    return torch.from_numpy(cropped).permute(0, 3, 1, 2)


def _in_pixels(line: Sequence[float], extent: int, size: int) -> tuple[float, float, float]:
    """Convert a row of an affine matrix from coordinates in -1..1 to pixels; pixel i of s lies at (2 i + 1) / s - 1."""
    x, y, shift = line
    scale = extent / size
    return x * scale, y * scale, ((shift - x - y + 1) * extent - 1 + (x + y) * scale) / 2


def augment(images: Tensor, params: AugmentParams, *, cropped: bool = False) -> Tensor:
    """Augment images: float b 3 h w in -1..1 -> the same shape and range. `cropped`: `crop_on_host` has applied
    `params.affine` already.
    """
    if not cropped:
        grid = functional.affine_grid(params.affine.to(images), list(images.shape), align_corners=False)
        images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    images = _recolour(images, params.colour.to(images))
    return _erase(images, params.erased.to(images))


def _recolour(images: Tensor, colour: Tensor) -> Tensor:
    brightness, contrast, saturation = colour.view(-1, 3, 1, 1, 1).unbind(1)
    unit = (images + 1) * 0.5 * brightness
    mean = unit.mean((1, 2, 3), keepdim=True)
    unit = mean + (unit - mean) * contrast
    # filled on the device: a copy from the host would wait for it
    weights = torch.stack([images.new_full((), share) for share in (0.299, 0.587, 0.114)]).view(1, 3, 1, 1)
    grey = (unit * weights).sum(1, keepdim=True)
    return ((grey + (unit - grey) * saturation).clamp(0, 1) - 0.5) * 2


def _erase(images: Tensor, erased: Tensor) -> Tensor:
    height, width = images.shape[2:]
    x = (torch.arange(width, device=images.device) + 0.5) / width
    y = (torch.arange(height, device=images.device) + 0.5) / height
    left, top, right, bottom = erased.view(-1, 4, 1).unbind(1)
    columns, rows = (x >= left) & (x < right), (y >= top) & (y < bottom)
    return images.masked_fill((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), 0.0)
