"""Δ: is this image real, and which emotion does it show (docs/concepts/method.md, section 3).

Legend: b images, n patches, t = n + 1 tokens with the class token first, d encoder, c decoder channels, k emotion
classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfcluster.models.mae import Decoder
from pfcluster.models.vit import init_linear, patchify

ADVERSARY_CHANNELS = 16
"""What the Reader keeps of a token."""


class EmotionAdversary(nn.Module):
    """Which emotion do these tokens still tell? Each token by a few channels, then two layers on all of them together:
    an expression that stands in single patches is read where it stands.

    Not the paper's. It learns with Δ, and PF-ViT learns to leave it nothing to read in f_p (losses.confusion).
    """

    def __init__(self, tokens: int, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.look = nn.Linear(width, ADVERSARY_CHANNELS)
        self.hidden = nn.Linear(tokens * ADVERSARY_CHANNELS, width)
        self.head = nn.Linear(width, classes)
        self.apply(init_linear)

    def forward(self, tokens: Tensor) -> Tensor:
        """b t d -> logits b k."""
        seen = functional.gelu(self.look(self.norm(tokens))).flatten(1)
        answer: Tensor = self.head(functional.gelu(self.hidden(seen)))
        return answer


class Discriminator(nn.Module):
    """A second copy of the pre-trained MAE decoder that reads patches and answers with k + 1 logits.

    Its input layer is new (it embeds pixels, not tokens), and a class token of its own pools the answer; in the last
    block only that token asks.
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
        """`patch_gain` scales the start of the patch embedding; `adversary_tokens` are number and width of PF-ViT's
        tokens where a Reader shall look at them.
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
            with torch.random.fork_rng(devices=[]):  # the other nets start as they do without it
                self.adversary = EmotionAdversary(*adversary_tokens, classes)

    def forward(self, images: Tensor, tokens: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """b 3 h w -> logits b (k + 1): independent emotions, then real (high) or generated (low); and where tokens
        b t d are given, what the Reader answers to them, logits b k.
        """
        if tokens is None:
            return self._judge(images)
        assert self.adversary is not None
        return self._judge(images), self.adversary(tokens)

    def _judge(self, images: Tensor) -> Tensor:
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
