"""Gradients that are not finite are found a step late; what is saved is as if they had been found at once."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pfcluster.config import CheckpointConfig, EngineConfig, OptimConfig, RunConfig
from pfcluster.distributed.process_group import World
from pfcluster.engine.ddp import DdpEngine
from pfcluster.engine.finite import UpdateGuard
from pfcluster.training import run
from pfcluster.training.errors import TrainingError
from pfcluster.training.finetune import FinetuneObjective
from tests import tiny

SINGLE = World(0, 1, torch.device("cpu"))


def diverging(architecture: str, log_every: int) -> RunConfig:
    """Weights of 1e30 after the first step, so that the second step's gradients are not finite."""
    base = tiny.config("finetune", checkpoint=CheckpointConfig(every_steps=100))
    return replace(
        base,
        model=replace(base.model, architecture=architecture),
        optim=replace(base.optim, lr=1e30, warmup_steps=0, ema=0.5),
        engine=replace(base.engine, log_every=log_every),
    )


@pytest.mark.parametrize("architecture", ["vit", "cnn"])
def test_a_failure_read_late_leaves_the_checkpoint_of_one_read_at_once(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    step = FinetuneObjective.step
    monkeypatch.setattr(FinetuneObjective, "step", lambda *args: started.append(args[2]) or step(*args))
    failures, weights = [], []
    for name, log_every in (("at once", 1), ("late", 100)):
        with pytest.raises(TrainingError, match="Nothing was trained on this batch"):
            run(diverging(architecture, log_every), tmp_path / name)
        failures.append(json.loads((tmp_path / name / "failure.json").read_text()))
        weights.append(tiny.final_weights(tmp_path / name))
    failed = failures[0]["step"]
    assert started == [*range(failed + 1), *range(failed + 2)]  # the second run had begun the step after
    assert failures[0] == failures[1]
    assert failures[0]["checkpoint_step"] == failed
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert all(value.isfinite().all() for value in weights[0].values())


def test_guarded_engines_skip_all_updates_after_the_first_bad_one() -> None:
    guard = UpdateGuard(SINGLE.device)
    engines = [DdpEngine(torch.nn.Linear(2, 1), OptimConfig(lr=0.1, ema=0.5), EngineConfig(), SINGLE) for _ in range(2)]
    for engine in engines:
        engine.guard = guard

    def update(engine: DdpEngine, factor: float) -> None:
        engine.backward(factor * engine(torch.ones(3, 2)).sum())
        engine.step()

    def state(engine: DdpEngine) -> dict[str, torch.Tensor]:
        return {name: shard.values.clone() for name, shard in engine.tensor_shards("x").items()}

    for engine in (*engines, engines[0]):  # the average begins as a copy of the weights after the first update
        update(engine, 1.0)
    before = [state(engine) for engine in engines]
    assert not torch.equal(before[0]["x/weight"], before[0]["x_ema/weight"])
    update(engines[1], float("nan"))
    update(engines[0], 1.0)
    for engine, expected in zip(engines, before, strict=True):
        assert all(torch.equal(value, expected[name]) for name, value in state(engine).items())
    norms = guard.take_norms().read()
    assert [math.isfinite(norm) for norm in norms] == [True, True, True, False, True]
    assert guard.take_norms().read() == []
