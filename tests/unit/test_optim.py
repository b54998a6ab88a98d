"""Learning-rate schedules against values computed by hand, and weight decay groups."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pfcluster.checkpoint import store
from pfcluster.checkpoint.manager import CheckpointManager
from pfcluster.config import ConfigError, OptimConfig
from pfcluster.data.dataset import open_dataset
from pfcluster.engine.base import Engine
from pfcluster.engine.optimizer import Plateau, build_optimizer, learning_rate, set_learning_rates
from pfcluster.models import factory
from pfcluster.models.vit import ViT
from pfcluster.runs.folder import step_folder
from pfcluster.training import run
from pfcluster.training.factory import build_engines, build_objective
from pfcluster.training.resume import TrainState, load_checkpoint, save_checkpoint
from pfcluster.training.selection import PeriodicEvaluation, is_better, selection_split
from tests.stabilised import SINGLE
from tests.tiny import config as tiny_config

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


def test_a_score_that_is_no_number_does_not_stay_the_best():
    nan = float("nan")
    assert is_better(0.6, 0.5)
    assert is_better(0.1, nan)
    assert not any(is_better(*pair) for pair in ((0.5, 0.5), (nan, 0.5), (nan, nan)))


def test_a_plateau_counts_evaluations_that_select_no_checkpoint(tmp_path):
    base = tiny_config("finetune", epochs=3)
    optim = replace(base.optim, lr=1e-9, schedule="plateau", plateau_patience=9)
    config = replace(base, optim=optim, evaluate=replace(base.evaluate, select_from=0.9))
    run(config, tmp_path)
    state = store.verify(step_folder(tmp_path / "checkpoints", 18)).state
    assert state["best"]["step"] == 18
    assert state["plateaus"]["model"]["waited"] == 2, "the weights hardly change, in three evaluations"


@pytest.mark.parametrize(("trains_in_warmup", "rates"), [(True, [0.1, 0.854, 0.5]), (False, [0.1, 0.1, 0.75])])
def test_the_schedule_of_a_discriminator_begins_with_its_training(trains_in_warmup, rates):
    """110 steps, 40 of them warm-up: ten of linear warm-up and a half cosine, over all steps or over the last 70."""
    base = tiny_config("pf_mag")
    values = replace(
        base,
        discriminator_optim=replace(base.discriminator_optim, lr=1.0, schedule="cosine", warmup_steps=10),
        pf_mag=replace(base.pf_mag, warmup_steps=40, warmup_discriminator=trains_in_warmup),
    )
    engines = build_engines(values, "ddp", factory.build(values, 8), SINGLE)
    for step, rate in zip((0, 35, 60) if trains_in_warmup else (0, 40, 70), rates, strict=True):
        set_learning_rates(engines, values, step, 110, {})
        assert engines["discriminator"].optimizer.param_groups[0]["lr"] == pytest.approx(rate, abs=1e-3)


def test_each_optimizer_has_the_plateau_of_its_own_options(tmp_path):
    """Also after a resume, and from checkpoints that had one state for all."""
    base = tiny_config("pf_mag")
    values = replace(
        base,
        optim=replace(base.optim, lr=1.0, schedule="plateau", plateau_patience=3, plateau_factor=0.5),
        discriminator_optim=replace(base.discriminator_optim, lr=1.0, schedule="plateau", plateau_patience=1),
    )
    dataset = open_dataset(values.data, values.seed)
    modules = factory.build(values, len(dataset.classes))
    engines = build_engines(values, "ddp", modules, SINGLE)
    objective = build_objective(values, engines, dataset.classes, SINGLE)
    evaluation = PeriodicEvaluation(values, tmp_path, dataset, copy.deepcopy(modules["model"]), 100, SINGLE)
    state = TrainState(step=90)
    for _ in range(3):
        evaluation.evaluate(engines["model"], state)  # the same weights: no score is better than the first
    manager = CheckpointManager(tmp_path / "checkpoints", SINGLE, keep=1, asynchronous=False, timeout=60)
    save_checkpoint(manager, engines, objective, state, world=SINGLE, backend="ddp")
    resumed = load_checkpoint(manager, engines, objective, folder=tmp_path, world=SINGLE)
    assert resumed.plateaus == state.plateaus
    set_learning_rates(engines, values, 95, 100, resumed.plateaus)
    rates = {name: engine.optimizer.param_groups[0]["lr"] for name, engine in engines.items()}
    assert rates == {"model": 1.0, "discriminator": pytest.approx(0.01)}


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


def test_an_average_in_host_memory_takes_the_share_of_the_device():
    """As with `engine.offload_optimizer`: the guard is on the GPU, the fp32 weights and their average are not."""
    with FakeTensorMode():
        weights, average = torch.ones(4), torch.zeros(4)
        engine = SimpleNamespace(
            guard=SimpleNamespace(skips=torch.zeros((), device="cuda")),
            decay=0.9,
            _weights=lambda: {"weight": SimpleNamespace(values=weights)},
            _averaged=lambda: {"weight": average},
        )
        Engine._update_average(engine)  # type: ignore[arg-type]
    assert average.device.type == "cpu"


def test_selection_on_a_test_split_needs_one():
    config = tiny_config("finetune")
    on_test = replace(config, evaluate=replace(config.evaluate, selection_split="test"))
    dataset = open_dataset(config.data, 0)
    assert selection_split(on_test, dataset) is dataset.test
    assert selection_split(config, dataset) is dataset.validation
    with pytest.raises(ConfigError, match=r"evaluate\.selection_split test: synthetic has no test split"):
        selection_split(on_test, replace(dataset, test=None))
