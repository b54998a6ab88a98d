"""Counts of costs; nothing here is timed."""

from __future__ import annotations

import json

import pytest

from pfcluster.cli.tools import TOOLS
from pfcluster.config import presets
from pfcluster.profiling.flops import profile
from pfcluster.profiling.model_cost import inference_flops


@pytest.mark.parametrize("size", ["t", "b"])
def test_pf_vit_classifies_at_nearly_the_cost_of_its_encoder(size):
    recipe = presets.recipe(f"vit-{size}")
    plain, ours = (inference_flops(recipe[role], 7) for role in ("mae-vit", "pf-vit"))
    assert plain < ours < 1.05 * plain
    assert inference_flops(recipe["mae"], 7) < plain  # no head


def test_a_training_step_is_a_forward_and_twice_a_backward_of_a_classifier():
    config = presets.recipe("vit-t")["mae-vit"]
    assert profile(config, 7).flops == pytest.approx(3 * inference_flops(config, 7), rel=0.02)


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    assert TOOLS["costs"](["--roles", "mae-vit", "--device", "cpu", "--json", str(tmp_path / "costs.json")]) == 0
    found = json.loads((tmp_path / "costs.json").read_text())["demo mae-vit"]
    assert f"{found['test_parameters'] / 1e6:.2f}" in capsys.readouterr().out
    assert [speed["batch"] for speed in found["speeds"]] == [1, 64]
