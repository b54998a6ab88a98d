"""Whole runs with the stabilisers of docs/guides/pf-mag.md: exact resume, and what a failed run leaves behind."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from pfcluster.config import CheckpointConfig
from pfcluster.config.io import from_json, to_json
from pfcluster.engine.base import NonFiniteError
from pfcluster.models import factory
from pfcluster.runs.folder import checkpoint_steps, step_folder
from pfcluster.training import parity
from pfcluster.training.pf_mag import PfMagObjective
from pfcluster.training import run
from pfcluster.training.errors import TrainingError
from tests import tiny


def test_a_stabilised_run_goes_on_to_the_same_weights(tmp_path):
    base = tiny.config("pf_mag")
    game = replace(parity.ALL_STABILISERS, discriminator_augment=("colour", "flip"), adv_ramp_steps=6, loss_balancing_steps=8)
    values = replace(base, pf_mag=game, checkpoint=CheckpointConfig(every_steps=5, keep=9))
    assert from_json(to_json(values)) == values
    result = run(values, tmp_path / "whole")
    assert result["status"] == "finished"
    assert result["parameters"]["train"] > factory.parameter_counts(base, factory.build(base, 8))["train"]
    assert any(name.endswith("discriminator/reader.head.weight") for name in tiny.final_weights(tmp_path / "whole"))
    assert set(result["poker"]["rows"]) >= {"reconstruction", "poker face"}
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts/result.json").unlink()
    for step in checkpoint_steps(tmp_path / "parts/checkpoints"):
        if step > 5:  # within the ramp, and while the balance still watches
            shutil.rmtree(step_folder(tmp_path / "parts/checkpoints", step))
    assert run(values, tmp_path / "parts")["status"] == "finished"
    whole, parts = (tiny.final_weights(tmp_path / name) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_a_non_finite_loss_leaves_a_checkpoint_when_the_discriminator_takes_more_steps(tmp_path, monkeypatch):
    base = tiny.config("pf_mag", checkpoint=CheckpointConfig(every_steps=100))
    values = replace(base, pf_mag=replace(base.pf_mag, discriminator_updates=2))
    taken = PfMagObjective.step

    def fails_at_four(self, batches, step):
        if step == 4:
            raise NonFiniteError("the gradients' norm is nan")
        return taken(self, batches, step)

    monkeypatch.setattr(PfMagObjective, "step", fails_at_four)
    with pytest.raises(TrainingError, match="step 4"):
        run(values, tmp_path)
    assert checkpoint_steps(tmp_path / "checkpoints") == [4]
