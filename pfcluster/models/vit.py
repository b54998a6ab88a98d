"""Vision transformer (Dosovitskiy et al. 2020), optimised for MAE: hidden patches are never embedded.

Legend: b images, n patches, k kept patches, q queries, t tokens, d channels, h heads, p patch side.
Parameter names follow timm and facebookresearch/mae (`norm1`, `attn.qkv`, `attn.proj`, `mlp.fc1`), whose weights can
be loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfcluster.models.conv_stem import ConvStem


def patchify(images: Tensor, patch: int) -> Tensor:
    """Split images into flat patches, channels first: b 3 (rows p) (columns p) -> b (rows columns) (3 p p)."""
    b, channels, height, width = images.shape
    rows, columns = height // patch, width // patch
    patches = images.reshape(b, channels, rows, patch, columns, patch)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(b, rows * columns, channels * patch * patch)


def unpatchify(patches: Tensor, patch: int) -> Tensor:
    """Inverse of `patchify` for square images: b n (3 p p) -> b 3 h w."""
    b, n, size = patches.shape
    side, channels = int(n**0.5), size // patch**2
    images = patches.reshape(b, side, side, channels, patch, patch)
    return images.permute(0, 3, 1, 4, 2, 5).reshape(b, channels, side * patch, side * patch)


def take(tokens: Tensor, indices: Tensor) -> Tensor:
    """Select tokens of each sample by index: b n d, b k -> b k d. One flat index_select is faster than gather."""
    b, n, d = tokens.shape
    offsets = torch.arange(b, device=indices.device).unsqueeze(1) * n
    return tokens.reshape(b * n, d).index_select(0, (indices + offsets).reshape(-1)).view(b, -1, d)


def sincos_positions(side: int, width: int) -> Tensor:
    """Fixed 2-D sine-cosine position embeddings of a side x side grid: -> n d, half for columns, half for rows
    (as in MoCo v3 and MAE).
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.outer(torch.arange(side, dtype=torch.float64), frequencies)
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = line.unsqueeze(0).expand(side, side, -1)
    rows = line.unsqueeze(1).expand(side, side, -1)
    return torch.cat([columns, rows], dim=2).reshape(side * side, width).float()


def init_linear(module: nn.Module) -> None:
    """MAE's initialisation: Xavier-uniform matrices, zero biases, unit norms. For `Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


class Attention(nn.Module):
    """Multi-head attention by scaled_dot_product_attention; optionally query with a subset of the tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, queries: slice | None = None) -> Tensor:
        """b t d -> b q d: the tokens in `queries` attend to all tokens; None queries with all."""
        if queries is None:
            query, key, value = self._split(self.qkv(tokens), 3)
        else:
            width = tokens.shape[2]
            weight, bias = self.qkv.weight, self.qkv.bias
            (query,) = self._split(functional.linear(tokens[:, queries], weight[:width], bias[:width]), 1)
            key, value = self._split(functional.linear(tokens, weight[width:], bias[width:]), 2)
        return self.proj(attend(query, key, value))

    def _split(self, projected: Tensor, count: int) -> tuple[Tensor, ...]:
        """b t (count h d) -> count x b h t d."""
        b, t, _ = projected.shape
        return projected.view(b, t, count, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(Q Kᵀ / √d + B) V with concatenated heads: b h q d, b h t d, b h t d, bias h q t -> b q (h d)."""
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return mixed.transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """Two linear layers with a GELU between: b t d -> b t d."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """b t d -> b t d."""
        return self.fc2(functional.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, tokens: Tensor, queries: slice | None = None, scales: Tensor | None = None) -> Tensor:
        """b t d -> b q d. With `queries` only the outputs of those tokens are computed, for a last block whose other
        outputs are unused. `scales` 2 b multiply each sample's two residual branches."""
        residual = tokens if queries is None else tokens[:, queries]
        attended = self.attn(self.norm1(tokens), queries)
        if scales is None:
            tokens = residual + attended
            return tokens + self.mlp(self.norm2(tokens))
        first, second = scales.to(tokens.dtype)[:, :, None, None]
        tokens = residual + first * attended
        return tokens + second * self.mlp(self.norm2(tokens))


class ViT(nn.Module):
    """Encoder E: an image to a class token and the tokens of all patches, or of the kept patches only."""

    positions: Tensor

    def __init__(
        self,
        *,
        size: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        patch_gain: float = 1.0,
        stem_channels: Sequence[int] = (),
    ) -> None:
        """`patch_gain` scales the initial weights of the patch embedding. `stem_channels` takes a ConvStem."""
        super().__init__()
        self.patch = patch
        self.patch_embed = ConvStem(stem_channels, width) if stem_channels else nn.Linear(3 * patch * patch, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", sincos_positions(size // patch, width))
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.apply(init_linear)
        if isinstance(self.patch_embed, nn.Linear):
            nn.init.xavier_uniform_(self.patch_embed.weight, gain=patch_gain)
        nn.init.normal_(self.cls_token, std=0.02)

    def forward(self, images: Tensor, keep: Tensor | None = None, scales: Tensor | None = None) -> Tensor:
        """b 3 h w, indices of the kept patches b k (None for all) -> b (1 + k) d, class token first.

        `scales` depth 2 b: factors of each block's two residual branches for each sample (stochastic depth).
        """
        tokens = self._embed(images, keep)
        # shape[0], because torch.export takes len() for a constant
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)
        for index, block in enumerate(self.blocks):
            tokens = block(tokens) if scales is None else block(tokens, None, scales[index])
        return self.norm(tokens)

    def _embed(self, images: Tensor, keep: Tensor | None) -> Tensor:
        """b 3 h w -> b k d: patch embeddings with their positions."""
        positions = self.positions.unsqueeze(0) if keep is None else self.positions[keep]
        if isinstance(self.patch_embed, ConvStem):
            tokens: Tensor = self.patch_embed(images, keep)
            return (tokens if keep is None else take(tokens, keep)) + positions
        patches = patchify(images, self.patch)
        embedded: Tensor = self.patch_embed(patches if keep is None else take(patches, keep))
        return embedded + positions

    def shard_units(self) -> list[nn.Module]:
        """The modules that an engine may shard, compile or checkpoint separately."""
        return list(self.blocks)


class Classifier(nn.Module):
    """A ViT with a linear head on its class token (docs/concepts/method.md, section 2)."""

    def __init__(self, encoder: ViT, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, scales: Tensor | None = None) -> Tensor:
        """b 3 h w -> logits b classes; `scales` as for the encoder."""
        return self.head(self.encoder(images, None, scales)[:, 0])

    def shard_units(self) -> list[nn.Module]:
        """The encoder's blocks."""
        return self.encoder.shard_units()
