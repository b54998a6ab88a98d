"""Comparisons between backends: discrete metrics are declared and left out, all others count."""

from __future__ import annotations

import pytest
import torch

from pfcluster.config import EngineConfig
from pfcluster.distributed.process_group import World
from pfcluster.training import parity

SINGLE = World(0, 1, torch.device("cpu"))
BATCH = 16


def test_discrete_metrics_do_not_count():
    reference = {"0/loss": 2.0, "0/train_accuracy": 5 / 16, "1/loss": 1.0, "1/train_accuracy": 6 / 16}
    one_image = reference | {"0/train_accuracy": 6 / 16}
    assert parity.relative_difference(one_image, reference) == pytest.approx(0.2)
    assert parity.relative_difference(one_image, reference, {"train_accuracy"}) == 0
    other_loss = one_image | {"1/loss": 1.01}
    assert parity.relative_difference(other_loss, reference, {"train_accuracy"}) == pytest.approx(0.01)


def test_small_metrics_are_compared_absolutely():
    assert parity.relative_difference({"0/loss": 2e-9}, {"0/loss": 1e-9}) == pytest.approx(1e-6)


@pytest.mark.parametrize(("objective", "stabilised"), [("mae", False), ("finetune", False), ("pf_mag", True)])
def test_objectives_declare_their_discrete_metrics(objective, stabilised):
    """Exactly the metrics that are multiples of 1 / batch size at every step are declared, besides mask values."""
    engine = EngineConfig(device="cpu")
    run = parity.train(parity.tiny_config(objective, engine, batch_size=BATCH, stabilised=stabilised), "ddp", SINGLE)
    values: dict[str, list[float]] = {}
    for key, value in run.metrics.items():
        values.setdefault(key.split("/")[1], []).append(value)
    counts = {name for name, each in values.items() if all((BATCH * value).is_integer() for value in each)}
    assert {name for name in run.discrete if not name.endswith("_saturated")} <= counts <= run.discrete
