"""Statistics of batch norms for averaged weights, which differ from those of training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pfcluster.config import RunConfig
from pfcluster.data.types import Split
from pfcluster.distributed.process_group import World, generator
from pfcluster.engine.base import norm_statistics
from pfcluster.engine.precision import autocast
from pfcluster.evaluate.classification import load_images

MAX_IMAGES = 2000
"""Images from which the statistics are computed; the whole training split if it has fewer."""


@torch.no_grad()
def recompute_batch_norms(config: RunConfig, model: nn.Module, train: Split, world: World) -> dict[str, Tensor]:
    """Set the running statistics of a model to means over batches of training images without augmentation, equal on all
    ranks (Izmailov et al. 2018, section 3.2); -> the norms' buffers by name. They are kept where the weights are so
    large that the new statistics would not be finite.
    """
    before = {name: buffer.clone() for name, buffer in norm_statistics(model).items()}
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a mean of all batches
    model.train()
    indices = torch.randperm(len(train), generator=generator(config.seed, "batch norms"))[:MAX_IMAGES]
    size = min(config.evaluate.batch_size, len(indices))
    for rows in indices[: len(indices) // size * size].split(size):
        images, _ = load_images(train, rows, config.data.size, world.device)
        with autocast(world.device, config.engine.precision):
            model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    after = norm_statistics(model)
    if not all(buffer.isfinite().all() for buffer in after.values()):
        for name, buffer in after.items():
            buffer.copy_(before[name])
    return {name: buffer.clone() for name, buffer in after.items()}
