"""Linear probes of a run: its tokens over a part of the training split and over the measured one, and the pixels of
what it paints.

Legend: b n images, h w pixels, f features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pfcluster.config import RunConfig
from pfcluster.data.dataset import people_of
from pfcluster.data.types import Dataset, Split
from pfcluster.distributed.process_group import World, generator
from pfcluster.evaluate.classification import chunks, load_images
from pfcluster.evaluate.linear_probe import pooled, probe
from pfcluster.models.pf_vit import PFViT
from pfcluster.models.vit import Classifier


def probe_run(config: RunConfig, dataset: Dataset, split: Split, model: nn.Module, world: World) -> dict[str, Any]:
    """What linear readers find in f, and with a separator in f_e and f_p (see `probes.probe`), of
    `evaluate.n_probe_images`
    training images and as many of the measured split; and which people they find in the pixels of photos,
    reconstructions and poker faces. Empty where probes are off, or the model has no tokens, and on
    all ranks but the first.
    """
    if config.evaluate.n_probe_images == 0 or not isinstance(model, (PFViT, Classifier)):
        return {}
    drawn = torch.randperm(len(dataset.train), generator=generator(config.seed, "probe"))[
        : config.evaluate.n_probe_images
    ]
    asked = torch.arange(min(config.evaluate.n_probe_images, len(split)))
    train = _features(config, dataset.train, drawn, model, world)
    test = _features(config, split, asked, model, world)
    people = [people_of(split)[index] for index in asked.tolist()]
    if isinstance(model, PFViT) and any(people):
        test |= _pixels(config, split, asked, model, world)
    if not world.is_main:
        return {}
    most = config.evaluate.n_probe_identities
    return probe(train, dataset.train.labels()[drawn], test, split.labels()[asked], people, most)


@torch.inference_mode()
def _features(
    config: RunConfig, split: Split, chosen: Tensor, model: PFViT | Classifier, world: World
) -> dict[str, Tensor]:
    """Pooled tokens by name, n f each, on the CPU of every rank."""
    names = ("f", "f_e", "f_p") if isinstance(model, PFViT) and model.separator is not None else ("f",)
    whole = {name: torch.zeros(len(chosen), 2 * config.model.width, device=world.device) for name in names}
    for places in chunks(len(chosen), config.evaluate.batch_size, world):
        images, _ = load_images(split, chosen[places], config.data.size, world.device)
        tokens = model.separate(images) if isinstance(model, PFViT) else (model.encoder(images),)
        for name, found in zip(names, tokens, strict=False):
            assert found is not None
            whole[name][places.to(world.device)] = pooled(found)
    return {name: world.sum(part).cpu() for name, part in whole.items()}


@torch.inference_mode()
def _pixels(config: RunConfig, split: Split, chosen: Tensor, model: PFViT, world: World) -> dict[str, Tensor]:
    """Pixels of photos and of what PF-ViT paints of them, n (3 h w) each, on the CPU of every rank."""
    names = ("input", "reconstruction") if model.separator is None else ("input", "reconstruction", "poker face")
    size = 3 * config.data.size**2
    whole = {name: torch.zeros(len(chosen), size, device=world.device) for name in names}
    for places in chunks(len(chosen), config.evaluate.batch_size, world):
        images, _ = load_images(split, chosen[places], config.data.size, world.device)
        views = model(images, emotion_view=False)
        for name, shown in zip(names, (images, views.reconstruction, views.poker), strict=False):
            whole[name][places.to(world.device)] = shown.float().clamp(-1, 1).flatten(1)
    return {name: world.sum(part).cpu() for name, part in whole.items()}
