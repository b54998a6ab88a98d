"""Micro-batches of a training step: samples on the device, augmented, with all random parameters of the step.

Random draws cover the global batch, independent of rank count; a rank takes its slice of them.

Legend: b images, n patches, l transformer blocks, h w pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfcluster.config import ConfigError, RunConfig
from pfcluster.data import transforms
from pfcluster.data.diffaugment import DiscriminatorAugment, draw_discriminator_augment
from pfcluster.data.mixup import draw_mix_params, mix_pairs, swap_pairs
from pfcluster.data.types import RawBatch
from pfcluster.distributed.process_group import World, generator


@dataclass(frozen=True)
class Batch:
    """One micro-batch."""

    images: Tensor
    """b 3 h w in -1..1."""
    labels: Tensor
    """long (b,)."""
    order: Tensor | None = None
    """Permutation of each image's patches, visible ones first: b n. None if no patches are masked."""
    mix_partners: tuple[Tensor, float] | None = None
    """With mixup or cutmix: labels of the images mixed in, b, and the weight of the image's label, 0..1."""
    drop_path_scales: Tensor | None = None
    """Stochastic depth: factor of each block's two branches for each sample, l 2 b; 0 skips the branch."""
    discriminator_augments: tuple[DiscriminatorAugment, ...] = ()
    """One per discriminator update, then one for PF-ViT's update. Empty if the discriminator's input is not changed."""

    @property
    def main_labels(self) -> Tensor:
        """Labels with the larger weight: (b,). Equal to `labels` without mixing."""
        return self.labels if self.mix_partners is None or self.mix_partners[1] >= 0.5 else self.mix_partners[0]

    def part(self, number: int, parts: int) -> Batch:
        """Chunk `number` of `parts` equal chunks."""

        def chunk(values: Tensor | None, dim: int = 0) -> Tensor | None:
            return None if values is None else values.chunk(parts, dim)[number]

        partners = (
            None if self.mix_partners is None else (self.mix_partners[0].chunk(parts)[number], self.mix_partners[1])
        )
        return Batch(
            self.images.chunk(parts)[number],
            self.labels.chunk(parts)[number],
            chunk(self.order),
            partners,
            chunk(self.drop_path_scales, 2),
            tuple(augment.part(number, parts) for augment in self.discriminator_augments),
        )

    def augment_for_discriminator(self, images: Tensor, update: int) -> Tensor:
        """Augment the discriminator's input: (v b) 3 h w -> (v b) 3 h w, v images of each sample of the batch, all
        with the sample's parameters. `update` is the discriminator update of the step, -1 for PF-ViT's update.
        """
        if not self.discriminator_augments:
            return images
        augment = self.discriminator_augments[update]
        return torch.cat([augment(chunk) for chunk in images.split(len(self.images))])


def make_micro_batches(raw: RawBatch, config: RunConfig, step: int, world: World) -> list[Batch]:
    """Move this rank's samples of a step to the device, augment them there and split them into
    `engine.grad_accumulation_steps` micro-batches.
    """
    rank_slice = world.slice_of(config.batch_size)
    params = draw_augment_params(config, step, world)
    images = transforms.resize(raw.images.to(world.device, non_blocking=True), config.data.size)
    images = transforms.augment(images.div_(127.5).sub_(1.0), params, cropped=config.data.augment_on == "host")
    labels = raw.labels.to(world.device, non_blocking=True)
    order = patch_order(config, config.batch_size, "mask", step)[rank_slice] if config.hides_patches else None
    if order is not None:
        order = order.to(world.device, non_blocking=True)
    partners = None
    if config.augment.mixes:
        mix = draw_mix_params(config.augment, config.data.size, generator(config.seed, "mix", step))
        images, partners = mix_pairs(images, mix), (swap_pairs(labels), mix.weight)
    scales = None
    if config.model.drop_path > 0:
        scales = draw_drop_path_scales(config, step)[:, :, rank_slice].to(world.device, non_blocking=True)
    batch = Batch(images, labels, order, partners, scales, draw_discriminator_augment(config, step, world))
    parts = config.engine.grad_accumulation_steps
    return [batch.part(number, parts) for number in range(parts)]


def require_even_micro_batch(config: RunConfig, world_size: int) -> None:
    """Raises ConfigError if images are mixed in pairs and a rank's micro-batch has an odd number of them."""
    micro_batch = config.batch_size // (world_size * config.engine.grad_accumulation_steps)
    if config.augment.mixes and micro_batch % 2:
        raise ConfigError(
            f"augment.mixup and augment.cutmix mix pairs of a micro-batch, which has {micro_batch} images here:"
            f" batch_size {config.batch_size} over {world_size} processes times engine.grad_accumulation_steps"
            f" {config.engine.grad_accumulation_steps}; make batch_size a multiple of twice that"
        )


def draw_augment_params(config: RunConfig, step: int, world: World) -> transforms.AugmentParams:
    """Augmentation parameters of this rank's samples of a step.

    Random draws cover the global batch, independent of rank count.
    """
    params = transforms.draw_params(config.augment, config.batch_size, generator(config.seed, "augment", step))
    return params[world.slice_of(config.batch_size)]


def draw_drop_path_scales(config: RunConfig, step: int) -> Tensor:
    """Stochastic depth of all samples of a step: l 2 b. 0 with the block's probability p, else 1 / (1 - p); p grows
    linearly from 0 in the first block to `model.drop_path` in the last.

    Random draws cover the global batch, independent of rank count.
    """
    depth = config.model.depth
    probability = torch.linspace(0, config.model.drop_path, depth).view(-1, 1, 1)
    uniform = torch.rand(depth, 2, config.batch_size, generator=generator(config.seed, "drop-path", step))
    return (uniform >= probability).float() / (1 - probability)


def patch_order(config: RunConfig, count: int, stream: str, step: int) -> Tensor:
    """Random permutations of the patches of `count` images, visible patches first: -> count n.

    Random draws cover all `count` images, independent of rank count. `stream` names the random stream.
    """
    patches = (config.data.size // config.model.patch) ** 2
    noise = torch.rand(count, patches, generator=generator(config.seed, stream, step))
    return noise.argsort(dim=1)
