"""Augmentation of the discriminator's input, differentiable with respect to the images.

DiffAugment (Zhao et al. 2020) and instance noise (Sønderby et al. 2017). In one update, a sample's real image and its
generated images share the sample's parameters; each update of a step, PF-ViT's included, has its own.

Random draws cover the global batch, independent of rank count.

Legend: b images, h w pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pfcluster.config import DiscriminatorTransform, RunConfig
from pfcluster.distributed.process_group import World, derive_seed, generator

SHIFT, HOLE = 0.125, 0.5
"""Largest shift and side of the cutout square, as fractions of the image's side (code of Zhao et al. 2020)."""


class DiscriminatorAugment(NamedTuple):
    """Parameters of one update; None for a transform that the config does not enable."""

    flip: Tensor | None = None
    """bool b: whether to mirror the image."""
    colour: Tensor | None = None
    """b 3: brightness offset, saturation factor, contrast factor."""
    shift: Tensor | None = None
    """b 2: pixels down and to the right; padded with 0 (grey)."""
    hole: Tensor | None = None
    """b 2: row and column of the centre of a square set to 0 (grey)."""
    noise: Tensor | None = None
    """b 3 h w, added to the image; scaled by its standard deviation already."""

    def part(self, number: int, parts: int) -> DiscriminatorAugment:
        """Chunk `number` of `parts` equal chunks of the batch."""
        return DiscriminatorAugment(*[None if values is None else values.chunk(parts)[number] for values in self])

    def __call__(self, images: Tensor) -> Tensor:
        """b 3 h w -> b 3 h w."""
        if self.colour is not None:
            images = _recolour(images, self.colour)
        if self.flip is not None or self.shift is not None:
            images = _move(images, self.flip, self.shift)
        if self.hole is not None:
            images = images * _outside_cutout(images, self.hole)
        return images if self.noise is None else images + self.noise


def draw_discriminator_augment(config: RunConfig, step: int, world: World) -> tuple[DiscriminatorAugment, ...]:
    """This rank's parameters of a step: one per discriminator update, then one for PF-ViT's update. Empty if the config
    does not change the discriminator's input.

    Random draws cover the global batch, independent of rank count.
    """
    if config.objective != "pf_mag" or not config.pf_mag.transforms_discriminator_input:
        return ()
    deviation = config.pf_mag.instance_noise
    updates = config.pf_mag.discriminator_updates + 1
    return tuple(_draw(config, step, update, deviation, world) for update in range(updates))


def empty_discriminator_augment(config: RunConfig, count: int) -> tuple[DiscriminatorAugment, ...]:
    """Uninitialised tensors of the shapes of `draw_discriminator_augment` for `count` images, on torch's default device
    (for FLOP and memory estimates).
    """
    enabled, size = config.pf_mag.discriminator_augment, config.data.size
    if config.objective != "pf_mag" or not config.pf_mag.transforms_discriminator_input:
        return ()

    def empty(name: DiscriminatorTransform, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor | None:
        return torch.empty(count, *shape, dtype=dtype) if name in enabled else None

    return tuple(
        DiscriminatorAugment(
            empty("flip", dtype=torch.bool),
            empty("colour", 3),
            empty("translation", 2, dtype=torch.long),
            empty("cutout", 2, dtype=torch.long),
            torch.empty(count, 3, size, size) if config.pf_mag.instance_noise > 0 else None,
        )
        for _ in range(config.pf_mag.discriminator_updates + 1)
    )


def _draw(config: RunConfig, step: int, update: int, deviation: float, world: World) -> DiscriminatorAugment:
    enabled, count, size = config.pf_mag.discriminator_augment, config.batch_size, config.data.size
    rank_slice = world.slice_of(count)

    def uniform(name: DiscriminatorTransform, *shape: int) -> Tensor | None:
        """In [0, 1), of a separate random stream per transform: enabling one does not change another's draws."""
        if name not in enabled:
            return None
        stream = generator(config.seed, f"discriminator-{name}-{update}", step)
        return torch.rand(count, *shape, generator=stream)[rank_slice]

    flip, colour = uniform("flip"), uniform("colour", 3)
    shift, hole = uniform("translation", 2), uniform("cutout", 2)
    reach = int(size * SHIFT + 0.5)
    drawn = DiscriminatorAugment(
        flip=None if flip is None else flip < 0.5,
        colour=None if colour is None else _colour_params(colour),
        shift=None if shift is None else (shift * (2 * reach + 1)).long() - reach,
        hole=None if hole is None else (hole * (size + 1)).long(),
        noise=_noise(config, step, update, deviation, world) if deviation > 0 else None,
    )
    return DiscriminatorAugment(
        *[None if values is None else values.to(world.device, non_blocking=True) for values in drawn]
    )


def _colour_params(uniform: Tensor) -> Tensor:
    """Uniform b 3 in [0, 1) -> brightness -0.5..0.5, saturation 0..2, contrast 0.5..1.5 (Zhao et al. 2020)."""
    return uniform * uniform.new_tensor([1.0, 2.0, 1.0]) + uniform.new_tensor([-0.5, 0.0, 0.5])


def _noise(config: RunConfig, step: int, update: int, deviation: float, world: World) -> Tensor:
    """Instance noise of this rank's samples: b 3 h w. Each sample has a seed of its own, so that a rank draws for its
    samples only.
    """
    size = config.data.size
    rng = torch.Generator(device=world.device)
    drawn = []
    for place in range(config.batch_size)[world.slice_of(config.batch_size)]:
        rng.manual_seed(derive_seed(config.seed, "instance-noise", update, step, place))
        drawn.append(torch.randn(3, size, size, generator=rng, device=world.device))
    return torch.stack(drawn) * deviation


def _recolour(images: Tensor, colour: Tensor) -> Tensor:
    brightness, saturation, contrast = colour.view(-1, 3, 1, 1, 1).unbind(1)
    images = images + brightness
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * saturation
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * contrast


def _move(images: Tensor, flip: Tensor | None, shift: Tensor | None) -> Tensor:
    """Mirror, then shift, in one gather: b 3 h w, flip b or None, shift b 2 or None -> b 3 h w."""
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device).view(1, -1, 1)
    columns = torch.arange(width, device=images.device).view(1, 1, -1)
    if shift is not None:
        rows, columns = rows - shift[:, 0].view(-1, 1, 1), columns - shift[:, 1].view(-1, 1, 1)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    if flip is not None:
        columns = torch.where(flip.view(-1, 1, 1), width - 1 - columns, columns)
    place = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    index = place.flatten(1).unsqueeze(1).expand(len(images), images.shape[1], -1)
    moved = images.flatten(2).gather(2, index).view_as(images)
    return moved * inside.unsqueeze(1)


def _outside_cutout(images: Tensor, hole: Tensor) -> Tensor:
    """Whether a pixel lies outside its image's square, whose centre is in `hole`, b 2: -> bool b 1 h w."""
    height, width = images.shape[2:]
    half = int(height * HOLE + 0.5) // 2

    def within(centre: Tensor, extent: int) -> Tensor:
        place = torch.arange(extent, device=images.device)
        return (place >= centre.view(-1, 1) - half) & (place < centre.view(-1, 1) + half)

    return ~(within(hole[:, 0], height).unsqueeze(2) & within(hole[:, 1], width).unsqueeze(1)).unsqueeze(1)
