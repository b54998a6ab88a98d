"""The original MAE, to check that weights of facebookresearch/mae give the same outputs in this project's nets.

The model is written from the paper on timm's blocks, with the parameter names, patch order and input normalisation of
facebookresearch/mae's checkpoints; `save_weights` wraps them as published checkpoints do.

Legend: b images, n patches, k visible patches, d channels, p patch side.
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

from pfcluster.models.vit import sincos_positions
from pfcluster.models.weight_layouts import IMAGENET_MEAN, IMAGENET_STD

LAYOUTS = ("model", "model_state_dict", "parallel", "training")
"""How facebookresearch/mae and projects built on it wrap a state dict; see `save_weights`."""


class OriginalMae(nn.Module):
    """MAE with facebookresearch/mae's parameter names: embed every patch, gather the visible ones, restore the image
    order with mask tokens, predict all patches.
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
        self.pos_embed = nn.Parameter(_positions_with_class_token(side, width), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads, 4, qkv_bias=True, norm_layer=norm) for _ in range(depth))
        self.norm = norm(width)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_width))
        self.decoder_pos_embed = nn.Parameter(_positions_with_class_token(side, decoder_width), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_width, decoder_heads, 4, qkv_bias=True, norm_layer=norm) for _ in range(decoder_depth)
        )
        self.decoder_norm = norm(decoder_width)
        self.decoder_pred = nn.Linear(decoder_width, patch**2 * 3)

    def features(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """ImageNet-normalised b 3 h w, indices of visible patches b k (None: all) -> b (1 + k) d."""
        tokens = self.patch_embed(images) + self.pos_embed[:, 1:]
        if visible is not None:
            tokens = tokens.gather(1, visible.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        tokens = torch.cat([first, tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def forward(self, images: Tensor, order: Tensor, visible: int) -> Tensor:
        """ImageNet-normalised b 3 h w, a permutation b n (the first `visible` are not masked) -> b n (p p 3)."""
        tokens = self.decoder_embed(self.features(images, order[:, :visible]))
        b, n = order.shape
        shuffled = torch.cat([tokens[:, 1:], self.mask_token.expand(b, n - visible, -1)], dim=1)
        restore = order.argsort(1).unsqueeze(2).expand(-1, -1, tokens.shape[2])
        tokens = torch.cat([tokens[:, :1], shuffled.gather(1, restore)], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            tokens = block(tokens)
        return self.decoder_pred(self.decoder_norm(tokens))[:, 1:]


def _positions_with_class_token(side: int, width: int) -> Tensor:
    """Sine-cosine positions 1 (1 + n) d, zeros for the class token."""
    return torch.cat([torch.zeros(1, width), sincos_positions(side, width)]).unsqueeze(0)


def randomise(module: nn.Module) -> nn.Module:
    """Add noise to parameters that are initialised to zeros or ones, so that a parameter that is not loaded changes the
    output. Modifies the module and sets evaluation mode.
    """
    torch.manual_seed(1)
    for name, parameter in module.named_parameters():
        if "pos_embed" not in name and (parameter.ndim == 1 or name.endswith("_token")):
            parameter.data += 0.1 * torch.randn_like(parameter)
    return module.eval()


def imagenet_normalised(images: Tensor) -> Tensor:
    """b 3 h w in -1..1 -> b 3 h w standardised with ImageNet's mean and standard deviation."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((images + 1) / 2 - mean) / std


def save_weights(path: Path, state: dict[str, Tensor], layout: str) -> Path:
    """Save a state dict in one of the layouts of published checkpoints: "bare" or one of `LAYOUTS`. "parallel" prefixes
    names with `module.`; "training" is what facebookresearch/mae's training loop saves, with options and optimizer.
    """
    parallel = {f"module.{name}": value for name, value in state.items()}
    contents: dict[str, Any] = {
        "bare": state,
        "model": {"model": state},
        "model_state_dict": {"epoch": 3, "model_state_dict": state},
        "parallel": {"model": parallel},
        "training": {"model": state, "optimizer": {}, "epoch": 3, "args": argparse.Namespace(mask_ratio=0.75)},
    }
    torch.save(contents[layout], path)
    return path
