"""Peak signal-to-noise ratio and structural similarity (Wang et al. 2004) of images in -1..1.

The values are those of torchmetrics, whose import takes longer than a small evaluation (tests/unit/test_evaluate.py).

Legend: b images, c channels, h w pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

DATA_RANGE = 2.0
WINDOW, SIGMA = 11, 1.5
"""Side and standard deviation, in pixels, of the Gaussian window."""
LUMINANCE, CONTRAST = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
"""C1 and C2 of Wang et al. 2004, eq. 13."""


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """b c h w, b c h w -> b: decibels; infinite for equal images."""
    return 10 * torch.log10(DATA_RANGE**2 / (images - reference).square().mean((1, 2, 3)))


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """b c h w, b c h w -> b: mean over all places; images are reflected at their borders."""
    moments = (images, reference, images * images, reference * reference, images * reference)
    mean, mean_reference, square, square_reference, product = _window_means(torch.cat(moments)).chunk(5)
    variance = (square - mean.square()).clamp(min=0)
    variance_reference = (square_reference - mean_reference.square()).clamp(min=0)
    covariance = product - mean * mean_reference
    similarity = (2 * mean * mean_reference + LUMINANCE) * (2 * covariance + CONTRAST)
    scale = (mean.square() + mean_reference.square() + LUMINANCE) * (variance + variance_reference + CONTRAST)
    return (similarity / scale).mean((1, 2, 3))


def _window_means(images: Tensor) -> Tensor:
    """b c h w -> b c h w: means under the window, also under autocast in the images' precision: the variances are small
    differences of them.
    """
    places = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    weights = torch.exp(-0.5 * (places / SIGMA) ** 2)
    weights = weights / weights.sum()
    channels = images.shape[1]
    kernel = torch.outer(weights, weights).expand(channels, 1, WINDOW, WINDOW)
    padded = functional.pad(images, (WINDOW // 2,) * 4, mode="reflect")
    with torch.autocast(images.device.type, enabled=False):
        return functional.conv2d(padded, kernel, groups=channels)
