"""Augmentation, micro-batches and datasets: functions of the seed and the step, independent of rank count."""

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
from pfcluster.distributed.counter_random import uniform
from pfcluster.distributed.process_group import World, derive_seed


def sample_indices(first: int, count: int, *, size: int, seed: int) -> torch.Tensor:
    return SampleOrder(size, FullShuffle(size, seed)).samples(first, count)


TINY = SyntheticConfig(train=20, validation=8, test=8, identities=5)


def drawn(options: AugmentConfig, count: int, seed: int) -> transforms.AugmentParams:
    return transforms.params_from(options, uniform(slice(0, count), transforms.N_DRAWS, seed, "augment", 0))


def test_each_epoch_has_every_sample_once_in_another_order():
    order = sample_indices(0, 20, size=10, seed=1)
    assert sorted(order[:10].tolist()) == sorted(order[10:].tolist()) == list(range(10))
    assert order[:10].tolist() != order[10:].tolist()
    assert order.tolist() != sample_indices(0, 20, size=10, seed=2).tolist()


def test_sample_order_does_not_depend_on_the_first_sample_read():
    samples = sample_indices(0, 60, size=17, seed=3)
    chunks = [sample_indices(first, 7, size=17, seed=3) for first in range(0, 56, 7)]
    assert torch.equal(torch.cat(chunks), samples[:56])


def test_read_ahead_keeps_the_order_and_raises_errors_of_load():
    assert list(read_ahead(lambda step: step * step, range(3, 20))) == [step * step for step in range(3, 20)]

    def failing(step):
        if step == 2:
            raise ValueError("sample 2")
        return step

    with pytest.raises(ValueError, match="sample 2"):
        list(read_ahead(failing, range(5)))


def test_derived_seeds_are_repeatable_and_differ_by_seed_and_step():
    assert derive_seed(0, "mask", 1) == derive_seed(0, "mask", 1)
    assert len({derive_seed(0, "mask", 1), derive_seed(0, "mask", 2), derive_seed(1, "mask", 1)}) == 3


def test_augmentation_without_changes_is_the_identity():
    disabled = AugmentConfig(flip=0, crop_scale=(1, 1), crop_ratio=(1, 1), rotation=0, jitter=0, erasing=0)
    images = torch.rand(3, 3, 24, 24) * 2 - 1
    changed = transforms.augment(images, drawn(disabled, 3, 0))
    assert torch.allclose(changed, images, atol=1e-5)


def test_flip_mirrors_images():
    always = AugmentConfig(flip=1, crop_scale=(1, 1), crop_ratio=(1, 1), rotation=0, jitter=0, erasing=0)
    images = torch.rand(2, 3, 24, 24) * 2 - 1
    changed = transforms.augment(images, drawn(always, 2, 0))
    assert torch.allclose(changed, images.flip(3), atol=1e-5)


def test_crop_is_enlarged_to_the_image_size():
    half = AugmentConfig(flip=0, crop_scale=(0.25, 0.25), crop_ratio=(1, 1), rotation=0, jitter=0, erasing=0)
    ramp = torch.linspace(-1, 1, 64).expand(4, 3, 64, 64)
    changed = transforms.augment(ramp, drawn(half, 4, 5))
    widths = changed[:, 0, 0, -1] - changed[:, 0, 0, 0]
    assert torch.allclose(widths, torch.ones(4), atol=0.03)


def test_erasing_sets_a_rectangle_of_the_configured_area_to_grey():
    erase = AugmentConfig(flip=0, crop_scale=(1, 1), crop_ratio=(1, 1), rotation=0, jitter=0, erasing=1)
    changed = transforms.augment(torch.ones(50, 3, 64, 64), drawn(erase, 50, 1))
    share = (changed[:, 0] == 0).float().mean((1, 2))
    assert 0.01 < share.min() < share.max() < 0.22


def test_jitter_stays_in_range_and_keeps_grey_images_grey():
    strong = AugmentConfig(flip=0, crop_scale=(1, 1), crop_ratio=(1, 1), rotation=0, jitter=0.9, erasing=0)
    changed = transforms.augment(torch.rand(8, 1, 16, 16).expand(-1, 3, -1, -1) * 2 - 1, drawn(strong, 8, 2))
    assert changed.min() >= -1
    assert changed.max() <= 1
    assert torch.allclose(changed[:, 0], changed[:, 2], atol=1e-5)


def test_to_uint8_inverts_to_float():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(transforms.to_uint8(transforms.to_float(images)), images)


