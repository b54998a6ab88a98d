"""Nets as others write them, for checking that their weights compute the same in ours: names, patch order and
normalisation of facebookresearch/mae (its model written anew from the paper and its checkpoints' names, on timm's
blocks), and of what the authors of PF-ViT wrap around it.

Legend: b images, n patches, k kept patches, d channels, p patch side.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from pfcluster.models.pretrained import IMAGENET_MEAN, IMAGENET_STD
from pfcluster.models.vit import sincos_positions


class OriginalMae(nn.Module):
    """MAE by the names of facebookresearch/mae, which hides nothing from a reader: every patch is embedded, kept ones
    are gathered, mask tokens are put back in order, all patches are predicted.
    """

    def __init__(
        self,
        *,
        size: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        decoder_width: int,
        decoder_depth: int,
        decoder_heads: int,
    ) -> None:
        super().__init__()
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.patch_embed = PatchEmbed(size, patch, 3, width)
        side = size // patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(_with_class(side, width), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads, 4, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        self.norm = norm(width)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(_with_class(side, decoder_width), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_width, decoder_heads, 4, qkv_bias=True, norm_layer=norm) for _ in range(decoder_depth)
        )
        self.decoder_norm = norm(decoder_width)
        self.decoder_pred = nn.Linear(decoder_width, patch**2 * 3)

    def features(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Normalised b 3 h w, kept patches b k or all -> b (1 + k) d."""
        tokens = self.patch_embed(images) + self.pos_embed[:, 1:]
        if keep is not None:
            tokens = tokens.gather(1, keep.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        tokens = torch.cat([first, tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def forward(self, images: Tensor, order: Tensor, kept: int) -> Tensor:
        """Normalised b 3 h w, a permutation b n of which the first `kept` are seen -> b n (p p 3), in their order."""
        tokens = self.decoder_embed(self.features(images, order[:, :kept]))
        b, n = order.shape
        shuffled = torch.cat([tokens[:, 1:], self.mask_token.expand(b, n - kept, -1)], dim=1)
        restore = order.argsort(1).unsqueeze(2).expand(-1, -1, tokens.shape[2])
        tokens = torch.cat([tokens[:, :1], shuffled.gather(1, restore)], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(tokens))[:, 1:]


def _with_class(side: int, width: int) -> Tensor:
    """Sine-cosine positions 1 (1 + n) d, zeros for the class token."""
    return torch.cat([torch.zeros(1, width), sincos_positions(side, width)]).unsqueeze(0)


def stirred(module: nn.Module) -> nn.Module:
    """The module with random weights where it starts with zeros or ones, so that nothing can be left out unseen."""
    torch.manual_seed(1)
    for name, parameter in module.named_parameters():
        if "pos_embed" not in name and (parameter.ndim == 1 or name.endswith("_token")):
            parameter.data += 0.1 * torch.randn_like(parameter)
    return module.eval()


def normalised(images: Tensor) -> Tensor:
    """Images in -1..1 as ImageNet's mean and deviation make them: b 3 h w -> the same."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((images + 1) / 2 - mean) / std


def write(path: Path, state: dict[str, Tensor], layout: str) -> Path:
    """Save weights as others do: "bare", "model", "model_state_dict", "parallel" (each name behind `module.`), or
    "training" (what facebookresearch/mae's own training saves, its options and optimizer beside).
    """
    parallel = {f"module.{name}": value for name, value in state.items()}
    kept: dict[str, Any] = {
        "bare": state,
        "model": {"model": state},
        "model_state_dict": {"epoch": 3, "model_state_dict": state},
        "parallel": {"model": parallel},
        "training": {"model": state, "optimizer": {}, "epoch": 3, "args": argparse.Namespace(mask_ratio=0.75)},
    }
    torch.save(kept[layout], path)
    return path
