"""Batches prepared ahead: order, bound, errors, and draws that happen once."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import replace

import pytest
import torch

from pfcluster.data import batch as batch_module
from pfcluster.data.batch import make_micro_batches
from pfcluster.data.prefetch import micro_batches, run_ahead
from pfcluster.data.types import RawBatch
from pfcluster.distributed.process_group import World
from tests import tiny

CPU = World(0, 1, torch.device("cpu"))


def counting(stop: int, closed: list[bool]) -> Generator[int, None, None]:
    try:
        yield from range(stop)
    finally:
        closed.append(True)


def test_one_item_is_prepared_ahead_in_order() -> None:
    prepared: list[int] = []
    closed: list[bool] = []
    taken = []
    for item in run_ahead(counting(6, closed), lambda item: prepared.append(item) or item):
        taken.append(item)
        deadline = time.monotonic() + 20
        while len(prepared) < min(6, item + 2) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert len(prepared) == min(6, item + 2)
    assert taken == prepared == list(range(6))
    assert closed == [True]


def test_errors_are_raised_where_the_item_is_due_and_closing_ends_the_thread() -> None:
    def prepare(item: int) -> int:
        if item == 2:
            raise ValueError("item 2")
        return item

    closed: list[bool] = []
    taken = []
    with pytest.raises(ValueError, match="item 2"):
        taken.extend(run_ahead(counting(6, closed), prepare))
    assert closed == [True]
    ahead = run_ahead(counting(6, closed), lambda item: item)
    assert next(ahead) == 0
    ahead.close()  # type: ignore[attr-defined]
    assert closed == [True, True]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment_on", ["device", "host"])
def test_micro_batches_ahead_equal_those_made_one_by_one(
    workers: int, augment_on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.config("mae")
    config = replace(config, data=replace(config.data, workers=workers, augment_on=augment_on))
    draws: list[int] = []
    draw = batch_module.draw_augment_params
    monkeypatch.setattr(batch_module, "draw_augment_params", lambda *args: draws.append(args[1]) or draw(*args))

    def read(step: int) -> RawBatch:
        images = torch.randint(0, 256, (16, 3, 40, 40), generator=torch.Generator().manual_seed(step))
        return RawBatch(images.to(torch.uint8), torch.arange(16))

    for step, (batch,) in zip(range(3, 6), micro_batches(read, config, range(3, 6), CPU), strict=True):
        (expected,) = make_micro_batches(read(step), config, step, CPU)
        assert len(batch.tensors()) == 3
        for ours, theirs in zip(batch.tensors(), expected.tensors(), strict=True):
            assert torch.equal(ours, theirs)
    assert sorted(draws) == [3, 3, 4, 4, 5, 5]  # once for each way of making a batch