@pytest.mark.parametrize("size", [96, 48])
@pytest.mark.parametrize("rotation", [0.0, 20.0])
def test_crop_on_host_equals_the_crop_on_the_device_up_to_rounding(rotation, size):
    config = AugmentConfig(flip=0.5, crop_scale=(0.5, 0.9), rotation=rotation, jitter=0)
    smooth = torch.rand(16, 3, 6, 6).mul(255)
    images = transforms.resize(smooth, 96).round().clamp(0, 255).to(torch.uint8)
    if size < 96:  # pixels that a reduction without antialiasing would keep
        images[..., ::2] = 0
    params = drawn(config, 16, 3)
    expected = transforms.augment(transforms.resize(transforms.to_float(images), size), params)
    cropped = transforms.crop_on_host(images, params, size)
    actual = transforms.augment(transforms.to_float(cropped), params, cropped=True)
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))  # the two reflect differently at the edge
    assert (actual - expected)[inner].abs().mean() < 0.012


@pytest.mark.parametrize("grad_accumulation_steps", [1, 2])
def test_two_ranks_get_the_halves_of_the_batch_of_one_process(grad_accumulation_steps):
    config = RunConfig(objective="mae", batch_size=8, data=DataConfig(synthetic=TINY))
    config = replace(config, engine=replace(config.engine, grad_accumulation_steps=grad_accumulation_steps))
    raw = RawBatch(torch.randint(0, 256, (8, 3, 48, 48), dtype=torch.uint8), torch.arange(8))
    cpu = torch.device("cpu")
    one_process = make_micro_batches(raw, config, 5, World(0, 1, cpu))
    two_ranks = []
    for rank in range(2):
        rank_slice = World(rank, 2, cpu).slice_of(8)
        two_ranks += make_micro_batches(
            RawBatch(raw.images[rank_slice], raw.labels[rank_slice]), config, 5, World(rank, 2, cpu)
        )
    for name in ("images", "labels", "order"):
        assert torch.equal(
            torch.cat([getattr(batch, name) for batch in one_process]),
            torch.cat([getattr(batch, name) for batch in two_ranks]),
        )


def test_patch_orders_are_permutations():
    orders = patch_order(RunConfig(), slice(0, 5), "mask", 0)
    assert orders.shape == (5, 64)
    assert torch.equal(orders.sort(1).values, torch.arange(64).expand(5, -1))


def test_synthetic_splits_have_disjoint_identities_and_samples():
    dataset = open_dataset(DataConfig(synthetic=TINY), 0)
    identities = [set(split.faces.identities().tolist()) for split in (dataset.train, dataset.validation, dataset.test)]
    assert not identities[0] & identities[1]
    assert not identities[1] & identities[2]
    keys = [set(split.keys(torch.arange(len(split)))) for split in (dataset.train, dataset.validation, dataset.test)]
    assert sum(map(len, keys)) == len(set.union(*keys)) == 36


def test_limit_selects_a_subset_by_the_seed():
    config = DataConfig(synthetic=TINY, limit=6)
    first, again, other = (open_dataset(config, seed).train for seed in (0, 0, 1))
    keys = first.keys(torch.arange(6))
    assert len(set(keys)) == len(first) == 6
    assert keys == again.keys(torch.arange(6)) != other.keys(torch.arange(6))
    assert torch.equal(first.batch(torch.arange(6)).labels, first.labels())


def test_unusable_data_configs_are_rejected(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.json"):
        open_dataset(DataConfig(shards=str(tmp_path)), 0)
    with pytest.raises(DataError, match=r"data\.expected_name"):
        open_dataset(DataConfig(expected_name="rafdb", synthetic=TINY), 0)
    with pytest.raises(DataError, match="32 to 224"):
        open_dataset(DataConfig(size=240, synthetic=TINY), 0)


@pytest.mark.parametrize("values", [1, 8, 14, 196])
def test_random_numbers_belong_to_a_sample_and_not_to_its_rank(values):
    whole = uniform(slice(0, 24), values, 3, "mask", 5)
    for ranks in (2, 3, 8, 24):
        parts = [
            uniform(World(rank, ranks, torch.device("cpu")).slice_of(24), values, 3, "mask", 5) for rank in range(ranks)
        ]
        assert torch.equal(torch.cat(parts), whole)
    assert len(whole.unique()) > 0.99 * whole.numel()  # of 2^24 values some repeat by chance
    for other in ((4, "mask", 5), (3, "augment", 5), (3, "mask", 6)):
        assert torch.isin(uniform(slice(0, 24), values, *other), whole).float().mean() < 0.01


def test_random_numbers_are_uniform_and_uncorrelated():
    values = uniform(slice(0, 20_000), 14, 0, "augment", 0).double()
    assert (values.min() >= 0, values.max() < 1) == (True, True)
    assert values.mean(0).tolist() == pytest.approx([0.5] * 14, abs=0.01)
    counts = torch.histc(values, 20, 0, 1)
    assert (counts / values.numel()).tolist() == pytest.approx([0.05] * 20, abs=0.001)
    correlation = torch.corrcoef(values.T) - torch.eye(14)
    assert correlation.abs().max() < 0.03
    assert torch.corrcoef(torch.stack([values[:-1].flatten(), values[1:].flatten()]))[0, 1].abs() < 0.01
