"""Load weights of other projects through `model.init` and compare outputs with the project's nets.

Legend: b images, n patches, d channels, p patch side.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pfcluster.config import RunConfig, presets
from pfcluster.config.io import with_values
from pfcluster.models import factory
from pfcluster.models.mae import MAE
from pfcluster.models.pretrained import external_sizes
from pfcluster.models.vit import Classifier
from tests.reference.original_mae import OriginalMae, imagenet_normalised

SMALL = {"width": 128, "depth": 3, "heads": 2, "decoder_width": 64, "decoder_depth": 2, "decoder_heads": 2}


def random_images(size: int) -> Tensor:
    """Two random images in -1..1: 2 3 size size."""
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def encoder_difference(reference_tokens: Tensor, weights: Path, images: Tensor) -> float:
    """Largest absolute difference between reference tokens b (1 + n) d and this project's encoder output."""
    model = _load(weights, "finetune")
    assert isinstance(model, Classifier)
    return float((model.encoder(images) - reference_tokens).abs().max())


@torch.no_grad()
def decoder_difference(reference: OriginalMae, weights: Path, images: Tensor) -> float:
    """Largest absolute difference between the predictions of masked patches, with the same random mask."""
    model = _load(weights, "mae")
    assert isinstance(model, MAE)
    patch = model.encoder.patch
    generator = torch.Generator().manual_seed(2)
    order = torch.rand(len(images), len(model.encoder.positions), generator=generator).argsort(1)
    predicted = reference(imagenet_normalised(images), order, model.kept)  # b n (p p 3)
    channels_first = predicted.unflatten(2, (patch, patch, 3)).permute(0, 1, 4, 2, 3).flatten(2)
    masked = order[:, model.kept :, None].expand(-1, -1, 3 * patch**2)
    return float((model(images, order) - channels_first.gather(1, masked)).abs().max())


def _load(weights: Path, objective: str) -> torch.nn.Module:
    """A classifier (finetune) or MAE (mae) with the weights and sizes of a file."""
    role = "scratch" if objective == "finetune" else "mae"
    config: RunConfig = presets.recipe("small")[role]
    config = with_values(config, external_sizes(str(weights)) | {"model.init": str(weights)})
    return factory.build(config, 8)["model"].eval()
