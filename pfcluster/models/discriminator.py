"""The discriminator Δ: real or generated, and which emotion (docs/concepts/method.md, section 3).

Legend: b images, t tokens with the class token first, d encoder, c adversary channels, k emotion classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfcluster.models.mae import Decoder
from pfcluster.models.vit import ViT, init_linear, patchify

ADVERSARY_CHANNELS = 16
"""Channels to which the emotion adversary projects each token."""


class EmotionAdversary(nn.Module):
    """Auxiliary classifier: emotion from the identity tokens f_p. A projection of each token, then an MLP on all of
    them concatenated, so that it can use expressions visible in single patches.

    Not in the paper. It is trained with the discriminator; PF-ViT is trained against it (losses.confusion).
    """

    def __init__(self, tokens: int, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.project = nn.Linear(width, ADVERSARY_CHANNELS)
        self.hidden = nn.Linear(tokens * ADVERSARY_CHANNELS, width)
        self.head = nn.Linear(width, classes)
        self.apply(init_linear)

    def forward(self, tokens: Tensor) -> Tensor:
        """b t d -> logits b k."""
        projected = functional.gelu(self.project(self.norm(tokens))).flatten(1)  # b (t c)
        logits: Tensor = self.head(functional.gelu(self.hidden(projected)))
        return logits


class Discriminator(nn.Module):
    """A copy of the pre-trained MAE decoder that maps an image to k + 1 logits.

    The patch embedding is new, because the decoder embeds tokens instead of pixels. A class token pools the output; it
    is the only query of the last block.
    """

    positions: Tensor

    def __init__(
        self,
        decoder: Decoder,
        *,
        patch: int,
        width: int,
        classes: int,
        patch_gain: float = 1.0,
        adversary_tokens: tuple[int, int] | None = None,
    ) -> None:
        """`patch_gain` scales the initial patch embedding. `adversary_tokens`, number and width of PF-ViT's tokens,
        adds an EmotionAdversary.
        """
        super().__init__()
        self.patch = patch
        self.patch_embed = nn.Linear(3 * patch * patch, width)
        init_linear(self.patch_embed)
        with torch.no_grad():
            self.patch_embed.weight *= patch_gain
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.normal_(self.cls_token, std=0.02)
        self.register_buffer("positions", decoder.positions, persistent=False)
        self.blocks = decoder.blocks
        self.norm = decoder.norm
        self.head = nn.Linear(width, classes + 1)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.adversary: EmotionAdversary | None = None
        if adversary_tokens is not None:
            with torch.random.fork_rng(devices=[]):  # the other modules are initialised as without it
                self.adversary = EmotionAdversary(*adversary_tokens, classes)

    def forward(self, images: Tensor, tokens: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """b 3 h w -> logits b (k + 1): k independent emotion logits, then real (high) or generated (low). With tokens
        b t d also the adversary's logits b k.
        """
        if tokens is None:
            return self._classify(images)
        assert self.adversary is not None
        return self._classify(images), self.adversary(tokens)

    def _classify(self, images: Tensor) -> Tensor:
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


class ViTDiscriminator(nn.Module):
    """A copy of a fine-tuned classifier that maps an image to k + 1 logits: emotions off the class token, real or
    generated off each patch token, averaged. Not in the paper; it recognises emotions from the start.
    """

    def __init__(
        self, encoder: ViT, *, width: int, classes: int, adversary_tokens: tuple[int, int] | None = None
    ) -> None:
        """`adversary_tokens`, number and width of PF-ViT's tokens, adds an EmotionAdversary."""
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, classes)
        self.real_head = nn.Linear(width, 1)
        for layer in (self.head, self.real_head):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.adversary = None if adversary_tokens is None else EmotionAdversary(*adversary_tokens, classes)

    def forward(self, images: Tensor, tokens: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """As Discriminator: b 3 h w -> logits b (k + 1). With tokens b t d also the adversary's logits b k."""
        seen = self.encoder(images)
        logits = torch.cat([self.head(seen[:, 0]), self.real_head(seen[:, 1:]).mean(1)], dim=1)
        if tokens is None:
            return logits
        assert self.adversary is not None
        return logits, self.adversary(tokens)

    def shard_units(self) -> list[nn.Module]:
        """The encoder's blocks."""
        return self.encoder.shard_units()
