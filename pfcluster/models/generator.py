"""PF-ViT's fusion and generator: tokens to images (docs/concepts/method.md, section 3).

Legend: b images, n patches, k visible patches, t = k + 1 tokens with the class token first, d encoder, c decoder
channels, h heads, p patch side, v overlap of patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfcluster.models.mae import Decoder
from pfcluster.models.vit import Attention, attend, init_linear, take, unpatchify


class RelativePositionBias(nn.Module):
    """Learned bias of an attention from n patches to a class token and n patches: for each head a table over the offset
    between the two patches (Liu et al. 2021, Swin), and one entry for the class token.

    Starts at `own` for a patch's own place and at 0 elsewhere.
    """

    index: Tensor

    def __init__(self, side: int, heads: int, own: float) -> None:
        super().__init__()
        offsets = 2 * side - 1
        self.table = nn.Parameter(torch.zeros(heads, offsets**2))
        self.class_token = nn.Parameter(torch.zeros(heads, 1))
        with torch.no_grad():
            self.table[:, offsets**2 // 2] = own
        places = torch.arange(side)
        rows, columns = places.repeat_interleave(side), places.repeat(side)
        difference = rows[:, None] - rows[None] + side - 1, columns[:, None] - columns[None] + side - 1
        self.register_buffer("index", difference[0] * offsets + difference[1], persistent=False)

    def forward(self) -> Tensor:
        """The bias of every patch towards the class token, then towards every patch: -> h n (1 + n)."""
        pairs = self.table[:, self.index]
        return torch.cat([self.class_token.unsqueeze(1).expand(-1, pairs.shape[1], -1), pairs], dim=2)


class CrossFusion(nn.Module):
    """F(t) = softmax(Q Kᵀ / √d) V: cross-attention from one mask token per patch to the encoder's tokens.

    Q is computed from mask token + position, K and V from the tokens projected to the decoder's width plus their
    positions, as in the pre-trained decoder. The paper's parameter count would fit an MLP after it, but its equation
    has none; without it the FLOPs of a training step match the paper's (benchmarks/flops.py).

    With a position bias B, which is not in the paper, softmax(Q Kᵀ / √d + B): which token belongs to which place need
    not be learned from the content (docs/guides/pf-mag.md).
    """

    def __init__(self, width: int, heads: int, *, side: int = 0, own_bias: float | None = None) -> None:
        """`own_bias` adds a RelativePositionBias that starts at this value for a patch's own place."""
        super().__init__()
        self.heads = heads
        self.norm_query = nn.LayerNorm(width, eps=1e-6)
        self.norm_tokens = nn.LayerNorm(width, eps=1e-6)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.apply(init_linear)
        self.position_bias = None if own_bias is None else RelativePositionBias(side, heads, own_bias)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """1 n c, b t c -> b n c."""
        b, n = tokens.shape[0], queries.shape[1]
        query = self.query(self.norm_query(queries)).view(1, n, self.heads, -1).transpose(1, 2).expand(b, -1, -1, -1)
        key_value = self.key_value(self.norm_tokens(tokens)).view(b, tokens.shape[1], 2, self.heads, -1)
        key, value = key_value.permute(2, 0, 3, 1, 4).unbind(0)
        bias = None if self.position_bias is None else self.position_bias().to(query.dtype)
        return queries + self.proj(attend(query, key, value, bias))


