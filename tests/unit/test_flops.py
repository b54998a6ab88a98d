"""Counted FLOPs equal those of a real step, and stay within the budget of each net (benchmarks/flops.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pfcluster.config import EngineConfig, presets
from pfcluster.data.batch import patch_order
from pfcluster.models import factory, losses
from pfcluster.models.mae import hidden_patches
from pfcluster.profiling.flops import profile

GIGA = 1e9


def test_flops_on_the_meta_device_equal_those_of_a_real_step():
    config = presets.recipe("demo")["mae"]
    model = factory.build(config, 8)["model"]
    images, order = torch.randn(4, 3, 48, 48), patch_order(config, slice(0, 4), "mask", 0)
    # The meta device counts attention as two plain products; the CPU's fused kernel is not counted by every torch.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        target = hidden_patches(images, order, model.kept, config.model.patch)
        losses.mae(model(images, order), target, norm_pixels=True).backward()
    assert profile(config, 8).flops == pytest.approx(counter.get_total_flops() / 4, rel=1e-6)


def test_mae_b_stays_within_its_budget():
    assert profile(presets.recipe("vit-b")["mae"], 8).flops <= 57.6 * GIGA


@pytest.mark.slow
def test_pf_mag_b_with_an_identity_net_stays_within_its_budget():
    from facenet_pytorch import InceptionResnetV1

    from pfcluster.models.identity_net import FaceNet

    config = presets.recipe("vit-b")["pf-vit"]
    with torch.device("meta"):
        identity_net = FaceNet(InceptionResnetV1(pretrained=None))
    with_net = profile(config, 8, identity_net=identity_net).flops
    without = profile(replace(config, pf_mag=replace(config.pf_mag, identity_net="tokens")), 8).flops
    assert without < with_net <= 350 * GIGA


@pytest.mark.slow
def test_parameter_counts_of_vit_b_are_near_the_papers():
    recipe = presets.recipe("vit-b")
    assert profile(recipe["pf-vit"], 7).train_parameters / 1e6 == pytest.approx(145.1, rel=0.05)
    assert profile(recipe["pf-vit"], 7).test_parameters / 1e6 == pytest.approx(89.7, rel=0.05)


@pytest.mark.slow
def test_activation_checkpointing_and_gradient_accumulation_cost_an_additional_forward_pass():
    config = presets.recipe("mini")["pf-vit"]

    def flops(**engine) -> float:
        return profile(replace(config, engine=EngineConfig(**engine)), 8).flops

    assert 1.2 * flops() < flops(activation_checkpointing=True) < 1.35 * flops()
    assert 1.1 * flops() < flops(grad_accumulation_steps=2) == flops(grad_accumulation_steps=4) < 1.3 * flops()


def test_r1_costs_flops():
    config = presets.recipe("mini")["pf-vit"]
    assert profile(replace(config, pf_mag=replace(config.pf_mag, r1=1.0)), 8).flops > 1.05 * profile(config, 8).flops
