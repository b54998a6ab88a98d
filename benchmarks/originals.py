"""The training step of facebookresearch/mae, written the plain way: what a user would run without this project.

Written from the paper and from what its training loop does, on timm's blocks (tests/reference/original_mae.py); no
code is copied, because its licence is CC BY-NC. As there: every patch is embedded, masks are drawn on the device, all
patches are predicted, the loss and the gradient norm are read back in every step. Other than there: bf16 autocast in
place of fp16 with a gradient scaler.

Legend: b images, n patches, k visible patches, p patch side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pfcluster.config import RunConfig
from pfcluster.engine.precision import autocast
from tests.reference.original_mae import OriginalMae


class PlainMaeTraining:
    """A model, AdamW with torch's defaults, and the step."""

    def __init__(self, config: RunConfig, device: torch.device, *, fused_attention: bool) -> None:
        """`config`: sizes, precision and optimizer of an MAE run. `fused_attention` takes timm's
        scaled_dot_product_attention in place of the matrix products of the original's timm 0.3.2.
        """
        model, self.device, self.precision = config.model, device, config.engine.precision
        self.patch = model.patch
        self.patches = (config.data.size // model.patch) ** 2
        self.visible = int(self.patches * (1 - config.mae.mask_ratio))
        self.model = OriginalMae(
            size=config.data.size,
            patch=model.patch,
            width=model.width,
            depth=model.depth,
            heads=model.heads,
            decoder_width=model.decoder_width,
            decoder_depth=model.decoder_depth,
            decoder_heads=model.decoder_heads,
        ).to(device)
        for block in (*self.model.blocks, *self.model.decoder_blocks):
            block.attn.fused_attn = fused_attention
        decayed = [parameter for parameter in self.model.parameters() if parameter.requires_grad and parameter.ndim > 1]
        others = [parameter for parameter in self.model.parameters() if parameter.requires_grad and parameter.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": config.optim.weight_decay}, {"params": others, "weight_decay": 0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.optim.lr, betas=config.optim.betas)

    def step(self, images: Tensor) -> float:
        """Train on b 3 h w; -> the loss. Raises FloatingPointError if it is not finite."""
        order = torch.rand(len(images), self.patches, device=self.device).argsort(dim=1)
        with autocast(self.device, self.precision):
            loss = self._loss(images, order)
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value}")
        loss.backward()
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        torch.stack([gradient.norm() for gradient in gradients]).norm().item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return value

    def _loss(self, images: Tensor, order: Tensor) -> Tensor:
        """Mean squared error of the masked patches, each normalised by its own mean and deviation."""
        predicted = self.model(images, order, self.visible)
        target = self._patches(images)
        target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
        masked = torch.ones_like(order, dtype=predicted.dtype).scatter(1, order[:, : self.visible], 0)
        return ((predicted - target).square().mean(2) * masked).sum() / masked.sum()

    def _patches(self, images: Tensor) -> Tensor:
        """b 3 h w -> b n (p p 3)."""
        b, _, height, width = images.shape
        rows, columns = height // self.patch, width // self.patch
        patches = images.view(b, 3, rows, self.patch, columns, self.patch)
        return patches.permute(0, 2, 4, 3, 5, 1).reshape(b, rows * columns, -1)
