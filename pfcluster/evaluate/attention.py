"""Grad-CAM++ on the last transformer block of a ViT (Chattopadhay et al. 2018, arXiv 1710.11063).

Legend: b images, t = 1 + n tokens with the class token first, n patches, d channels, h w pixels, k classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfcluster.evaluate.classification import logits_function
from pfcluster.models.pf_vit import PFViT
from pfcluster.models.vit import Classifier

MIN_DENOMINATOR = 1.0
"""In the paper a ReLU precedes the maps, so the denominator 2 + g ΣA is at least 2 wherever a weight is positive. After
a LayerNorm ΣA may be negative; at g ΣA = -2 the formula has a pole, where one channel would dominate the map."""


def grad_cam_plus_plus(activations: Tensor, gradients: Tensor) -> Tensor:
    """Unscaled maps, b n, from a layer's patch tokens A and gradients g = ∂S/∂A, b n d each.

    With Y = exp(S) of a class score S the paper's weights are, for channel c and patch i,

        α_ic = g² / (2 g² + g³ Σ_j A_jc) = 1 / (2 + g Σ_j A_jc), and 0 where g = 0,
        w_c  = Σ_i α_ic ReLU(g_ic),
        L_i  = ReLU(Σ_c w_c A_ic).

    The common factor exp(S) cancels when the map is scaled. Denominators below `MIN_DENOMINATOR` are raised to it.
    pytorch-grad-cam adds 1e-6 to 2 g² + g³ ΣA, which for a ViT exceeds g² itself, so its weights are close to Σ g³.
    With the same term added, this function reproduces its maps.
    """
    denominators = 2 + gradients * activations.sum(1, keepdim=True)
    weights = (gradients.relu() / denominators.clamp(min=MIN_DENOMINATOR)).sum(1, keepdim=True)
    return (weights * activations).sum(2).relu()


def attention_maps(model: PFViT | Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """b 3 h w -> Grad-CAM++ maps of the predicted class b h w in 0..1, and logits b k.

    The layer is the first norm of the last block, as in pytorch-grad-cam's ViT examples: after that block only the
    class token feeds the classifier, so patch tokens have no gradient. A PF-ViT with a separator classifies its
    emotion feature. Each map is scaled to 0..1 and resized bilinearly; a map without positive values is 0.
    """
    captured: list[Tensor] = []

    def capture(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        captured.append(output.detach().requires_grad_())
        return captured[-1]

    block = model.encoder.blocks[-1]
    assert isinstance(block.norm1, nn.Module)
    hook = block.norm1.register_forward_hook(capture)
    try:
        with torch.enable_grad():
            logits = logits_function(model)(images)
            # Scores of different images are independent: the gradient of their sum holds every image's gradient.
            (gradients,) = torch.autograd.grad(logits.amax(1).sum(), captured)
    finally:
        hook.remove()
    (tokens,) = captured
    maps = grad_cam_plus_plus(tokens.detach()[:, 1:].float(), gradients[:, 1:].float())
    return resize_maps(min_max_scale(maps), images.shape[-1]), logits.detach()


def min_max_scale(maps: Tensor) -> Tensor:
    """Scale each map b n from its minimum and maximum to 0..1. A constant map becomes 0."""
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    spread = high - low
    return torch.where(spread > 0, (maps - low) / spread.where(spread > 0, 1), 0)


def resize_maps(maps: Tensor, size: int) -> Tensor:
    """Resize maps over a square grid of patches to pixels, bilinearly: b n -> b size size."""
    side = round(maps.shape[1] ** 0.5)
    grid = maps.view(len(maps), 1, side, side)
    return functional.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)[:, 0]


def overlay(images: Tensor, maps: Tensor, opacity: float = 0.5) -> Tensor:
    """Blend maps b h w, in matplotlib's turbo colours, over images b 3 h w in -1..1: uint8 b h w 3."""
    from matplotlib import colormaps

    colours = torch.from_numpy(colormaps["turbo"](maps.cpu().numpy())[..., :3])
    pixels = (images.cpu().double().permute(0, 2, 3, 1).clamp(-1, 1) + 1) / 2
    return (255 * ((1 - opacity) * pixels + opacity * colours)).round().to(torch.uint8)
