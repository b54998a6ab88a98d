"""Orders of samples: functions of the seed and the number alone, whatever reads them, wherever it starts."""

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
    """The samples of all steps from `first` on, put together from what every rank reads."""
    parts = []
    for rank in range(ranks):
        order, mine = SampleOrder(SIZE, shuffle), World(rank, ranks, torch.device("cpu")).slice_of(BATCH)

        def load(step: int, order: SampleOrder = order, mine: slice = mine) -> torch.Tensor:
            return order.samples(step * BATCH, BATCH)[mine]

        parts.append(torch.stack(list(read_ahead(load, range(first, STEPS), workers))))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("name", SHUFFLES)
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("workers", [0, 2, 5])
def test_order_is_the_same_for_any_ranks_and_workers_and_from_any_step(name: str, ranks: int, workers: int) -> None:
    whole = read(SHUFFLES[name], 1, 0)
    assert torch.equal(read(SHUFFLES[name], ranks, workers), whole)
    assert torch.equal(read(SHUFFLES[name], ranks, workers, first=7), whole[7:])


@pytest.mark.parametrize("name", ["full", "blocks"])
def test_an_epoch_takes_every_sample_once_and_no_two_epochs_are_alike(name: str) -> None:
    first, second = (SHUFFLES[name].epoch(number) for number in (0, 1))
    assert torch.equal(first.sort().values, torch.arange(SIZE))
    assert torch.equal(second.sort().values, torch.arange(SIZE))
    assert not torch.equal(first, second)


def test_blocks_touch_few_places_at_a_time() -> None:
    epoch = BlockShuffle(13 * 16, 4, 16, 3).epoch(0)
    for window in epoch.split(48):
        assert len((window // 16).unique()) <= 3
    assert not torch.equal(epoch[:16].sort().values, epoch[:16])


def test_balanced_epochs_show_every_class_equally_often_and_every_sample_in_turn() -> None:
    shuffle = Balanced(LABELS, 4)
    epochs = [shuffle.epoch(number) for number in range(12)]
    for epoch in epochs:
        counts = torch.bincount(LABELS[epoch], minlength=4)
        assert counts.sum() == SIZE
        assert counts[2] == 0
        assert counts[[0, 1, 3]].max() - counts[[0, 1, 3]].min() <= 1
    seen = torch.bincount(torch.cat(epochs), minlength=SIZE)
    for label in (0, 1, 3):
        assert seen[label == LABELS].max() - seen[label == LABELS].min() <= 1
    whole = torch.bincount(LABELS[torch.cat(epochs)], minlength=4)
    assert whole[[0, 1, 3]].max() - whole[[0, 1, 3]].min() <= 1


def test_what_a_config_orders() -> None:
    data = DataConfig(synthetic=SyntheticConfig(train=20, validation=8, test=8, identities=5))
    dataset = open_dataset(data, 0)
    shuffles = {
        "uniform": (data, dataset),
        "blocks": (DataConfig(order="blocks", block=4, shuffle_window=2), dataset),
        "remote": (data, Dataset("far", ("fear",), dataset.train, dataset.validation, None, remote=True)),
        "balanced": (DataConfig(sampling="balanced"), dataset),
    }
    kinds = {name: type(sample_order(config, chosen, 0).shuffle) for name, (config, chosen) in shuffles.items()}
    assert kinds == {"uniform": FullShuffle, "blocks": BlockShuffle, "remote": BlockShuffle, "balanced": Balanced}
    unlabelled = Dataset("faces", (), dataset.train, dataset.validation, None)
    with pytest.raises(DataError, match="built without labels"):
        sample_order(DataConfig(sampling="balanced"), unlabelled, 0)
    with pytest.raises(ConfigError, match=r"data\.order"):
        DataConfig(sampling="balanced", order="blocks")
