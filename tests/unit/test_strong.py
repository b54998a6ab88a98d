"""The strong recipe: mixup, CutMix, stochastic depth and layer decay, independent of the number of ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from timm.data.mixup import Mixup
from timm.loss import SoftTargetCrossEntropy

from pfcluster.config import AugmentConfig, ConfigError, OptimConfig
from pfcluster.config.io import with_values
from pfcluster.config.presets import PLAIN, STRONG
from pfcluster.data.batch import draw_drop_path_scales, make_micro_batches, require_fitting_micro_batch
from pfcluster.data.mixup import MixParams, draw_mix_params, mix_pairs, swap_pairs
from pfcluster.data.types import RawBatch
from pfcluster.distributed.process_group import World, generator
from pfcluster.engine.optimizer import build_optimizer, set_rates
from pfcluster.models import factory, losses
from pfcluster.training import run
from tests.tiny import config


def strong(**changes):
    return with_values(config("finetune", **changes), STRONG)


def test_partners_are_neighbours():
    assert swap_pairs(torch.arange(6)).tolist() == [1, 0, 3, 2, 5, 4]


def test_mixup_and_its_loss_match_timm():
    images, labels = torch.rand(2, 3, 8, 8), torch.tensor([1, 3])
    logits = torch.randn(2, 5)
    theirs = Mixup(mixup_alpha=1.0, label_smoothing=0.1, num_classes=5)
    theirs._params_per_batch = lambda: (0.3, False)
    mixed, targets = theirs(images.clone(), labels)
    torch.testing.assert_close(mix_pairs(images, MixParams(0.3, None)), mixed)
    ours = losses.classification(logits, labels, None, 0.1, (swap_pairs(labels), 0.3))
    torch.testing.assert_close(ours, SoftTargetCrossEntropy()(logits, targets))


def test_class_weights_apply_to_both_mixed_labels():
    logits, labels, weights = torch.randn(2, 3), torch.tensor([0, 2]), torch.tensor([1.0, 2.0, 4.0])
    mixed = losses.classification(logits, labels, weights, 0.0, (swap_pairs(labels), 0.25))
    plain, partner = (losses.classification(logits, each, weights) for each in (labels, swap_pairs(labels)))
    torch.testing.assert_close(mixed, 0.25 * plain + 0.75 * partner)


def test_cutmix_pastes_the_drawn_share():
    images = torch.stack([torch.zeros(3, 40, 40), torch.ones(3, 40, 40)])
    for step in range(50):
        mixing = draw_mix_params(AugmentConfig(cutmix=1.0), 40, generator(0, "mix", step))
        mixed = mix_pairs(images, mixing)
        assert mixed[0].mean().item() == pytest.approx(1 - mixing.weight, abs=1e-6)
        assert mixed[1].mean().item() == pytest.approx(mixing.weight, abs=1e-6)
    assert images[0].max() == 0  # the input is unchanged


def test_mixup_and_cutmix_alternate_randomly_with_beta_shares():
    drawn = [
        draw_mix_params(AugmentConfig(mixup=0.8, cutmix=1.0), 48, generator(0, "mix", step)) for step in range(400)
    ]
    assert 150 < sum(each.box is None for each in drawn) < 250
    shares = torch.tensor([each.weight for each in drawn if each.box is None])
    assert shares.mean().item() == pytest.approx(0.5, abs=0.08)
    assert shares.min() < 0.1
    assert shares.max() > 0.9


def test_micro_batches_are_the_same_for_any_number_of_ranks():
    values = strong()
    images = torch.randint(256, (16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(16) % 8
    (alone,) = make_micro_batches(RawBatch(images, labels), values, 3, World(0, 1, torch.device("cpu")))
    assert alone.mix_partners is not None
    assert alone.drop_path_scales is not None
    parted = replace(values, engine=replace(values.engine, grad_accumulation_steps=2))
    parts = []
    for rank in range(2):
        mine = slice(8 * rank, 8 * rank + 8)
        parts += make_micro_batches(
            RawBatch(images[mine], labels[mine]), parted, 3, World(rank, 2, torch.device("cpu"))
        )
    assert torch.equal(torch.cat([each.images for each in parts]), alone.images)
    assert torch.equal(torch.cat([each.mix_partners[0] for each in parts]), alone.mix_partners[0])
    assert {each.mix_partners[1] for each in parts} == {alone.mix_partners[1]}
    assert torch.equal(torch.cat([each.drop_path_scales for each in parts], dim=2), alone.drop_path_scales)


def test_drop_path_scales_grow_over_blocks_and_keep_the_mean():
    values = replace(config("finetune"), batch_size=4000)
    values = with_values(values, {"model.depth": 3, "model.drop_path": 0.4})
    scales = draw_drop_path_scales(values, 0, slice(0, values.batch_size))
    assert scales.shape == (3, 2, 4000)
    assert (scales == 0).float().mean((1, 2)).tolist() == pytest.approx([0.0, 0.2, 0.4], abs=0.02)
    assert scales.mean().item() == pytest.approx(1.0, abs=0.02)


def test_dropped_branches_leave_the_sample_unchanged():
    model = factory.build(config("finetune"), 8)["model"]
    images = torch.rand(3, 3, 32, 32)
    ones = torch.ones(2, 2, 3)
    torch.testing.assert_close(model(images, ones), model(images))
    without = ones.clone()
    without[:, :, 1] = 0.0
    encoder = model.encoder
    nothing = encoder.norm(encoder.cls_token[0])
    tokens = encoder(images, None, without)[:, 0]
    torch.testing.assert_close(tokens[1], nothing[0])
    torch.testing.assert_close(tokens[0], encoder(images)[0, 0])


def test_set_rates_keeps_layer_decay():
    model = factory.build(config("finetune"), 8)["model"]
    optimizer = build_optimizer(model, OptimConfig(layer_decay=0.5, weight_decay=0.1))
    set_rates(optimizer.param_groups, 0.8)
    rates = {id(each): group["lr"] for group in optimizer.param_groups for each in group["params"]}
    encoder = model.encoder
    for parameter, rate in (
        (encoder.patch_embed.weight, 0.1),
        (encoder.cls_token, 0.1),
        (encoder.blocks[0].mlp.fc1.weight, 0.2),
        (encoder.blocks[1].norm1.bias, 0.4),
        (encoder.norm.weight, 0.8),
        (model.head.weight, 0.8),
    ):
        assert rates[id(parameter)] == pytest.approx(rate)
    assert len(rates) == len(list(model.parameters()))


def test_later_blocks_have_larger_updates(tmp_path):
    """Adam's first update has about the size of the learning rate, so each block's change shows its rate."""
    values = with_values(
        config("finetune", max_steps=1), {"optim.layer_decay": 0.1, "optim.warmup_steps": 0, "optim.weight_decay": 0.0}
    )
    before = factory.build(values, 8)["model"].state_dict()
    run(values, tmp_path)
    from pfcluster.checkpoint import store

    after = store.load(tmp_path).weights()
    moved = [
        (after[name] - before[name]).abs().median().item()
        for name in (
            "encoder.patch_embed.weight",
            "encoder.blocks.0.mlp.fc1.weight",
            "encoder.blocks.1.mlp.fc1.weight",
            "head.weight",
        )
    ]
    assert moved == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3], rel=0.05)


def test_strong_recipe_trains(tmp_path):
    assert run(strong(), tmp_path)["status"] == "finished"


def test_plain_recipe_has_no_augmentation():
    values = with_values(config("finetune"), PLAIN)
    images = torch.randint(256, (16, 3, 32, 32), dtype=torch.uint8)
    (batch,) = make_micro_batches(
        RawBatch(images, torch.zeros(16, dtype=torch.long)), values, 0, World(0, 1, torch.device("cpu"))
    )
    torch.testing.assert_close(batch.images, images.float() / 127.5 - 1, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("objective", "changes", "why"),
    [
        ("pf_mag", {"augment.mixup": 0.5}, 'objective must be "finetune" with augment.mixup'),
        ("mae", {"model.drop_path": 0.1}, "model.drop_path must be 0: only the fine-tuning"),
        ("pf_mag", {"optim.layer_decay": 0.5}, "optim.layer_decay must be 1: only the fine-tuning"),
        ("pf_mag", {"discriminator_optim.layer_decay": 0.5}, "discriminator_optim.layer_decay must be 1"),
        (
            "finetune",
            {"augment.cutmix": 1.0, "batch_size": 12, "engine.grad_accumulation_steps": 4},
            "batch_size must be even",
        ),
    ],
)
def test_options_are_rejected_for_other_objectives(objective, changes, why):
    with pytest.raises(ConfigError, match=why):
        with_values(config(objective), changes)


def test_odd_micro_batches_are_rejected_before_training():
    with pytest.raises(ConfigError, match=r"has 1 images here: batch_size 16 over 16 processes"):
        require_fitting_micro_batch(strong(), 16)
    require_fitting_micro_batch(strong(), 8)
