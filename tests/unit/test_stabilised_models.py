"""Parts of nets that stabilise PF-MAG (docs/guides/pf-mag.md): how each starts, and that none changes a net if off."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pfcluster.checkpoint import store
from pfcluster.config import (
    LossWeights,
    PfMagConfig,
)
from pfcluster.models import factory
from pfcluster.models.discriminator import EmotionAdversary
from pfcluster.models.generator import RelativePositionBias
from pfcluster.models.pretrained import WeightsError
from pfcluster.training import run
from tests import tiny
from tests.stabilised import CLASSES, config


def test_adversary_depends_on_positions_of_tokens():
    adversary, tokens = (
        EmotionAdversary(5, 8, CLASSES),
        torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)),
    )
    assert adversary(tokens).shape == (2, CLASSES)
    assert not torch.allclose(adversary(tokens), adversary(tokens[:, [0, 2, 1, 3, 4]]))
    changed = tokens.clone()
    changed[:, 1] += torch.tensor(
        [1.0, -1.0] * 4
    )  # one patch more, another less: the mean over patches does not change
    changed[:, 2] -= torch.tensor([1.0, -1.0] * 4)
    assert not torch.allclose(adversary(tokens), adversary(changed), atol=1e-4)


def test_disabled_options_do_not_change_initialisation():
    plain = factory.build(config(), CLASSES)
    more = factory.build(config(fusion_bias=4.0, weights=LossWeights(confusion=1.0)), CLASSES)
    for name, module in plain.items():
        state, other = module.state_dict(), more[name].state_dict()
        added = {key for key in other if key not in state}
        assert all(key.startswith(("generator.fusion.position_bias.", "adversary.")) for key in added)
        assert added
        assert all(torch.equal(value, other[key]) for key, value in state.items()), name


def test_overlapping_head_starts_as_the_plain_one_and_crosses_patch_borders():
    torch.manual_seed(0)
    tokens = torch.randn(1, 17, 32)
    plain, wide = (factory.build(config(patch_overlap=n), CLASSES)["model"].generator for n in (0, 3))
    assert torch.allclose(wide(tokens), plain(tokens), atol=1e-6)
    torch.nn.init.ones_(wide.head.weight)
    one_patch = torch.zeros(1, 16, 16)
    one_patch[0, 5] = 1.0  # row 1, column 1 of four patches of 8 pixels
    changed = (wide._assemble(wide.head(one_patch)) != wide._assemble(wide.head(torch.zeros_like(one_patch))))[0, 0]
    assert changed.nonzero().tolist() == [[row, column] for row in range(5, 19) for column in range(5, 19)]


def test_position_bias_is_relative_and_starts_at_the_own_place():
    bias = RelativePositionBias(4, 2, 4.0)
    values = bias()
    assert values.shape == (2, 16, 17)
    assert torch.equal(values[0, :, 1:], 4.0 * torch.eye(16))
    assert (values[:, :, 0] == 0).all()
    with torch.no_grad():
        bias.table[0] = torch.arange(49.0)
        bias.class_token[0] = 7.0
    values = bias()[0]
    assert (values[:, 0] == 7).all()
    assert values[0, 1 + 1] == values[14, 1 + 15] != values[1, 1]  # one to the right; one to the left
    assert values[0, 1 + 4] == values[11, 1 + 15] != values[0, 1 + 1]  # one below
    assert (values[:, 1:].unique().numel(), values[1].numel()) == (49, 17)


def test_position_bias_routes_each_mask_token_to_its_own_patch():
    generator = factory.build(config(fusion_bias=50.0), CLASSES)["model"].generator
    queries, tokens = generator.mask_token + generator.positions, torch.randn(2, 17, 16)
    fused = generator.fusion(queries, tokens)
    _, value = generator.fusion.key_value(generator.fusion.norm_tokens(tokens)).chunk(2, dim=2)
    assert torch.allclose(fused, queries + generator.fusion.proj(value[:, 1:]), atol=1e-4)


def test_discriminator_starts_as_the_fine_tuned_classifier(tmp_path):
    finetuned = tiny.config("finetune", epochs=1)
    run(finetuned, tmp_path / "classifier")
    run(tiny.config("mae", epochs=1), tmp_path / "mae")
    classifier, mae = store.load(tmp_path / "classifier").weights(), store.load(tmp_path / "mae").weights()
    options = PfMagConfig(
        discriminator_init="classifier", decoder_init=str(tmp_path / "mae"), weights=LossWeights(confusion=0.1)
    )
    values = tiny.config("pf_mag", pf_mag=options, model=replace(tiny.MODEL, init=str(tmp_path / "classifier")))
    modules = factory.build(values, 8)
    pf_vit, discriminator = modules["model"], modules["discriminator"]
    for name, weight in classifier.items():
        assert torch.equal(discriminator.state_dict()[name], weight)
    assert torch.equal(pf_vit.classifier.weight, classifier["head.weight"])
    assert torch.equal(pf_vit.encoder.state_dict()["norm.weight"], classifier["encoder.norm.weight"])
    assert torch.equal(pf_vit.generator.mask_token, mae["decoder.mask_token"])
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    net = factory.build(finetuned, 8, load_init=False)["model"]
    net.load_state_dict(classifier)
    assert torch.allclose(discriminator(images)[:, :8], net(images), atol=1e-5)
    assert run(values, tmp_path / "pf-vit")["status"] == "finished"

    with pytest.raises(WeightsError, match=r"needs a fine-tuned classifier of 4 classes, but .* a head for 8 classes"):
        factory.build(values, 4)
    from_mae = replace(values, model=replace(values.model, init=str(tmp_path / "mae")))
    with pytest.raises(WeightsError, match="no classification head; use a run of mae-vit"):
        factory.build(from_mae, 8)
    without_decoder = replace(values, pf_mag=replace(options, decoder_init=str(tmp_path / "classifier")))
    with pytest.raises(WeightsError, match=r"pf_mag\.decoder_init: .* lacks decoder\."):
        factory.build(without_decoder, 8)


def test_mask_biases_set_the_initial_masks():
    def masks(**changes) -> torch.Tensor:
        separator = factory.build(config(**changes), CLASSES)["model"].separator
        tokens = torch.ones(2, 17, 32)
        return separator(tokens)[0].mean((0, 2))

    assert masks().mean().item() == pytest.approx(0.5, abs=0.05)
    biased = masks(class_mask_bias=3.0)
    assert torch.equal(biased[1:], masks()[1:])
    assert biased[0].item() == pytest.approx(torch.tensor(3.0).sigmoid().item(), abs=0.02)
    both = masks(class_mask_bias=3.0, patch_mask_bias=-2.0)
    assert both[0] == biased[0]
    assert both[1:].mean().item() == pytest.approx(torch.tensor(-2.0).sigmoid().item(), abs=0.02)
    assert masks(patch_mask_bias=-2.0)[0] == masks()[0]
    built = factory.build(config(class_mask_bias=0.0, patch_mask_bias=0.0), CLASSES)["model"]
    names = dict(built.named_parameters())
    assert names["separator.class_bias"].shape == names["separator.patch_bias"].shape == (32,)


def test_discriminator_patch_gain_scales_only_the_patch_embedding():
    runs = (config(discriminator_patch_gain=gain) for gain in (1.0, 4.0))
    plain, scaled = (factory.build(run, CLASSES)["discriminator"].state_dict() for run in runs)
    assert [name for name in plain if not torch.equal(plain[name], scaled[name])] == ["patch_embed.weight"]
    assert torch.equal(scaled["patch_embed.weight"], 4 * plain["patch_embed.weight"])
