"""Parameter and FLOP counts of models, and the `costs` command. Times are not compared."""

from __future__ import annotations

import json

import pytest

from pfcluster.cli import costs
from pfcluster.config import presets
from pfcluster.profiling.flops import profile
from pfcluster.profiling.model_cost import inference_flops


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
