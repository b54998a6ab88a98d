"""What a step gets: a batch on the device, augmented, in micro-batches. Chance is that of the whole batch of all ranks.

Legend: b images, n patches, l blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfcluster.config import ConfigError, RunConfig
from pfcluster.data import transforms
from pfcluster.data.diffaugment import DiscriminatorAugment, draw_discriminator_augment
from pfcluster.data.mixup import draw_mixing, mix, neighbours
from pfcluster.data.types import RawBatch
from pfcluster.distributed.process_group import World, generator


@dataclass(frozen=True)
class Batch:
    """One micro-batch: images b 3 h w in -1..1, labels b, and where patches are hidden a permutation of them b n."""

    images: Tensor
    labels: Tensor
    order: Tensor | None = None
    partners: tuple[Tensor, float] | None = None
    """Of mixed images: the labels of what is mixed in, b, and the share that is left of the image itself."""
    scales: Tensor | None = None
    """Of each block's two branches for each sample, l 2 b: 0 leaves it out (stochastic depth)."""
    shown: tuple[DiscriminatorAugment, ...] = ()
    """What Δ sees of the images in each of its turns, and last in PF-ViT's; none shows them as they are."""

    @property
    def main_labels(self) -> Tensor:
        """Labels b of which an image has the most."""
        return self.labels if self.partners is None or self.partners[1] >= 0.5 else self.partners[0]

    def part(self, number: int, parts: int) -> Batch:
        """One of so many equal micro-batches."""

        def cut(values: Tensor | None, dim: int = 0) -> Tensor | None:
            return None if values is None else values.chunk(parts, dim)[number]

        partners = None if self.partners is None else (self.partners[0].chunk(parts)[number], self.partners[1])
        images, labels = self.images.chunk(parts)[number], self.labels.chunk(parts)[number]
        shown = tuple(each.part(number, parts) for each in self.shown)
        return Batch(images, labels, cut(self.order), partners, cut(self.scales, 2), shown)

    def show(self, images: Tensor, turn: int) -> Tensor:
        """What Δ sees of images that belong to the batch's, v of each: (v b) 3 h w -> the same; turn -1 is PF-ViT's."""
        if not self.shown:
            return images
        return torch.cat([self.shown[turn](part) for part in images.split(len(self.images))])


def prepare(raw: RawBatch, config: RunConfig, step: int, world: World) -> list[Batch]:
    """Move this rank's samples to the device and augment them there; cut them into `engine.grad_accumulation_steps`
    micro-batches.
    """
    mine = world.slice_of(config.batch_size)
    changes = draw_augment_params(config, step, world)
    images = transforms.resize(raw.images.to(world.device, non_blocking=True), config.data.size)
    images = transforms.augment(images.div_(127.5).sub_(1.0), changes, cropped=config.data.augment_on == "host")
    labels = raw.labels.to(world.device, non_blocking=True)
    order = patch_order(config, config.batch_size, "mask", step)[mine] if config.hides_patches else None
    if order is not None:
        order = order.to(world.device, non_blocking=True)
    partners = None
    if config.augment.mixes:
        chance = generator(config.seed, "mix", step)
        mixing = draw_mixing(config.augment, config.data.size, chance)
        images, partners = mix(images, mixing), (neighbours(labels), mixing.share)
    scales = None
    if config.model.drop_path > 0:
        scales = drop_path_scales(config, step)[:, :, mine].to(world.device, non_blocking=True)
    whole = Batch(images, labels, order, partners, scales, draw_discriminator_augment(config, step, world))
    return [
        whole.part(number, config.engine.grad_accumulation_steps)
        for number in range(config.engine.grad_accumulation_steps)
    ]


def drop_path_scales(config: RunConfig, step: int) -> Tensor:
    """Of all samples of a step: l 2 b, 0 with each block's chance, else what keeps the mean."""
    depth = config.model.depth
    chance = torch.linspace(0, config.model.drop_path, depth).view(-1, 1, 1)
    drawn = torch.rand(depth, 2, config.batch_size, generator=generator(config.seed, "drop-path", step))
    return (drawn >= chance).float() / (1 - chance)


def require_pairs(config: RunConfig, world_size: int) -> None:
    """Raises ConfigError where images are to be mixed in pairs and a rank's micro-batch is odd."""
    share = config.batch_size // (world_size * config.engine.grad_accumulation_steps)
    if config.augment.mixes and share % 2:
        raise ConfigError(
            f"augment.mixup and augment.cutmix mix pairs of a micro-batch, which has {share} images here: batch_size"
            f" {config.batch_size} over {world_size} processes times engine.grad_accumulation_steps"
            f" {config.engine.grad_accumulation_steps}; make batch_size a multiple of twice that"
        )


def draw_augment_params(config: RunConfig, step: int, world: World) -> transforms.AugmentParams:
    """What augmentation does to this rank's samples of a step."""
    chance = generator(config.seed, "augment", step)
    return transforms.draw(config.augment, config.batch_size, chance)[world.slice_of(config.batch_size)]


def patch_order(config: RunConfig, count: int, stream: str, step: int) -> Tensor:
    """Random permutations of an image's patches, visible ones first: -> count n."""
    patches = (config.data.size // config.model.patch) ** 2
    noise = torch.rand(count, patches, generator=generator(config.seed, stream, step))
    return noise.argsort(dim=1)
