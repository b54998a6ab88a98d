"""Batch norms of averaged weights have statistics of their own, in evaluations, checkpoints and after a resume."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pfcluster.checkpoint import store
from pfcluster.config import RunConfig
from pfcluster.data.dataset import open_dataset
from pfcluster.distributed.process_group import World
from pfcluster.engine.base import norm_statistics
from pfcluster.evaluate.batch_norms import recompute_batch_norms
from pfcluster.models import factory
from pfcluster.runs.folder import step_folder
from pfcluster.training import run
from tests import tiny

ONE = World(0, 1, torch.device("cpu"))


def judge_config(**changes: object) -> RunConfig:
    config = tiny.config("finetune", model=replace(tiny.MODEL, architecture="cnn"))
    return replace(config, optim=replace(config.optim, ema=0.8, lr=1e-2), **changes)


def groups(weights: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{name}/"): value for key, value in weights.items() if key.startswith(f"{name}/")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve steps, evaluated after six and after twelve."""
    folder = tmp_path_factory.mktemp("judge")
    run(judge_config(), folder)
    return folder


@pytest.mark.parametrize("step", [9, 12])
def test_a_checkpoint_has_the_statistics_of_its_averaged_weights(finished: Path, step: int) -> None:
    config = judge_config()
    checkpoint = store.verify(step_folder(finished / "checkpoints", step))
    saved = {f"{group}/{name}": value for group, part in checkpoint.tensors().items() for name, value in part.items()}
    averaged, raw = groups(saved, "model_ema"), groups(saved, "model")
    dataset = open_dataset(config.data, config.seed)
    net = factory.build(config, len(dataset.classes))["model"]
    net.load_state_dict(averaged)
    names = list(norm_statistics(net))
    recomputed = recompute_batch_norms(config, net, dataset.train, ONE)
    assert names
    for name in names:
        torch.testing.assert_close(averaged[name], recomputed[name])
        assert not torch.equal(averaged[name], raw[name]), name


def test_a_resumed_run_has_the_same_statistics(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "parts")
    (tmp_path / "parts/result.json").unlink()
    shutil.rmtree(step_folder(tmp_path / "parts/checkpoints", 12))
    assert run(judge_config(), tmp_path / "parts")["status"] == "finished"
    whole, parts = (tiny.final_weights(folder) for folder in (finished, tmp_path / "parts"))
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name
