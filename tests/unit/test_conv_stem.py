"""The convolutional stem: what tokens see, sizes, and weights from a run with it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pfcluster.config import ConfigError, ModelConfig
from pfcluster.models import factory
from pfcluster.models.conv_stem import ConvStem
from pfcluster.models.pretrained import WeightsError
from pfcluster.models.vit import ViT
from pfcluster.training import run
from tests.tiny import MODEL, config

CONV = replace(MODEL, stem_channels=(4, 8, 12))


def noisy(module):
    """The module with random values in place of zeros, so that residual branches count."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


def test_tokens_of_kept_patches_do_not_depend_on_hidden_ones():
    torch.manual_seed(0)
    net = noisy(ViT(size=32, patch=8, width=32, depth=1, heads=2, stem_channels=(4, 8, 12)))
    images = torch.randn(3, 3, 32, 32)
    order = torch.rand(3, 16).argsort(1)
    kept, hidden = order[:, :6], order[:, 6:]
    mask = torch.zeros(3, 16).scatter_(1, hidden, 1.0).view(3, 1, 4, 4)
    changed = images + 5 * mask.repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert not torch.equal(changed, images)
    assert torch.equal(net(images, kept), net(changed, kept))
    assert not torch.allclose(net(images), net(changed))


def test_without_hidden_patches_a_mask_changes_nothing():
    torch.manual_seed(0)
    stem = noisy(ConvStem((4, 8), 16))
    images = torch.randn(2, 3, 16, 16)
    everything = torch.arange(16).expand(2, -1)
    assert torch.equal(stem(images), stem(images, everything))
    assert stem(images).shape == (2, 16, 16)


def test_a_stage_sees_across_patch_borders():
    torch.manual_seed(0)
    stem = noisy(ConvStem((4, 8, 12), 16))
    images = torch.randn(1, 3, 32, 32)
    changed = images.clone()
    changed[:, :, 16, 15] += 1.0  # the last column before a border
    difference = (stem(images) - stem(changed)).abs().sum(2)[0]
    assert (difference > 0).sum() > 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"patch": 8, "stem_channels": (4, 8)}, "2^n = model.patch = 8"),
        ({"patch": 6, "stem_channels": (4, 8)}, "2^n = model.patch = 6"),
        ({"patch": 4, "stem_channels": (4, 0)}, "be positive"),
        ({"patch": 4, "stem_channels": (4, 8), "architecture": "cnn"}, 'model.architecture "cnn"'),
    ],
)
def test_stages_fit_the_patch(values, message):
    with pytest.raises(ConfigError, match=r"model\.stem_channels") as caught:
        ModelConfig(**values)
    assert message in str(caught.value)


@pytest.mark.slow
def test_pf_mag_and_fine_tuning_start_from_a_mae_with_a_stem(tmp_path):
    mae = run(config("mae", model=CONV, epochs=1), tmp_path / "mae", "a test")
    assert mae["status"] == "finished"
    start = str(tmp_path / "mae")
    started = factory.build(config("finetune", model=replace(CONV, init=start)), 7)["model"]
    fresh = factory.build(config("finetune", model=CONV), 7)["model"]
    name = "encoder.patch_embed.stages.0.conv.weight"
    assert not torch.equal(started.state_dict()[name], fresh.state_dict()[name])
    result = run(config("pf_mag", model=replace(CONV, init=start), epochs=1), tmp_path / "pf", "a test")
    assert result["status"] == "finished"
    with pytest.raises(WeightsError, match="stem_channels 4, 8, 12"):
        factory.build(config("finetune", model=replace(MODEL, init=start)), 7)
    run(config("mae", epochs=1), tmp_path / "plain", "a test")
    with pytest.raises(WeightsError, match=r"lacks encoder\.patch_embed\.out"):
        factory.build(config("finetune", model=replace(CONV, init=str(tmp_path / "plain"))), 7)
