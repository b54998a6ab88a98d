"""What Δ is shown: images changed and blurred with noise on their way to it, gradients flowing back through.

DiffAugment (Zhao et al. 2020) and instance noise (Sønderby et al. 2017). A sample has one draw for a turn, which its
real image and its fakes share. Each turn of a step has draws of its own, PF-ViT's too. All chance is that of the
sample's place in the batch of all ranks, so that any layout shows the same.

Legend: b images, h w pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pfcluster.config import DiscriminatorTransform, RunConfig
from pfcluster.distributed.process_group import World, derive_seed, generator

SHIFT, HOLE = 0.125, 0.5
"""Largest shift, and side of the hole, over the image's side (Zhao et al. 2020, their code's)."""


class DiscriminatorAugment(NamedTuple):
    """The draws of a turn, each None where the config does not ask for it."""

    flip: Tensor | None = None
    """b: true mirrors the image."""
    colour: Tensor | None = None
    """b 3: what brightness adds, factors of saturation and contrast."""
    shift: Tensor | None = None
    """b 2: pixels down and to the right; zeros (grey) come in."""
    hole: Tensor | None = None
    """b 2: row and column of the middle of a grey square."""
    noise: Tensor | None = None
    """b 3 h w, with its deviation."""

    def part(self, number: int, parts: int) -> DiscriminatorAugment:
        """One of so many equal parts of the batch."""
        return DiscriminatorAugment(*[None if values is None else values.chunk(parts)[number] for values in self])

    def __call__(self, images: Tensor) -> Tensor:
        """b 3 h w -> what Δ sees of them, the same shape."""
        if self.colour is not None:
            images = _recolour(images, self.colour)
        if self.flip is not None or self.shift is not None:
            images = _move(images, self.flip, self.shift)
        if self.hole is not None:
            images = images * _outside(images, self.hole)
        return images if self.noise is None else images + self.noise


def draw_discriminator_augment(config: RunConfig, step: int, world: World) -> tuple[DiscriminatorAugment, ...]:
    """This rank's draws of a step, Δ's turns first, PF-ViT's last; none where Δ sees images as they are."""
    if config.objective != "pf_mag" or not config.pf_mag.transforms_discriminator_input:
        return ()
    deviation = config.pf_mag.instance_noise
    return tuple(_draw(config, step, turn, deviation, world) for turn in range(config.pf_mag.discriminator_updates + 1))


def empty_discriminator_augment(config: RunConfig, count: int) -> tuple[DiscriminatorAugment, ...]:
    """As `draw_discriminator_augment`, for so many images, without contents, on torch's default device: to count
    with."""
    asked, size = config.pf_mag.discriminator_augment, config.data.size
    if config.objective != "pf_mag" or not config.pf_mag.transforms_discriminator_input:
        return ()

    def made(change: DiscriminatorTransform, *shape: int, kind: torch.dtype = torch.float32) -> Tensor | None:
        return torch.empty(count, *shape, dtype=kind) if change in asked else None

    return tuple(
        DiscriminatorAugment(
            made("flip", kind=torch.bool),
            made("colour", 3),
            made("translation", 2, kind=torch.long),
            made("cutout", 2, kind=torch.long),
            torch.empty(count, 3, size, size) if config.pf_mag.instance_noise > 0 else None,
        )
        for _ in range(config.pf_mag.discriminator_updates + 1)
    )


def _draw(config: RunConfig, step: int, turn: int, deviation: float, world: World) -> DiscriminatorAugment:
    asked, count, size = config.pf_mag.discriminator_augment, config.batch_size, config.data.size
    mine = world.slice_of(count)

    def uniform(change: DiscriminatorTransform, *shape: int) -> Tensor | None:
        """In [0, 1), from a stream of its own: what else is asked for changes nothing here."""
        if change not in asked:
            return None
        return torch.rand(count, *shape, generator=generator(config.seed, f"discriminator-{change}-{turn}", step))[mine]

    flip, colour = uniform("flip"), uniform("colour", 3)
    shift, hole = uniform("translation", 2), uniform("cutout", 2)
    reach = int(size * SHIFT + 0.5)
    drawn = DiscriminatorAugment(
        flip=None if flip is None else flip < 0.5,
        colour=None if colour is None else _factors(colour),
        shift=None if shift is None else (shift * (2 * reach + 1)).long() - reach,
        hole=None if hole is None else (hole * (size + 1)).long(),
        noise=_noise(config, step, turn, deviation, world) if deviation > 0 else None,
    )
    return DiscriminatorAugment(
        *[None if values is None else values.to(world.device, non_blocking=True) for values in drawn]
    )


def _factors(drawn: Tensor) -> Tensor:
    """Uniform b 3 in [0, 1) -> brightness -0.5..0.5, saturation 0..2, contrast 0.5..1.5 (Zhao et al. 2020)."""
    return drawn * drawn.new_tensor([1.0, 2.0, 1.0]) + drawn.new_tensor([-0.5, 0.0, 0.5])


def _noise(config: RunConfig, step: int, turn: int, deviation: float, world: World) -> Tensor:
    """b 3 h w of this rank's samples, each with a seed of its own: so much is drawn on the device, and no other's."""
    size = config.data.size
    chance = torch.Generator(device=world.device)
    drawn = []
    for place in range(config.batch_size)[world.slice_of(config.batch_size)]:
        chance.manual_seed(derive_seed(config.seed, "instance-noise", turn, step, place))
        drawn.append(torch.randn(3, size, size, generator=chance, device=world.device))
    return torch.stack(drawn) * deviation


def _recolour(images: Tensor, colour: Tensor) -> Tensor:
    brightness, saturation, contrast = colour.view(-1, 3, 1, 1, 1).unbind(1)
    images = images + brightness
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * saturation
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * contrast


def _move(images: Tensor, flip: Tensor | None, shift: Tensor | None) -> Tensor:
    """Mirror, then shift: b 3 h w, b or None, b 2 or None -> b 3 h w. One gather over places in the input."""
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


def _outside(images: Tensor, hole: Tensor) -> Tensor:
    """False within the squares, whose middles are given as b 2: -> b 1 h w."""
    height, width = images.shape[2:]
    half = int(height * HOLE + 0.5) // 2

    def within(middle: Tensor, extent: int) -> Tensor:
        place = torch.arange(extent, device=images.device)
        return (place >= middle.view(-1, 1) - half) & (place < middle.view(-1, 1) + half)

    return ~(within(hole[:, 0], height).unsqueeze(2) & within(hole[:, 1], width).unsqueeze(1)).unsqueeze(1)
