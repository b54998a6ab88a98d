"""Micro-batches of a training step: samples on the device, augmented, with all random parameters of the step.

Random draws depend on a sample's place in the global batch, not on the number of ranks (distributed/counter_random.py).

Legend: b images, n patches, l transformer blocks, h w pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfcluster.config import ConfigError, RunConfig
from pfcluster.data import transforms
from pfcluster.data.mixup import MixParams, draw_mix_params, mix_pairs, swap_pairs
from pfcluster.data.types import RawBatch
from pfcluster.distributed.counter_random import uniform
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
    discriminator_augments: tuple[transforms.AugmentParams, ...] = ()
    """One per discriminator update, then one for PF-ViT's update, for the images of `every(pf_mag.generate_every)`.
    Empty if the discriminator's input is not changed."""

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
            tuple(params.part(number, parts) for params in self.discriminator_augments),
        )

    def tensors(self) -> list[Tensor]:
        """All tensors on the device."""
        partners = () if self.mix_partners is None else (self.mix_partners[0],)
        augments = [each for params in self.discriminator_augments for each in params.tensors()]
        optional = [each for each in (self.order, self.drop_path_scales) if each is not None]
        return [self.images, self.labels, *partners, *optional, *augments]

    def every(self, number: int) -> Batch:
        """Images, labels and order of every n-th sample, and the augmentations of the discriminator's input, which are
        those of these samples.
        """
        if number == 1:
            return self
        order = None if self.order is None else self.order[::number]
        augments = self.discriminator_augments
        return Batch(self.images[::number], self.labels[::number], order, discriminator_augments=augments)

    def augment_for_discriminator(self, images: Tensor, update: int) -> Tensor:
        """Augment the discriminator's input: (v b) 3 h w -> (v b) 3 h w, v images of each sample of the batch, all
        with the sample's parameters. `update` is the discriminator update of the step, -1 for PF-ViT's update.
        """
        if not self.discriminator_augments:
            return images
        params = self.discriminator_augments[update]
        return torch.cat([transforms.augment(chunk.float(), params) for chunk in images.split(len(self.images))])


@dataclass(frozen=True)
class HostBatch:
    """This rank's samples of a step and all random parameters of the step, before they are moved to the device."""

    raw: RawBatch
    """With `data.augment_on host` already cropped. The images may be in device memory (`data.cache_mode device`)."""
    augment: transforms.AugmentParams
    order: Tensor | None
    mix: MixParams | None
    drop_path_scales: Tensor | None
    discriminator_augments: tuple[transforms.AugmentParams, ...]

    def pinned(self) -> HostBatch:
        """A copy in pinned memory, from which copies to a GPU do not block the host."""

        def pin(values: Tensor | None) -> Tensor | None:
            return values if values is None or values.is_cuda else values.pin_memory()

        def pin_params(params: transforms.AugmentParams) -> transforms.AugmentParams:
            return transforms.AugmentParams(*(each.pin_memory() for each in params.tensors()))

        images, labels = pin(self.raw.images), pin(self.raw.labels)
        assert images is not None
        assert labels is not None
        return HostBatch(
            RawBatch(images, labels),
            pin_params(self.augment),
            pin(self.order),
            self.mix,
            pin(self.drop_path_scales),
            tuple(pin_params(params) for params in self.discriminator_augments),
        )


def make_micro_batches(raw: RawBatch, config: RunConfig, step: int, world: World) -> list[Batch]:
    """The micro-batches of this rank's samples of a step: `draw_host_batch`, then `move_to_device`."""
    return move_to_device(draw_host_batch(raw, config, step, world), config, world)


def draw_host_batch(raw: RawBatch, config: RunConfig, step: int, world: World) -> HostBatch:
    """Draw the random parameters of this rank's samples of a step, and crop on the host if the config does."""
    rank_slice = world.slice_of(config.batch_size)
    params = draw_augment_params(config, step, world)
    if config.data.augment_on == "host":
        raw = RawBatch(transforms.crop_on_host(raw.images, params, config.data.size), raw.labels)
    mix = None
    if config.augment.mixes:
        mix = draw_mix_params(config.augment, config.data.size, generator(config.seed, "mix", step))
    return HostBatch(
        raw,
        params,
        patch_order(config, rank_slice, "mask", step) if config.hides_patches else None,
        mix,
        draw_drop_path_scales(config, step, rank_slice) if config.model.drop_path > 0 else None,
        draw_discriminator_augments(config, step, world),
    )


