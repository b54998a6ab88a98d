"""Where a ViT looks: Grad-CAM++ on its last transformer block (Chattopadhay et al. 2018, arXiv 1710.11063).

Legend: b images, t = 1 + n tokens with the class token first, n patches, d channels, h w pixels, k classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfcluster.evaluate.final import classify_with
from pfcluster.models.pf_vit import PFViT
from pfcluster.models.vit import Classifier

LEAST_DENOMINATOR = 1.0
"""The paper's maps are behind a ReLU, so that its denominator 2 + g ΣA is at least 2 wherever a weight counts. Behind a
LayerNorm ΣA may be negative, and at g ΣA = -2 the formula has a pole, where one channel would paint the whole map."""


def plus_plus(activations: Tensor, gradients: Tensor) -> Tensor:
    """The map before scaling, b n, of a layer's patch tokens A and g = ∂S/∂A, b n d each.

    With Y = exp(S) of a class's score S the paper's weights are, for channel c and patch i,

        α_ic = g² / (2 g² + g³ Σ_j A_jc) = 1 / (2 + g Σ_j A_jc), and 0 where g = 0,
        w_c  = Σ_i α_ic ReLU(g_ic),
        L_i  = ReLU(Σ_c w_c A_ic);

    exp(S) itself, a factor of all weights, falls out when the map is scaled. Denominators below `LEAST_DENOMINATOR`
    are raised to it. pytorch-grad-cam adds 1e-6 to 2 g² + g³ ΣA, which for a ViT is more than g² itself: its weights
    are then nearly Σ g³. With that term these maps are its maps.
    """
    denominators = 2 + gradients * activations.sum(1, keepdim=True)
    weights = (gradients.relu() / denominators.clamp(min=LEAST_DENOMINATOR)).sum(1, keepdim=True)
    return (weights * activations).sum(2).relu()


def attention_maps(model: PFViT | Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """b 3 h w -> Grad-CAM++ maps of the predicted class b h w in 0..1, and logits b k.

    The layer is the last block's first norm, as pytorch-grad-cam's examples take it for ViTs: behind that block the
    classifier reads the class token alone, and patch tokens would have no gradient. A PF-ViT is asked as it classifies,
    through its emotion feature where it has a separator. Each map is scaled to 0..1 and resized bilinearly; a map
    without any positive evidence is 0.
    """
    held: list[Tensor] = []

    def cut(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        held.append(output.detach().requires_grad_())
        return held[-1]

    block = model.encoder.blocks[-1]
    assert isinstance(block.norm1, nn.Module)
    hook = block.norm1.register_forward_hook(cut)
    try:
        with torch.enable_grad():
            logits = classify_with(model)(images)
            # An image's score depends on no other image: one sum has all gradients.
            (gradients,) = torch.autograd.grad(logits.amax(1).sum(), held)
    finally:
        hook.remove()
    (tokens,) = held
    found = plus_plus(tokens.detach()[:, 1:].float(), gradients[:, 1:].float())
    return to_images(scaled(found), images.shape[-1]), logits.detach()


def scaled(maps: Tensor) -> Tensor:
    """Each map from its least to its largest value, in 0..1: b n. A constant one is 0."""
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    spread = high - low
    return torch.where(spread > 0, (maps - low) / spread.where(spread > 0, 1), 0)


def to_images(maps: Tensor, size: int) -> Tensor:
    """Patches on a square grid to pixels: b n -> b size size."""
    side = round(maps.shape[1] ** 0.5)
    grid = maps.view(len(maps), 1, side, side)
    return functional.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)[:, 0]


def painted(images: Tensor, maps: Tensor, opacity: float = 0.5) -> Tensor:
    """Maps b h w over images b 3 h w in -1..1, in matplotlib's turbo: uint8 b h w 3."""
    from matplotlib import colormaps

    colours = torch.from_numpy(colormaps["turbo"](maps.cpu().numpy())[..., :3])
    pixels = (images.cpu().double().permute(0, 2, 3, 1).clamp(-1, 1) + 1) / 2
    return (255 * ((1 - opacity) * pixels + opacity * colours)).round().to(torch.uint8)
