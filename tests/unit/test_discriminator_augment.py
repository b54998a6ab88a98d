"""Augmentation of the discriminator's inputs: independent of the number of ranks, shared by a sample and its fakes,
differentiable.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pfcluster.config import AugmentConfig, ConfigError, EngineConfig, PfMagConfig, RunConfig
from pfcluster.config.data import no_augment
from pfcluster.config.io import from_json, to_json
from pfcluster.data.batch import Batch, draw_discriminator_augments, make_micro_batches
from pfcluster.data.transforms import augment
from pfcluster.data.types import RawBatch
from pfcluster.distributed.process_group import World
from pfcluster.training import parity

ONE_PROCESS = World(0, 1, torch.device("cpu"))
STRONG = AugmentConfig(crop_scale=(0.6, 1.0), erasing=0.5)


def config(seen: AugmentConfig = STRONG, every: int = 1, **engine: int) -> RunConfig:
    base = parity.tiny_config("pf_mag", EngineConfig(device="cpu", **engine), batch_size=8)  # type: ignore[arg-type]
    options = PfMagConfig(discriminator_updates=2, generate_every=every)
    return replace(base, pf_mag=options, discriminator_augment=seen)


def raw(rows: slice = slice(None)) -> RawBatch:
    chance = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=chance)
    return RawBatch(pixels[rows], torch.arange(8)[rows] % 4)


def test_sample_and_its_fakes_share_a_draw_but_updates_do_not():
    (batch,) = make_micro_batches(raw(), config(), 3, ONE_PROCESS)
    assert len(batch.discriminator_augments) == 3
    repeated = batch.augment_for_discriminator(torch.cat([batch.images, batch.images]), 0)
    assert torch.equal(repeated[:8], repeated[8:])
    augmented = [batch.augment_for_discriminator(batch.images, update) for update in (0, 1, -1)]
    assert not torch.equal(augmented[0], augmented[1])
    assert not torch.equal(augmented[1], augmented[2])
    assert torch.equal(batch.augment_for_discriminator(batch.images, 2), augmented[2])


@pytest.mark.parametrize("every", [1, 2])
def test_draws_do_not_depend_on_number_of_ranks_but_on_step(every):
    (whole,) = make_micro_batches(raw(), config(every=every), 3, ONE_PROCESS)
    parts: list[Batch] = []
    for rank in range(2):
        world = World(rank, 2, torch.device("cpu"))
        values = config(every=every, grad_accumulation_steps=2)
        parts += make_micro_batches(raw(world.slice_of(8)), values, 3, world)
    whole, parts = whole.every(every), [part.every(every) for part in parts]
    assert [len(part.images) for part in parts] == [2 // every] * 4
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
    for update in range(3):
        together = torch.cat([part.augment_for_discriminator(part.images, update) for part in parts])
        assert torch.equal(together, whole.augment_for_discriminator(whole.images, update))
    other = draw_discriminator_augments(config(), 4, ONE_PROCESS)[0]
    assert not torch.equal(draw_discriminator_augments(config(), 3, ONE_PROCESS)[0].affine, other.affine)


def test_gradients_flow_to_the_source_pixels():
    images = 0.2 + 0.2 * torch.rand(8, 3, 32, 32, dtype=torch.float64)  # within the clipping of brightness
    images.requires_grad_()
    params = draw_discriminator_augments(config(), 3, ONE_PROCESS)[0]
    direction, weights = torch.randn_like(images), torch.randn_like(images)
    (gradient,) = torch.autograd.grad((augment(images, params) * weights).sum(), images)
    step = 1e-6
    with torch.no_grad():
        ahead, behind = (augment(images + sign * step * direction, params) for sign in (1, -1))
    change = ((ahead - behind) * weights).sum() / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(change.item(), rel=1e-5)
    assert gradient.abs().sum() > 0


def test_no_augmentation_leaves_batches_as_they_are():
    (batch,) = make_micro_batches(raw(), config(no_augment()), 0, ONE_PROCESS)
    assert batch.discriminator_augments == ()
    assert batch.augment_for_discriminator(batch.images, -1) is batch.images


@pytest.mark.parametrize(
    "change", [{"flip": 0.5}, {"crop_scale": (0.9, 1.0)}, {"rotation": 1.0}, {"jitter": 0.1}, {"erasing": 0.1}]
)
def test_every_transform_counts_as_augmentation(change):
    assert not no_augment().transforms
    assert replace(no_augment(), **change).transforms


def test_options_are_kept_in_json_and_mixing_is_refused():
    assert from_json(to_json(config())) == config()
    with pytest.raises(ConfigError, match=r"discriminator_augment\.mixup must be 0: the discriminator sees single"):
        config(AugmentConfig(mixup=0.2))