def move_to_device(host: HostBatch, config: RunConfig, world: World) -> list[Batch]:
    """Copy a batch to the device, augment it there and split it into `engine.grad_accumulation_steps` micro-batches.

    From pinned memory nothing here waits for the device.
    """

    def move(values: Tensor) -> Tensor:
        return values.to(world.device, non_blocking=True)

    images = transforms.resize(move(host.raw.images), config.data.size)
    cropped = config.data.augment_on == "host"
    images = transforms.augment(images.div_(127.5).sub_(1.0), host.augment.to(world.device), cropped=cropped)
    labels = move(host.raw.labels)
    partners = None
    if host.mix is not None:
        images, partners = mix_pairs(images, host.mix), (swap_pairs(labels), host.mix.weight)
    batch = Batch(
        images,
        labels,
        None if host.order is None else move(host.order),
        partners,
        None if host.drop_path_scales is None else move(host.drop_path_scales),
        tuple(params.to(world.device) for params in host.discriminator_augments),
    )
    parts = config.engine.grad_accumulation_steps
    return [batch.part(number, parts) for number in range(parts)]


def draw_discriminator_augments(config: RunConfig, step: int, world: World) -> tuple[transforms.AugmentParams, ...]:
    """Augmentation of what the discriminator sees of this rank's samples in a step: one per discriminator update, then
    one for PF-ViT's update; on the CPU. Empty if the config does not augment it.
    """
    if config.objective != "pf_mag" or not config.discriminator_augment.transforms:
        return ()
    samples = world.slice_of(config.batch_size // config.pf_mag.generate_every)
    drawn = (
        uniform(samples, transforms.N_DRAWS, config.seed, f"discriminator-augment-{update}", step)
        for update in range(config.pf_mag.discriminator_updates + 1)
    )
    return tuple(transforms.params_from(config.discriminator_augment, each) for each in drawn)


def require_fitting_micro_batch(config: RunConfig, world_size: int) -> None:
    """Raises ConfigError if images are mixed in pairs and a rank's micro-batch has an odd number of them, or if PF-MAG
    generates from every n-th image and n does not divide the micro-batch.
    """
    micro_batch = config.batch_size // (world_size * config.engine.grad_accumulation_steps)
    every = config.pf_mag.generate_every
    if config.objective == "pf_mag" and micro_batch % every:
        raise ConfigError(
            f"pf_mag.generate_every must divide the images of a micro-batch, {micro_batch} here: batch_size"
            f" {config.batch_size} over {world_size} processes times engine.grad_accumulation_steps"
            f" {config.engine.grad_accumulation_steps}; got {every}"
        )
    if config.objective == "pf_mag" and config.pf_mag.weights.swap and micro_batch // every % 2:
        raise ConfigError(
            "pf_mag.weights.swap exchanges the expressions of pairs of a micro-batch's images to generate from, of"
            f" which there are {micro_batch // every} here: batch_size {config.batch_size} over {world_size} processes"
            f" times engine.grad_accumulation_steps {config.engine.grad_accumulation_steps} times pf_mag.generate_every"
            f" {every}; make batch_size a multiple of twice that"
        )
    if config.augment.mixes and micro_batch % 2:
        raise ConfigError(
            f"augment.mixup and augment.cutmix mix pairs of a micro-batch, which has {micro_batch} images here:"
            f" batch_size {config.batch_size} over {world_size} processes times engine.grad_accumulation_steps"
            f" {config.engine.grad_accumulation_steps}; make batch_size a multiple of twice that"
        )


def draw_augment_params(config: RunConfig, step: int, world: World) -> transforms.AugmentParams:
    """Augmentation parameters of this rank's samples of a step."""
    drawn = uniform(world.slice_of(config.batch_size), transforms.N_DRAWS, config.seed, "augment", step)
    return transforms.params_from(config.augment, drawn)


def draw_drop_path_scales(config: RunConfig, step: int, samples: slice) -> Tensor:
    """Stochastic depth of some samples of a step's global batch: l 2 b. 0 with the block's probability p, else
    1 / (1 - p); p grows linearly from 0 in the first block to `model.drop_path` in the last.
    """
    depth = config.model.depth
    probability = torch.linspace(0, config.model.drop_path, depth).view(-1, 1, 1)
    drawn = uniform(samples, 2 * depth, config.seed, "drop-path", step).T.reshape(depth, 2, -1)
    return (drawn >= probability).float() / (1 - probability)


def patch_order(config: RunConfig, samples: slice, stream: str, step: int) -> Tensor:
    """Random permutations of the patches of some samples of a step's global batch, visible patches first: -> b n.
    `stream` names the random numbers.
    """
    patches = (config.data.size // config.model.patch) ** 2
    return uniform(samples, patches, config.seed, stream, step).argsort(dim=1)
