"""Δ: is this image real, and which emotion does it show (METHOD.md, section 3).

Legend: b images, n patches, c decoder channels, k emotion classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pfcluster.nn.mae import Decoder
from pfcluster.nn.vit import init_linear, patchify


class Discriminator(nn.Module):
    """A second copy of the pre-trained MAE decoder that reads patches and answers with k + 1 logits.

    Its input layer is new (it embeds pixels, not tokens), and a class token of its own pools the answer; in the last
    block only that token asks.
    """

    positions: Tensor

    def __init__(self, decoder: Decoder, *, patch: int, width: int, classes: int) -> None:
        super().__init__()
        self.patch = patch
        self.patch_embed = nn.Linear(3 * patch * patch, width)
        init_linear(self.patch_embed)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.cls_token, std=0.02)
        self.register_buffer("positions", decoder.positions, persistent=False)
        self.blocks = decoder.blocks
        self.norm = decoder.norm
        self.head = nn.Linear(width, classes + 1)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """b 3 h w -> logits b (k + 1): independent emotions, then real (high) or generated (low)."""
        tokens = self.patch_embed(patchify(images, self.patch))
        tokens = tokens + self.positions.to(tokens.dtype)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        pooled = self.blocks[-1](tokens, queries=slice(0, 1))
        return self.head(self.norm(pooled))[:, 0]

    def shard_units(self) -> list[nn.Module]:
        """The blocks."""
        return list(self.blocks)
