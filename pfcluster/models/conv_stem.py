"""A convolutional stem in place of the linear patch embedding (Xiao et al. 2021, "Early convolutions help transformers
see better"), with masked convolutions for MAE (Gao et al. 2022, ConvMAE). Not in the paper.

Legend: b images, n patches, k kept patches, c channels, d encoder width, h w pixels or positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position: b c h w -> b c h w."""

    def forward(self, values: Tensor) -> Tensor:
        """b c h w -> b c h w."""
        return super().forward(values.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ResidualConv(nn.Module):
    """x + conv(GELU(conv(norm(x)))) of 3x3 convolutions. The second one starts at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, eps=1e-6)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        assert self.second.bias is not None
        nn.init.zeros_(self.second.bias)

    def forward(self, values: Tensor, visible: Tensor | None) -> Tensor:
        """b c h w, visible positions b 1 h w (None for all) -> b c h w."""
        hidden = functional.gelu(self.first(masked(self.norm(values), visible)))
        return values + self.second(masked(hidden, visible))


class Stage(nn.Module):
    """A convolution with stride 2, normalisation and GELU, and a residual block in all stages but the first, where it
    would cost most.
    """

    def __init__(self, channels_in: int, channels: int, *, has_residual: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, stride=2, padding=1)
        self.norm = ChannelNorm(channels, eps=1e-6)
        self.residual = ResidualConv(channels) if has_residual else None

    def forward(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """b c 2h 2w, visible positions b 1 2h 2w (None for all) -> b c h w."""
        values = functional.gelu(self.norm(self.conv(masked(values, mask))))
        if self.residual is None:
            return values
        return self.residual(values, None if mask is None else mask[:, :, ::2, ::2])


class ConvStem(nn.Module):
    """An image to one token per patch by stages of stride 2. With kept patches, hidden ones are set to zero before
    every convolution, so that no token of a kept patch depends on a hidden one; tokens of hidden patches are discarded.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        """`channels` of the stages; the patch side is 2 to the power of their number."""
        super().__init__()
        self.patch = 2 ** len(channels)
        self.stages = nn.ModuleList(
            Stage(before, after, has_residual=index > 0)
            for index, (before, after) in enumerate(zip((3, *channels), channels, strict=False))
        )
        self.out = nn.Conv2d(channels[-1], width, 1)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """b 3 h w, indices of the kept patches b k (None for all) -> tokens of all patches b n d."""
        values = images.contiguous(memory_format=torch.channels_last)
        mask = None if keep is None else self._visible(keep, images)
        for stage in self.stages:
            values = stage(values, mask)
            mask = None if mask is None else mask[:, :, ::2, ::2]
        tokens: Tensor = self.out(values).flatten(2).transpose(1, 2)
        return tokens

    def _visible(self, keep: Tensor, images: Tensor) -> Tensor:
        """1 for the pixels of kept patches, 0 for others: b k -> b 1 h w."""
        rows, columns = images.shape[2] // self.patch, images.shape[3] // self.patch
        patches = images.new_zeros(len(keep), rows * columns).scatter_(1, keep, 1.0).view(-1, 1, rows, columns)
        return patches.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3)


def masked(values: Tensor, visible: Tensor | None) -> Tensor:
    """The values where visible, 0 elsewhere: b c h w, b 1 h w."""
    return values if visible is None else values * visible.to(values.dtype)
