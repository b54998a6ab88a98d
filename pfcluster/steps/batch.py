"""What a step gets: a batch on the device, augmented, in micro-batches. Chance is that of the whole batch of all ranks.

Legend: b images, n patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfcluster.config import RunConfig
from pfcluster.data import transforms
from pfcluster.data.split_types import RawBatch
from pfcluster.dist import World, generator


@dataclass(frozen=True)
class Batch:
    """One micro-batch: images b 3 h w in -1..1, labels b, and where patches are hidden a permutation of them b n."""

    images: Tensor
    labels: Tensor
    order: Tensor | None = None


def prepare(raw: RawBatch, config: RunConfig, step: int, world: World) -> list[Batch]:
    """Move this rank's samples to the device and augment them there; cut them into `engine.accumulate`
    micro-batches.
    """
    mine = world.slice_of(config.batch_size)
    changes = drawn_changes(config, step, world)
    images = transforms.resize(raw.images.to(world.device, non_blocking=True), config.data.size)
    images = transforms.augment(images.div_(127.5).sub_(1.0), changes, cropped=config.data.crop == "host")
    labels = raw.labels.to(world.device, non_blocking=True)
    order = patch_order(config, config.batch_size, "mask", step)[mine] if config.hides_patches else None
    if order is not None:
        order = order.to(world.device, non_blocking=True)
    parts = config.engine.accumulate
    orders = [None] * parts if order is None else order.chunk(parts)
    return [Batch(*part) for part in zip(images.chunk(parts), labels.chunk(parts), orders, strict=True)]


def drawn_changes(config: RunConfig, step: int, world: World) -> transforms.Changes:
    """What augmentation does to this rank's samples of a step."""
    chance = generator(config.seed, "augment", step)
    return transforms.draw(config.augment, config.batch_size, chance)[world.slice_of(config.batch_size)]


def patch_order(config: RunConfig, count: int, stream: str, step: int) -> Tensor:
    """Random permutations of an image's patches, visible ones first: -> count n."""
    patches = (config.data.size // config.model.patch) ** 2
    noise = torch.rand(count, patches, generator=generator(config.seed, stream, step))
    return noise.argsort(dim=1)
