"""Fit the erasure of f_p to the weights that are evaluated, on images of the training split without augmentation."""

from __future__ import annotations

import torch
from torch.nn import functional

from pfcluster.config import RunConfig
from pfcluster.data.types import Split
from pfcluster.distributed.process_group import World, generator
from pfcluster.engine.precision import autocast
from pfcluster.evaluate.classification import load_images, rank_batches
from pfcluster.models.erasure import ClassStatistics, class_means
from pfcluster.models.pf_vit import PFViT

MAX_IMAGES = 8000
"""Images to which the erasure is fitted; the whole training split if it has fewer."""


@torch.inference_mode()
def calibrate_erasure(config: RunConfig, model: PFViT, train: Split, world: World) -> None:
    """Fit `model.erasure.calibrated`, equal on all ranks. A collective."""
    assert model.erasure is not None
    assert model.separator is not None
    indices = torch.randperm(len(train), generator=generator(config.seed, "erasure"))[:MAX_IMAGES]
    counts, sums = (torch.zeros_like(values).double() for values in (model.erasure.counts, model.erasure.sums))
    squares = torch.zeros_like(model.erasure.scatter).double()
    model.eval()
    for rows in rank_batches(len(indices), config.evaluate.batch_size, world):
        images, labels = load_images(train, indices[rows], config.data.size, world.device)
        with autocast(world.device, config.engine.precision):
            tokens = model.separator(model.encoder(images))[1].double()
        of_class = functional.one_hot(labels, model.erasure.classes).double()
        counts += of_class.sum(0)
        sums += torch.einsum("bk,btd->ktd", of_class, tokens)
        squares += torch.einsum("btd,bte->tde", tokens, tokens)
    model.train()
    counts, sums, squares = world.sum(counts), world.sum(sums), world.sum(squares)
    means = class_means(counts, sums)
    scatter = squares - torch.einsum("k,ktd,kte->tde", counts, means, means)
    model.erasure.calibrated.fit(ClassStatistics(counts, sums, scatter))
