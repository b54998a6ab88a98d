"""Sample orders: functions of the seed and the sample number, independent of ranks, workers and the first step."""

from __future__ import annotations

import pytest
import torch

from pfcluster.config import ConfigError, DataConfig, SyntheticConfig
from pfcluster.data.dataset import open_dataset, sample_order
from pfcluster.data.sampler import Balanced, BlockShuffle, FullShuffle, SampleOrder, read_ahead
from pfcluster.data.types import DataError, Dataset
from pfcluster.distributed.process_group import World

SIZE = 203
LABELS = torch.tensor([0] * 150 + [1] * 40 + [3] * 13)
SHUFFLES = {
    "full": FullShuffle(SIZE, 4),
    "blocks": BlockShuffle(SIZE, 4, 16, 3),
    "balanced": Balanced(LABELS, 4),
}
STEPS, BATCH = 20, 40


def read(shuffle: FullShuffle | BlockShuffle | Balanced, ranks: int, workers: int, first: int = 0) -> torch.Tensor:
    """Samples of all steps from `first` on, concatenated over ranks."""
    per_rank = []
    for rank in range(ranks):
        order, rank_slice = SampleOrder(SIZE, shuffle), World(rank, ranks, torch.device("cpu")).slice_of(BATCH)

        def load(step: int, order: SampleOrder = order, rank_slice: slice = rank_slice) -> torch.Tensor:
            return order.samples(step * BATCH, BATCH)[rank_slice]

        per_rank.append(torch.stack(list(read_ahead(load, range(first, STEPS), workers))))
    return torch.cat(per_rank, dim=1)


@pytest.mark.parametrize("name", SHUFFLES)
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("workers", [0, 2, 5])
def test_order_does_not_depend_on_ranks_workers_and_first_step(name: str, ranks: int, workers: int) -> None:
    expected = read(SHUFFLES[name], 1, 0)
    assert torch.equal(read(SHUFFLES[name], ranks, workers), expected)
    assert torch.equal(read(SHUFFLES[name], ranks, workers, first=7), expected[7:])


@pytest.mark.parametrize("name", ["full", "blocks"])
def test_epochs_are_different_permutations(name: str) -> None:
    first, second = (SHUFFLES[name].epoch(number) for number in (0, 1))
    assert torch.equal(first.sort().values, torch.arange(SIZE))
    assert torch.equal(second.sort().values, torch.arange(SIZE))
    assert not torch.equal(first, second)


def test_block_shuffle_reads_few_blocks_per_window() -> None:
    epoch = BlockShuffle(13 * 16, 4, 16, 3).epoch(0)
    for window in epoch.split(48):
        assert len((window // 16).unique()) <= 3
    assert not torch.equal(epoch[:16].sort().values, epoch[:16])


def test_balanced_epochs_have_equal_class_counts_and_cycle_through_samples() -> None:
    shuffle = Balanced(LABELS, 4)
    epochs = [shuffle.epoch(number) for number in range(12)]
    for epoch in epochs:
        counts = torch.bincount(LABELS[epoch], minlength=4)
        assert counts.sum() == SIZE
        assert counts[2] == 0
        assert counts[[0, 1, 3]].max() - counts[[0, 1, 3]].min() <= 1
    draws = torch.bincount(torch.cat(epochs), minlength=SIZE)
    for label in (0, 1, 3):
        assert draws[label == LABELS].max() - draws[label == LABELS].min() <= 1
    per_class = torch.bincount(LABELS[torch.cat(epochs)], minlength=4)
    assert per_class[[0, 1, 3]].max() - per_class[[0, 1, 3]].min() <= 1


def test_sample_order_follows_the_config() -> None:
    data = DataConfig(synthetic=SyntheticConfig(train=20, validation=8, test=8, identities=5))
    dataset = open_dataset(data, 0)
    cases = {
        "uniform": (data, dataset),
        "blocks": (DataConfig(order="blocks", block=4, shuffle_window=2), dataset),
        "remote": (data, Dataset("remote", ("fear",), dataset.train, dataset.validation, None, remote=True)),
        "balanced": (DataConfig(sampling="balanced"), dataset),
    }
    kinds = {name: type(sample_order(config, each, 0).shuffle) for name, (config, each) in cases.items()}
    assert kinds == {"uniform": FullShuffle, "blocks": BlockShuffle, "remote": BlockShuffle, "balanced": Balanced}
    unlabelled = Dataset("faces", (), dataset.train, dataset.validation, None)
    with pytest.raises(DataError, match="built without labels"):
        sample_order(DataConfig(sampling="balanced"), unlabelled, 0)
    with pytest.raises(ConfigError, match=r"data\.order"):
        DataConfig(sampling="balanced", order="blocks")
