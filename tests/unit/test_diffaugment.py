"""Augmentation of the discriminator's inputs: independent of the number of ranks, shared by a sample and its fakes,
differentiable.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pfcluster.config import ConfigError, EngineConfig, PfMagConfig, RunConfig
from pfcluster.config.io import from_json, to_json
from pfcluster.data.batch import Batch, make_micro_batches
from pfcluster.data.diffaugment import DiscriminatorAugment, draw_discriminator_augment, empty_discriminator_augment
from pfcluster.data.types import RawBatch
from pfcluster.distributed.process_group import World
from pfcluster.training import parity

ONE_PROCESS = World(0, 1, torch.device("cpu"))
ALL = PfMagConfig(
    discriminator_augment=("flip", "colour", "translation", "cutout"), instance_noise=0.2, discriminator_updates=2
)


def config(pf_mag: PfMagConfig = ALL, batch_size: int = 8, **engine: int) -> RunConfig:
    base = parity.tiny_config("pf_mag", EngineConfig(device="cpu", **engine), batch_size=batch_size)  # type: ignore[arg-type]
    return replace(base, pf_mag=pf_mag)


def ramp(rows: int = 8) -> torch.Tensor:
    """An image in which every value is different: 1 3 h w."""
    return torch.arange(1.0, 3 * rows * rows + 1).view(1, 3, rows, rows)


def test_flip_precedes_shift_and_borders_are_grey():
    image = ramp()
    moved = DiscriminatorAugment(flip=torch.tensor([True]), shift=torch.tensor([[2, -1]]))(image)
    mirrored = image.flip(3)
    assert torch.equal(moved[:, :, 2:, :-1], mirrored[:, :, :-2, 1:])
    assert (moved[:, :, :2] == 0).all()
    assert (moved[:, :, :, -1] == 0).all()
    assert torch.equal(DiscriminatorAugment(flip=torch.tensor([False]))(image), image)
    assert torch.equal(DiscriminatorAugment(shift=torch.tensor([[0, 0]]))(image), image)


def test_cutout_is_half_the_image_size_and_may_cross_the_border():
    image = torch.ones(2, 3, 8, 8)
    augmented = DiscriminatorAugment(hole=torch.tensor([[4, 4], [0, 8]]))(image)
    assert (augmented[0, :, 2:6, 2:6] == 0).all()
    assert augmented[0].sum() == 3 * (64 - 16)
    assert (augmented[1, :, :2, 6:] == 0).all()
    assert augmented[1].sum() == 3 * (64 - 4)


def test_colour_changes_brightness_saturation_and_contrast():
    image = torch.rand(1, 3, 4, 4)
    assert torch.allclose(DiscriminatorAugment(colour=torch.tensor([[0.0, 1.0, 1.0]]))(image), image, atol=1e-6)
    assert torch.allclose(DiscriminatorAugment(colour=torch.tensor([[0.3, 1.0, 1.0]]))(image), image + 0.3, atol=1e-6)
    grey = DiscriminatorAugment(colour=torch.tensor([[0.0, 0.0, 1.0]]))(image)
    assert torch.allclose(grey, image.mean(1, keepdim=True).expand_as(image), atol=1e-6)
    flat = DiscriminatorAugment(colour=torch.tensor([[0.0, 1.0, 0.5]]))(image)
    assert torch.allclose(flat - image.mean(), 0.5 * (image - image.mean()), atol=1e-6)


def test_parameters_have_the_ranges_of_diffaugment():
    values = config(batch_size=512)
    values = replace(values, pf_mag=replace(ALL, instance_noise=0.0))
    drawn = draw_discriminator_augment(values, 3, ONE_PROCESS)[0]
    assert drawn.flip is not None
    assert drawn.shift is not None
    assert drawn.hole is not None
    assert drawn.colour is not None
    assert 0.4 < drawn.flip.float().mean() < 0.6
    assert (drawn.shift.min(), drawn.shift.max()) == (-4, 4)  # an eighth of 32
    assert (drawn.hole.min(), drawn.hole.max()) == (0, 32)
    low, high = drawn.colour.amin(0), drawn.colour.amax(0)
    assert torch.allclose(low, torch.tensor([-0.5, 0.0, 0.5]), atol=0.02)
    assert torch.allclose(high, torch.tensor([0.5, 2.0, 1.5]), atol=0.02)


def test_sample_and_its_fakes_share_a_draw_but_updates_do_not():
    (batch,) = make_micro_batches(_raw(8), config(), 3, ONE_PROCESS)
    assert len(batch.discriminator_augments) == 3
    repeated = batch.augment_for_discriminator(torch.cat([batch.images, batch.images]), 0)
    assert torch.equal(repeated[:8], repeated[8:])
    augmented = [batch.augment_for_discriminator(batch.images, update) for update in (0, 1, -1)]
    assert not torch.equal(augmented[0], augmented[1])
    assert not torch.equal(augmented[1], augmented[2])
    assert torch.equal(batch.augment_for_discriminator(batch.images, 2), augmented[2])


def test_draws_do_not_depend_on_number_of_ranks_but_on_step():
    (one_process,) = make_micro_batches(_raw(8), config(), 3, ONE_PROCESS)
    parts: list[Batch] = []
    for rank in range(2):
        world = World(rank, 2, torch.device("cpu"))
        rank_slice = world.slice_of(8)
        raw = RawBatch(_raw(8).images[rank_slice], _raw(8).labels[rank_slice])
        parts += make_micro_batches(raw, config(grad_accumulation_steps=2), 3, world)
    assert len(parts) == 4
    for update in range(3):
        together = torch.cat([part.augment_for_discriminator(part.images, update) for part in parts])
        assert torch.equal(together, one_process.augment_for_discriminator(one_process.images, update))
    again, other = (draw_discriminator_augment(config(), step, ONE_PROCESS)[0] for step in (3, 4))
    assert again.noise is not None
    assert other.noise is not None
    assert torch.equal(again.noise, one_process.discriminator_augments[0].noise)
    assert not torch.equal(again.noise, other.noise)


def test_draws_do_not_depend_on_other_transforms():
    shift = PfMagConfig(discriminator_augment=("translation",))
    assert torch.equal(
        draw_discriminator_augment(config(shift), 3, ONE_PROCESS)[0].shift,
        draw_discriminator_augment(config(), 3, ONE_PROCESS)[0].shift,
    )
    assert draw_discriminator_augment(config(PfMagConfig()), 3, ONE_PROCESS) == ()


def test_noise_has_its_standard_deviation():
    noise = draw_discriminator_augment(config(batch_size=64), 0, ONE_PROCESS)[0].noise
    assert noise is not None
    assert noise.std().item() == pytest.approx(0.2, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.005)


def test_gradients_flow_to_the_source_pixels():
    images = torch.rand(8, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    augment = draw_discriminator_augment(config(), 3, ONE_PROCESS)[0]
    direction, weights = torch.randn_like(images), torch.randn_like(images)
    (gradient,) = torch.autograd.grad((augment(images) * weights).sum(), images)
    step = 1e-6
    with torch.no_grad():
        change = ((augment(images + step * direction) - augment(images - step * direction)) * weights).sum() / (
            2 * step
        )
    assert (gradient * direction).sum().item() == pytest.approx(change.item(), rel=1e-6)
    assert gradient.abs().sum() > 0


def test_empty_draws_have_the_same_shapes():
    real, empty = draw_discriminator_augment(config(), 0, ONE_PROCESS), empty_discriminator_augment(config(), 8)
    assert len(real) == len(empty) == 3
    for drawn, blank in zip(real, empty, strict=True):
        for one, other in zip(drawn, blank, strict=True):
            assert one is not None
            assert other is not None
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
    assert empty_discriminator_augment(config(PfMagConfig()), 8) == ()


def test_transforms_are_read_from_json_by_name():
    assert from_json(to_json(config())) == config()
    with pytest.raises(
        ConfigError, match=r"pf_mag\.discriminator_augment must be one of flip, colour, translation, cutout"
    ):
        from_json('{"pf_mag": {"discriminator_augment": ["rotation"]}}')


def _raw(images: int) -> RawBatch:
    rng = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=rng)
    return RawBatch(pixels, torch.zeros(images, dtype=torch.long))
