"""Linear probes of a run: of its tokens, trained on part of the training split and tested on the evaluated split, and
of the pixels that PF-ViT generates.

Legend: n images, h w pixels, f features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pfcluster.config import RunConfig
from pfcluster.data.splits import identities_of
from pfcluster.data.types import Dataset, Split
from pfcluster.distributed.process_group import World, generator
from pfcluster.evaluate.classification import load_images, rank_batches
from pfcluster.evaluate.linear_probe import pool_tokens, probe_features
from pfcluster.models.pf_vit import PFViT
from pfcluster.models.vit import Classifier


def probe_run(config: RunConfig, dataset: Dataset, split: Split, model: nn.Module, world: World) -> dict[str, Any]:
    """Emotion and identity probes (`linear_probe.probe_features`) of f, and of f_e and f_p if there is a separator,
    with `evaluate.n_probe_images` images of the training split and as many of `split`. For PF-ViT, if identities are
    known, also identity probes of the pixels of photos, reconstructions and poker faces.

    Empty on all ranks but 0, if probes are off, and for models without tokens.
    """
    n_images = config.evaluate.n_probe_images
    if n_images == 0 or not isinstance(model, (PFViT, Classifier)):
        return {}
    train_indices = torch.randperm(len(dataset.train), generator=generator(config.seed, "probe"))[:n_images]
    test_indices = torch.arange(min(n_images, len(split)))
    train, train_labels = token_features(config, dataset.train, train_indices, model, world)
    test, test_labels = token_features(config, split, test_indices, model, world)
    identities = [identities_of(split)[index] for index in test_indices.tolist()]
    if isinstance(model, PFViT) and any(identities):
        test |= _pixel_features(config, split, test_indices, model, world)
    if not world.is_main:
        return {}
    return probe_features(train, train_labels, test, test_labels, identities, config.evaluate.n_probe_identities)


@torch.inference_mode()
def token_features(
    config: RunConfig, split: Split, indices: Tensor, model: PFViT | Classifier, world: World
) -> tuple[dict[str, Tensor], Tensor]:
    """Pooled tokens by name, n f each, and the labels n of the images that were read, on the CPU of every rank."""
    names = ("f", "f_e", "f_p") if isinstance(model, PFViT) and model.separator is not None else ("f",)
    features = {name: torch.zeros(len(indices), 2 * config.model.width, device=world.device) for name in names}
    labels = torch.zeros(len(indices), dtype=torch.long, device=world.device)
    for rows in rank_batches(len(indices), config.evaluate.batch_size, world):
        images, labels[rows.to(world.device)] = load_images(split, indices[rows], config.data.size, world.device)
        token_sets = model.separate(images) if isinstance(model, PFViT) else (model.encoder(images),)
        for name, tokens in zip(names, token_sets, strict=False):
            assert tokens is not None
            features[name][rows.to(world.device)] = pool_tokens(tokens)
    return {name: world.sum(values).cpu() for name, values in features.items()}, world.sum(labels).cpu()


@torch.inference_mode()
def _pixel_features(config: RunConfig, split: Split, indices: Tensor, model: PFViT, world: World) -> dict[str, Tensor]:
    """Pixels of photos and of PF-ViT's outputs for them, by name, n (3 h w) each, on the CPU of every rank."""
    names = ("input", "reconstruction") if model.separator is None else ("input", "reconstruction", "poker face")
    size = 3 * config.data.size**2
    features = {name: torch.zeros(len(indices), size, device=world.device) for name in names}
    for rows in rank_batches(len(indices), config.evaluate.batch_size, world):
        images, _ = load_images(split, indices[rows], config.data.size, world.device)
        views = model(images, emotion_view=False)
        for name, pixels in zip(names, (images, views.reconstruction, views.poker), strict=False):
            features[name][rows.to(world.device)] = pixels.float().clamp(-1, 1).flatten(1)
    return {name: world.sum(values).cpu() for name, values in features.items()}
