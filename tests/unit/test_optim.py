"""Learning-rate schedules against values computed by hand, and weight decay groups."""

from __future__ import annotations

import pytest
from torch import nn

from pfcluster.config import OptimConfig
from pfcluster.engine.optimizer import Plateau, build_optimizer, learning_rate
from pfcluster.models.vit import ViT

COSINE = OptimConfig(lr=1.0, warmup_steps=4)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.25), (3, 1.0), (4, 1.0), (9, 0.5), (14, 0.0), (99, 0.0)])
def test_cosine_schedule_with_warmup(step, rate):
    assert learning_rate(COSINE, step, 14, Plateau()) == pytest.approx(rate)


def test_plateau_lowers_rate_after_patience():
    options = OptimConfig(lr=1.0, schedule="plateau", plateau_patience=2, plateau_factor=0.1)
    state = Plateau()
    rates = []
    for score in (0.5, 0.4, 0.6, 0.6, 0.5, 0.7, 0.1, 0.1):
        state = state.after(score, options)
        rates.append(learning_rate(options, 0, 10, state))
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01])


def test_constant_schedule():
    assert learning_rate(OptimConfig(lr=0.3, schedule="constant"), 7, 10, Plateau()) == 0.3


def test_vectors_and_tokens_have_no_weight_decay():
    model = ViT(size=16, patch=8, width=8, depth=1, heads=2)
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.1))
    decayed = {
        id(parameter) for group in optimizer.param_groups if group["weight_decay"] for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        expected = parameter.ndim > 1 and name != "cls_token"
        assert (id(parameter) in decayed) == expected, name
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_frozen_parameters_are_not_optimised():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    optimizer = build_optimizer(layer, OptimConfig(algorithm="adam", weight_decay=0.0))
    assert [parameter for group in optimizer.param_groups for parameter in group["params"]] == [layer.weight]
