"""Masked autoencoder (He et al. 2021; docs/concepts/method.md, section 1). Embeds only visible patches and predicts
only hidden ones.

Legend: b images, n patches, k kept (visible) patches, m = n - k hidden patches, d encoder, c decoder channels, p
patch side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pfcluster.models.vit import Block, ViT, init_linear, patchify, sincos_positions, take, unpatchify


def kept_count(patches: int, mask_ratio: float) -> int:
    """Number of visible patches: at least one, at most all but one."""
    return min(max(1, round(patches * (1 - mask_ratio))), patches - 1)


class Decoder(nn.Module):
    """MAE decoder. Generator and discriminator start as copies of it (docs/concepts/method.md, section 3)."""

    positions: Tensor

    def __init__(
        self,
        *,
        side: int,
        patch: int,
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", sincos_positions(side, width), persistent=False)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 3 * patch * patch)
        self.apply(init_linear)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, visible: Tensor, order: Tensor) -> Tensor:
        """Predict the hidden patches: b (1 + k) d, b n -> b m (3 p p).

        Tokens stay in shuffled order (visible first) and take their position embeddings by index, so nothing is
        unshuffled. The last block queries with the hidden tokens only, because the other outputs are unused.
        """
        kept = visible.shape[1] - 1
        embedded = self.embed(visible)
        positions = self.positions[order]
        visible_tokens = embedded[:, 1:] + positions[:, :kept]
        hidden = self.mask_token.to(embedded.dtype) + positions[:, kept:]
        tokens = torch.cat([embedded[:, :1], visible_tokens, hidden.to(embedded.dtype)], dim=1)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        hidden = self.blocks[-1](tokens, queries=slice(1 + kept, None))
        return self.head(self.norm(hidden))


class MAE(nn.Module):
    """Encoder and decoder. The hidden patches are an input, so that they do not depend on the number of processes."""

    def __init__(self, encoder: ViT, decoder: Decoder, *, mask_ratio: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.mask_ratio = mask_ratio

    def forward(self, images: Tensor, order: Tensor) -> Tensor:
        """Predict the hidden patches: b 3 h w, a permutation of the patches b n (visible first) -> b m (3 p p)."""
        visible = self.encoder(images, keep=order[:, : self.kept])
        return self.decoder(visible, order)

    @property
    def kept(self) -> int:
        """Number of visible patches."""
        return kept_count(len(self.encoder.positions), self.mask_ratio)

    def shard_units(self) -> list[nn.Module]:
        """The blocks of encoder and decoder."""
        return [*self.encoder.blocks, *self.decoder.blocks]


def hidden_patches(images: Tensor, order: Tensor, kept: int, patch: int) -> Tensor:
    """Pixels of the hidden patches: b 3 h w, b n -> b m (3 p p)."""
    return take(patchify(images, patch), order[:, kept:])


def inpaint(images: Tensor, prediction: Tensor, order: Tensor, kept: int, patch: int, *, norm_pixels: bool) -> Tensor:
    """Replace hidden patches with predictions, for image grids: b 3 h w, b m (3 p p), b n -> b 3 h w.

    With `norm_pixels` each predicted patch gets the mean and standard deviation of the patch it replaces.
    """
    patches = patchify(images, patch)
    if norm_pixels:
        truth = take(patches, order[:, kept:])
        mean, variance = truth.mean(2, keepdim=True), truth.var(2, keepdim=True)
        prediction = prediction * (variance + 1e-6).sqrt() + mean
    index = order[:, kept:].unsqueeze(2).expand_as(prediction)
    return unpatchify(patches.scatter(1, index, prediction.to(patches.dtype)), patch)
