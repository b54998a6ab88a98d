"""Fit the erasure of f_p to the weights that are evaluated, on images of the training split without augmentation."""

from __future__ import annotations

import torch

from pfcluster.config import RunConfig
from pfcluster.data.types import Split
from pfcluster.distributed.process_group import World, generator
from pfcluster.engine.precision import autocast
from pfcluster.evaluate.classification import load_images, rank_batches
from pfcluster.models.erasure import ClassStatistics, class_statistics, graded_emotions
from pfcluster.models.pf_vit import PFViT

MAX_IMAGES = 8000
"""Images to which the erasure is fitted; the whole training split if it has fewer."""


@torch.inference_mode()
def calibrate_erasure(config: RunConfig, model: PFViT, train: Split, world: World) -> None:
    """Fit `model.erasure.calibrated`, equal on all ranks. A collective."""
    assert model.erasure is not None
    assert model.separator is not None
    indices = torch.randperm(len(train), generator=generator(config.seed, "erasure"))[:MAX_IMAGES]
    running = (model.erasure.counts, model.erasure.tokens, model.erasure.emotions)
    sums = [torch.zeros_like(values).double() for values in running]
    model.eval()
    for rows in rank_batches(len(indices), config.evaluate.batch_size, world):
        images, labels = load_images(train, indices[rows], config.data.size, world.device)
        with autocast(world.device, config.engine.precision):
            emotion, face = model.separator(model.encoder(images))[:2]
            emotions = graded_emotions(model.classifier(emotion[:, 0]))
        for values, added in zip(sums, class_statistics(face, emotions, labels, lambda local: local), strict=True):
            values += added
    model.train()
    statistics = ClassStatistics(*(world.sum(values) for values in sums))
    model.erasure.calibrated.fit(statistics, statistics.finite())
