"""Whole runs with the options of docs/guides/pf-mag.md: exact resume, and a checkpoint after a failure."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from pfcluster.config import AugmentConfig, CheckpointConfig
from pfcluster.config.io import from_json, to_json
from pfcluster.engine.base import NonFiniteError
from pfcluster.models import factory
from pfcluster.runs.folder import checkpoint_steps, step_folder
from pfcluster.training import parity, run
from pfcluster.training.errors import TrainingError
from pfcluster.training.pf_mag import PfMagObjective
from tests import tiny


@pytest.mark.slow
def test_stabilised_run_resumes_exactly(tmp_path):
    base = tiny.config("pf_mag")
    pf_mag = replace(parity.ALL_STABILISERS, loss_balancing_steps=8)
    config = replace(
        base,
        pf_mag=pf_mag,
        discriminator_augment=AugmentConfig(),
        checkpoint=CheckpointConfig(every_steps=5, keep=9),
    )
    assert from_json(to_json(config)) == config
    result = run(config, tmp_path / "whole")
    assert result["status"] == "finished"
    assert result["parameters"] == factory.parameter_counts(factory.build(config, 8))
    assert any(name.endswith("discriminator/adversary.head.weight") for name in tiny.final_weights(tmp_path / "whole"))
    assert set(result["poker"]["rows"]) >= {"reconstruction", "poker face"}
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts/result.json").unlink()
    for step in checkpoint_steps(tmp_path / "parts/checkpoints"):
        if step > 5:  # at step 5 the balancer is still measuring
            shutil.rmtree(step_folder(tmp_path / "parts/checkpoints", step))
    assert run(config, tmp_path / "parts")["status"] == "finished"
    whole, parts = (tiny.final_weights(tmp_path / name) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_non_finite_loss_leaves_a_checkpoint_with_several_discriminator_updates(tmp_path, monkeypatch):
    base = tiny.config("pf_mag", checkpoint=CheckpointConfig(every_steps=100))
    config = replace(base, pf_mag=replace(base.pf_mag, discriminator_updates=2))
    original_step = PfMagObjective.step

    def fails_at_four(self, batches, step):
        if step == 4:
            raise NonFiniteError("the gradients' norm is nan")
        return original_step(self, batches, step)

    monkeypatch.setattr(PfMagObjective, "step", fails_at_four)
    with pytest.raises(TrainingError, match="step 4"):
        run(config, tmp_path)
    assert checkpoint_steps(tmp_path / "checkpoints") == [4]
