"""Steps of PF-MAG with options that stabilise it (docs/guides/pf-mag.md): what is updated, when, and how often."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pfcluster.config import (
    AugmentConfig,
    ConfigError,
    DataConfig,
    EngineConfig,
    LossWeights,
    OptimConfig,
    SyntheticConfig,
)
from pfcluster.data.batch import make_micro_batches, require_fitting_micro_batch
from pfcluster.data.dataset import open_dataset, require_labels
from pfcluster.data.types import DataError
from pfcluster.engine.optimizer import set_learning_rates
from pfcluster.models import factory, losses
from pfcluster.training import parity
from pfcluster.training.factory import build_engines, build_objective
from pfcluster.training.pf_mag import pf_mag_step
from pfcluster.training.pf_mag_terms import discriminator_terms, pf_vit_terms
from tests.stabilised import CLASSES, FIXED, SINGLE, balancer, config, engines, raw, settings, weights_of


def test_swapped_pairs_must_fit_the_micro_batch():
    values = config(weights=LossWeights(swap=1.0), generate_every=2)  # 8 images, 4 to generate from
    require_fitting_micro_batch(values, 2)
    with pytest.raises(ConfigError, match=r"of which there are 1 here: batch_size 8 over 4 processes"):
        require_fitting_micro_batch(values, 4)


def test_swap_needs_neutral_photos():
    values = config(weights=LossWeights(swap=1.0))
    dataset = open_dataset(DataConfig(synthetic=SyntheticConfig(train=8, validation=8, test=8, identities=4)), 0)
    require_labels(dataset, values)
    with pytest.raises(DataError, match=r"swap must be 0 with synthetic, got 1: .* classes anger, joy have no"):
        require_labels(replace(dataset, name="synthetic", classes=("anger", "joy")), values)


def test_discriminator_updates_are_separate_steps_on_the_same_fakes():
    values = config(discriminator_updates=3)
    values = replace(values, discriminator_augment=AugmentConfig())
    (batch,) = make_micro_batches(raw(), values, 5, SINGLE)
    model, discriminator = engines(values)
    by_hand = engines(values)
    with torch.no_grad():
        output = by_hand[0](batch.images, None, emotion_view=False)
    disc_losses = []
    for update in range(3):
        terms = discriminator_terms(
            by_hand[1], output, batch, settings(values), update=update, with_r1=False, sync=True
        )
        by_hand[1].backward(terms["disc_loss"])
        by_hand[1].step()
        disc_losses.append(terms["disc_loss"].detach())
    metrics = pf_mag_step([batch], model, discriminator, settings(values), balancer(values), warmup=False).metrics
    assert (discriminator.updates, model.updates) == (3, 1)
    assert torch.equal(weights_of(discriminator), weights_of(by_hand[1]))
    assert metrics["disc_loss"] == disc_losses[0]


def test_step_with_several_updates_keeps_its_start_time():
    values = config(discriminator_updates=2)
    _, discriminator = engines(values)
    times = []
    for more_follow in (True, False, False):
        discriminator.backward(discriminator(torch.zeros(2, 3, 32, 32)).sum())
        discriminator.step(more_updates_follow=more_follow)
        times.append((discriminator.forward_began, discriminator.backward_began))
    assert times[0] == times[1] != times[2]


@pytest.mark.parametrize(
    "options", [{"grad_accumulation_steps": 2}, {"grad_accumulation_steps": 4, "activation_checkpointing": True}]
)
def test_all_options_with_accumulation_equal_whole_batch(options):
    difference = parity.compare("ddp", "pf_mag", SINGLE, engine=EngineConfig(device="cpu", **options), stabilised=True)
    assert 0 < difference.weights < 1e-6
    assert difference.metrics < 1e-6


def test_images_are_generated_from_every_nth_sample_and_all_are_classified():
    values = config(generate_every=4)
    (batch,) = make_micro_batches(raw(), values, 5, SINGLE)
    model = factory.build(values, CLASSES)["model"]
    whole, some = model(batch.images), model(batch.images, generate_every=4)
    assert torch.allclose(some.logits, whole.logits, atol=1e-6)
    assert torch.allclose(some.poker, whole.poker[::4], atol=1e-6)
    terms = pf_vit_terms(some, batch, None, settings(values))
    assert terms["cls"].item() == pytest.approx(losses.classification(whole.logits, batch.labels, None).item())
    chosen = batch.every(4)
    expected = losses.reconstruction(chosen.images, whole.reconstruction[::4], whole.poker[::4], chosen.labels, 0)
    assert terms["rec"].item() == pytest.approx(expected.item())


def test_r1_at_every_nth_step_has_n_times_the_weight():
    each, lazy = config(r1=1.0), config(r1=1.0, r1_every=4)
    assert settings(lazy).r1 == 4 * settings(each).r1
    values = {}
    for name, options in (("each", each), ("lazy", lazy)):
        built = build_engines(options, "ddp", factory.build(options, CLASSES), SINGLE)
        objective = build_objective(options, built, parity.CLASS_NAMES, SINGLE)
        values[name] = []
        for step in range(4, 6):
            # the same weights in every step
            built["discriminator"].set_lr(0.0)
            built["model"].set_lr(0.0)
            values[name].append(objective.step(make_micro_batches(raw(), options, 4, SINGLE), step)["disc_loss"].item())
    without = config()
    built = build_engines(without, "ddp", factory.build(without, CLASSES), SINGLE)
    objective = build_objective(without, built, parity.CLASS_NAMES, SINGLE)
    plain = objective.step(make_micro_batches(raw(), without, 4, SINGLE), 4)["disc_loss"].item()
    penalty = values["each"][0] - plain
    assert penalty > 0
    assert values["lazy"][0] - plain == pytest.approx(4 * penalty, rel=1e-2)
    assert values["lazy"][1] == pytest.approx(plain, rel=1e-6)


def test_discriminator_waits_for_the_end_of_the_warmup():
    values = config(warmup_discriminator=False)
    built = build_engines(values, "ddp", factory.build(values, CLASSES), SINGLE)
    objective = build_objective(values, built, parity.CLASS_NAMES, SINGLE)
    updates = []
    for step in range(4):
        metrics = objective.step(make_micro_batches(raw(), values, step, SINGLE), step)
        updates.append((built["discriminator"].updates, built["model"].updates, "disc_loss" in metrics))
    assert updates == [(0, 1, False), (0, 2, False), (1, 3, True), (2, 4, True)]


def test_warmup_has_a_rate_of_its_own_and_the_schedule_begins_after_it():
    optim = OptimConfig(lr=1e-3, schedule="cosine", warmup_steps=2, encoder_lr_factor=0.5)
    values = replace(config(warmup_lr=4e-3), optim=optim)
    values = replace(values, pf_mag=replace(values.pf_mag, warmup_steps=4))
    built = build_engines(values, "ddp", factory.build(values, CLASSES), SINGLE)
    rates = []
    for step in range(8):
        set_learning_rates(built, values, step, 8, {})
        groups = built["model"].optimizer.param_groups
        rates.append(tuple(sorted({round(group["lr"], 9) for group in groups})))
    assert rates[:4] == [(1e-3, 2e-3), (2e-3, 4e-3), (2e-3, 4e-3), (2e-3, 4e-3)]
    assert rates[4] == (5e-4, 1e-3)
    assert rates[6] == pytest.approx((2.5e-4, 5e-4))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"discriminator_updates": 0}, r"pf_mag\.discriminator_updates must be at least 1"),
        ({"warmup_lr": 0.0}, r"pf_mag\.warmup_lr must be positive"),
        ({"generate_every": 0}, r"pf_mag\.generate_every must be at least 1"),
        ({"encoder_grad_share": 1.5}, r"pf_mag\.encoder_grad_share must lie in \[0, 1\]"),
        ({"fusion": "self", "fusion_bias": 4.0}, r"pf_mag\.fusion_bias must be None with pf_mag\.fusion"),
        (
            {"discriminator_init": "classifier", "discriminator_patch_gain": 4.0},
            r"discriminator_patch_gain must be 1 with pf_mag\.discriminator_init",
        ),
        ({"separator_ratio": 0.0, "weights": LossWeights(anchor=1.0)}, r"weights\.anchor must be 0 with"),
        ({"separator_ratio": 0.0, "weights": LossWeights(swap=1.0)}, r"weights\.swap must be 0 with"),
        (
            {"fusion": "self", "mask_ratio": 0.5, "weights": LossWeights(swap=1.0)},
            r"weights\.swap must be 0 with pf_mag\.mask_ratio",
        ),
        ({"separator_ratio": 0.0, "class_mask_bias": 1.0}, r"class_mask_bias must be None with"),
        ({"separator_ratio": 0.0, "patch_mask_bias": -2.0}, r"patch_mask_bias must be None with"),
        ({"separator_ratio": 0.0, "weights": LossWeights(confusion=1.0)}, r"weights\.confusion must be 0 with"),
        ({"patch_overlap": -1}, r"pf_mag\.patch_overlap must be at least 0"),
    ],
)
def test_invalid_options_are_rejected(changes, why):
    with pytest.raises(ConfigError, match=why):
        replace(FIXED, **changes)