class SelfFusion(nn.Module):
    """Self-attention over the encoder's tokens, and mask tokens for hidden patches, in place of the cross-attention
    (docs/concepts/method.md, Ablations 3 and 4).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.apply(init_linear)

    def forward(self, tokens: Tensor) -> Tensor:
        """b (1 + n) c -> b (1 + n) c."""
        return tokens + self.attn(self.norm(tokens))


class Generator(nn.Module):
    """Fusion F and generator G: tokens to pixels.

    G starts as the pre-trained MAE decoder. That decoder predicts normalised patches, without each patch's mean and
    contrast, so the last layer is new (small weights, zero bias: mid-grey) and learns raw pixels. A warm-up on
    reconstruction precedes the adversarial loss (`PfMagConfig.warmup_steps`).
    """

    positions: Tensor

    def __init__(
        self,
        decoder: Decoder,
        *,
        width: int,
        heads: int,
        patch: int,
        self_fusion: bool = False,
        fusion_bias: float | None = None,
        overlap: int = 0,
    ) -> None:
        """`self_fusion` takes SelfFusion instead of CrossFusion, `fusion_bias` is the latter's `own_bias`. With
        `overlap` v the head generates (p + 2 v)² pixels around each patch, and overlapping ones are added up; it starts
        as the head of p² pixels.
        """
        super().__init__()
        self.patch, self.overlap = patch, overlap
        self.embed = decoder.embed
        self.mask_token = decoder.mask_token
        self.register_buffer("positions", decoder.positions, persistent=False)
        side = int(len(self.positions) ** 0.5)
        self.fusion = (
            SelfFusion(width, heads) if self_fusion else CrossFusion(width, heads, side=side, own_bias=fusion_bias)
        )
        self.blocks = decoder.blocks
        self.norm = decoder.norm
        self.head = nn.Linear(width, 3 * patch * patch)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        if overlap:
            self.head = overlapping_head(self.head, patch, overlap)

    def forward(self, tokens: Tensor, order: Tensor | None = None) -> Tensor:
        """b (1 + k) d -> images b 3 h w, unbounded. order b n: the patches, the k visible ones first, as the tokens
        are; None if all are visible.
        """
        embedded = self.embed(tokens)
        if isinstance(self.fusion, SelfFusion):
            return self._assemble(self._generate_with_self_fusion(embedded, order))
        assert order is None
        positions = functional.pad(self.positions, (0, 0, 1, 0)).to(embedded.dtype)
        return self._assemble(self._decode(self.fusion(self.mask_token + self.positions, embedded + positions)))

    def _generate_with_self_fusion(self, embedded: Tensor, order: Tensor | None) -> Tensor:
        """Append mask tokens for hidden patches, fuse, decode, and restore the order of the patches: -> b n outputs."""
        b, kept = embedded.shape[0], embedded.shape[1] - 1
        positions = self.positions.expand(b, -1, -1) if order is None else self.positions[order]
        visible = embedded[:, 1:] + positions[:, :kept]
        hidden = self.mask_token.to(embedded.dtype) + positions[:, kept:]
        tokens = torch.cat([embedded[:, :1], visible, hidden.to(embedded.dtype)], dim=1)
        patches = self._decode(self.fusion(tokens), skip=1)
        return patches if order is None else take(patches, order.argsort(dim=1))

    def _decode(self, hidden: Tensor, skip: int = 0) -> Tensor:
        """G without its fusion: b (skip + n) c -> patches b n (3 (p + 2 v)²)."""
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden[:, skip:]))

    def _assemble(self, patches: Tensor) -> Tensor:
        """b n (3 (p + 2 v)²) -> images b 3 h w; sums overlapping pixels."""
        if not self.overlap:
            return unpatchify(patches, self.patch)
        size = self.patch * int(patches.shape[1] ** 0.5)
        kernel = self.patch + 2 * self.overlap
        return functional.fold(patches.transpose(1, 2), size, kernel, stride=self.patch, padding=self.overlap)


def overlapping_head(head: nn.Linear, patch: int, overlap: int) -> nn.Linear:
    """A head for (p + 2 v)² pixels around each patch that generates what `head` does on the patch, and 0 around it."""
    side = patch + 2 * overlap
    wide = nn.Linear(head.in_features, 3 * side**2, device="meta").to_empty(device=head.weight.device)
    inside = slice(overlap, overlap + patch)
    with torch.no_grad():
        for old, new in ((head.weight, wide.weight), (head.bias, wide.bias)):
            new.zero_()
            new.view(3, side, side, -1)[:, inside, inside] = old.view(3, patch, patch, -1)
    return wide
