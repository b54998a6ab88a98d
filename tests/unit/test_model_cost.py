"""Parameter and FLOP counts of models, and the `costs` command. Times are not compared."""

from __future__ import annotations

import json

import pytest
import torch

from pfcluster.cli import costs
from pfcluster.config import presets
from pfcluster.config.io import with_values
from pfcluster.profiling.flops import empty_batches, profile
from pfcluster.profiling.model_cost import inference_flops, measure_model_cost


@pytest.mark.parametrize("size", ["t", "b"])
def test_inference_flops_of_pf_vit_are_near_those_of_its_encoder(size):
    recipe = presets.recipe(f"vit-{size}")
    mae_vit, pf_vit = (inference_flops(recipe[role], 7) for role in ("mae-vit", "pf-vit"))
    assert mae_vit < pf_vit < 1.05 * mae_vit
    assert inference_flops(recipe["mae"], 7) < mae_vit  # no head


def test_training_step_of_a_classifier_costs_three_forward_passes():
    config = presets.recipe("vit-t")["mae-vit"]
    assert profile(config, 7).flops == pytest.approx(3 * inference_flops(config, 7), rel=0.02)


def test_costs_command_writes_and_prints_the_same_counts(tmp_path, capsys):
    assert costs.main(["--roles", "mae-vit", "--device", "cpu", "--json", str(tmp_path / "costs.json")]) == 0
    cost = json.loads((tmp_path / "costs.json").read_text())["demo mae-vit"]
    assert f"{cost['test_parameters'] / 1e6:.2f}" in capsys.readouterr().out
    assert [speed["batch"] for speed in cost["speeds"]] == [1, 64]


def test_augmentation_of_the_discriminators_input_is_timed_with_finite_numbers():
    config = with_values(presets.recipe("miniature-t")["pf-vit"], {"pf_mag.weights.swap": 1.0})
    assert config.discriminator_augment.transforms
    cost = measure_model_cost(config, 7, torch.device("cpu"))  # a step whose gradients are not finite is an error
    assert all(speed.step_ms > 0 for speed in cost.speeds)
    (batch,) = empty_batches(config, 64, 1)
    images = torch.rand(len(batch.discriminator_augments[0].affine), 3, 32, 32)
    assert torch.allclose(batch.augment_for_discriminator(images, 0), images, atol=1e-5)
