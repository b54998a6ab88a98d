"""SampleOrder, augmentation and sources: functions of the seed and the step, whatever the layout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pfcluster.config import AugmentConfig, DataConfig, RunConfig, SyntheticConfig
from pfcluster.data import transforms
from pfcluster.data.batch import make_micro_batches, patch_order
from pfcluster.data.dataset import open_dataset
from pfcluster.data.sampler import FullShuffle, SampleOrder, read_ahead
from pfcluster.data.types import DataError, RawBatch
from pfcluster.distributed.process_group import World, derive_seed, generator


def sample_indices(first: int, count: int, *, size: int, seed: int) -> torch.Tensor:
    return SampleOrder(size, FullShuffle(size, seed)).samples(first, count)


TINY = SyntheticConfig(train=20, validation=8, test=8, identities=5)


def test_an_epoch_takes_every_sample_once_and_the_next_in_another_order():
    order = sample_indices(0, 20, size=10, seed=1)
    assert sorted(order[:10].tolist()) == sorted(order[10:].tolist()) == list(range(10))
    assert order[:10].tolist() != order[10:].tolist()
    assert order.tolist() != sample_indices(0, 20, size=10, seed=2).tolist()


def test_the_order_does_not_depend_on_where_reading_starts():
    whole = sample_indices(0, 60, size=17, seed=3)
    tensor_shards = [sample_indices(first, 7, size=17, seed=3) for first in range(0, 56, 7)]
    assert torch.equal(torch.cat(tensor_shards), whole[:56])


def test_reading_ahead_keeps_the_order_and_passes_errors_on():
    assert list(read_ahead(lambda step: step * step, range(3, 20))) == [step * step for step in range(3, 20)]

    def broken(step):
        if step == 2:
            raise ValueError("sample 2")
        return step

    with pytest.raises(ValueError, match="sample 2"):
        list(read_ahead(broken, range(5)))


def test_streams_of_random_numbers_are_independent_and_repeatable():
    assert derive_seed(0, "mask", 1) == derive_seed(0, "mask", 1)
    assert len({derive_seed(0, "mask", 1), derive_seed(0, "mask", 2), derive_seed(1, "mask", 1)}) == 3


def test_no_augmentation_leaves_images_alone():
    nothing = AugmentConfig(flip=0, crop_scale=(1, 1), crop_ratio=(1, 1), rotation=0, jitter=0, erasing=0)
    images = torch.rand(3, 3, 24, 24) * 2 - 1
    changed = transforms.augment(images, transforms.draw_params(nothing, 3, generator(0)))
    assert torch.allclose(changed, images, atol=1e-5)


def test_a_flip_is_a_flip():
    always = AugmentConfig(flip=1, crop_scale=(1, 1), crop_ratio=(1, 1), rotation=0, jitter=0, erasing=0)
    images = torch.rand(2, 3, 24, 24) * 2 - 1
    changed = transforms.augment(images, transforms.draw_params(always, 2, generator(0)))
    assert torch.allclose(changed, images.flip(3), atol=1e-5)


def test_a_crop_enlarges_what_it_takes():
    half = AugmentConfig(flip=0, crop_scale=(0.25, 0.25), crop_ratio=(1, 1), rotation=0, jitter=0, erasing=0)
    ramp = torch.linspace(-1, 1, 64).expand(4, 3, 64, 64)
    changed = transforms.augment(ramp, transforms.draw_params(half, 4, generator(5)))
    widths = changed[:, 0, 0, -1] - changed[:, 0, 0, 0]
    assert torch.allclose(widths, torch.ones(4), atol=0.03)


def test_erasing_greys_a_rectangle_of_the_stated_area():
    erase = AugmentConfig(flip=0, crop_scale=(1, 1), crop_ratio=(1, 1), rotation=0, jitter=0, erasing=1)
    changed = transforms.augment(torch.ones(50, 3, 64, 64), transforms.draw_params(erase, 50, generator(1)))
    share = (changed[:, 0] == 0).float().mean((1, 2))
    assert 0.01 < share.min() < share.max() < 0.22


def test_jitter_stays_in_range_and_keeps_grey_grey():
    wild = AugmentConfig(flip=0, crop_scale=(1, 1), crop_ratio=(1, 1), rotation=0, jitter=0.9, erasing=0)
    changed = transforms.augment(
        torch.rand(8, 1, 16, 16).expand(-1, 3, -1, -1) * 2 - 1, transforms.draw_params(wild, 8, generator(2))
    )
    assert changed.min() >= -1
    assert changed.max() <= 1
    assert torch.allclose(changed[:, 0], changed[:, 2], atol=1e-5)


def test_bytes_survive_the_way_to_floats_and_back():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(transforms.to_uint8(transforms.to_float(images)), images)


@pytest.mark.parametrize("rotation", [0.0, 20.0])
def test_cropping_in_bytes_on_the_host_is_cropping_on_the_device_but_for_rounding(rotation):
    config = AugmentConfig(flip=0.5, crop_scale=(0.5, 0.9), rotation=rotation, jitter=0)
    smooth = torch.rand(16, 3, 6, 6).mul(255)
    smooth = transforms.resize(smooth, 96).round().clamp(0, 255).to(torch.uint8)
    changes = transforms.draw_params(config, 16, generator(3))
    expected = transforms.augment(transforms.to_float(smooth), changes)
    cropped = transforms.crop_on_host(smooth, changes, 96)
    found = transforms.augment(transforms.to_float(cropped), changes, cropped=True)
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))  # outside the photo the two reflect differently
    assert (found - expected)[inner].abs().mean() < 0.012
    assert transforms.crop_on_host(smooth, changes, 48).shape == (16, 3, 48, 48)


@pytest.mark.parametrize("grad_accumulation_steps", [1, 2])
def test_two_ranks_get_the_two_halves_of_one_process_batch(grad_accumulation_steps):
    config = RunConfig(objective="mae", batch_size=8, data=DataConfig(synthetic=TINY))
    config = replace(config, engine=replace(config.engine, grad_accumulation_steps=grad_accumulation_steps))
    raw = RawBatch(torch.randint(0, 256, (8, 3, 48, 48), dtype=torch.uint8), torch.arange(8))
    cpu = torch.device("cpu")
    whole = make_micro_batches(raw, config, 5, World(0, 1, cpu))
    parts = []
    for rank in range(2):
        mine = World(rank, 2, cpu).slice_of(8)
        parts += make_micro_batches(RawBatch(raw.images[mine], raw.labels[mine]), config, 5, World(rank, 2, cpu))
    for name in ("images", "labels", "order"):
        assert torch.equal(
            torch.cat([getattr(batch, name) for batch in whole]), torch.cat([getattr(batch, name) for batch in parts])
        )


def test_patch_orders_are_permutations():
    orders = patch_order(RunConfig(), 5, "mask", 0)
    assert orders.shape == (5, 64)
    assert torch.equal(orders.sort(1).values, torch.arange(64).expand(5, -1))


def test_splits_of_the_synthetic_data_share_no_person_and_no_face():
    dataset = open_dataset(DataConfig(synthetic=TINY), 0)
    people = [set(split.faces.identities().tolist()) for split in (dataset.train, dataset.validation, dataset.test)]
    assert not people[0] & people[1]
    assert not people[1] & people[2]
    keys = [set(split.keys(torch.arange(len(split)))) for split in (dataset.train, dataset.validation, dataset.test)]
    assert sum(map(len, keys)) == len(set.union(*keys)) == 36


def test_a_limited_training_split_is_a_subset_drawn_by_the_seed():
    config = DataConfig(synthetic=TINY, limit=6)
    first, again, other = (open_dataset(config, seed).train for seed in (0, 0, 1))
    keys = first.keys(torch.arange(6))
    assert len(set(keys)) == len(first) == 6
    assert keys == again.keys(torch.arange(6)) != other.keys(torch.arange(6))
    assert torch.equal(first.batch(torch.arange(6)).labels, first.labels())


def test_data_that_cannot_be_is_refused_in_words(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.json"):
        open_dataset(DataConfig(shards=str(tmp_path)), 0)
    with pytest.raises(DataError, match=r"data\.expected_name"):
        open_dataset(DataConfig(expected_name="rafdb", synthetic=TINY), 0)
    with pytest.raises(DataError, match="32 to 224"):
        open_dataset(DataConfig(size=240, synthetic=TINY), 0)
