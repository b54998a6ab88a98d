"""Losses that stabilise PF-MAG (docs/guides/pf-mag.md), against values computed by hand, and their gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from pfcluster.config import (
    LossWeights,
    RunConfig,
)
from pfcluster.data.batch import make_micro_batches
from pfcluster.models import factory, losses
from pfcluster.training.loss_balancing import LossBalancer
from pfcluster.training.pf_mag import pf_mag_step
from pfcluster.training.pf_mag_terms import discriminator_terms, neutral_faces, pf_vit_terms
from tests.stabilised import CLASSES, FIXED, MOVING, SINGLE, balancer, config, engines, raw, settings


def encoder_gradient(values: RunConfig, *terms: str) -> torch.Tensor:
    (batch,) = make_micro_batches(raw(), values, 5, SINGLE)
    modules = factory.build(values, CLASSES)
    every = values.pf_mag.generate_every
    output = modules["model"](batch.images, emotion_view=False, generate_every=every)
    losses_by_name = pf_vit_terms(output, batch, modules["discriminator"], settings(values))
    sum(losses_by_name[name] for name in terms).backward()
    return modules["model"].encoder.blocks[0].mlp.fc1.weight.grad


def test_fake_class_targets_can_be_those_of_the_source():
    real, labels = torch.full((3, CLASSES + 1), -100.0), torch.arange(3)
    real[torch.arange(3), labels] = real[:, CLASSES] = 100.0  # correct for every real image
    fake = real.repeat(2, 1)  # fakes have the emotion of their source
    fake[:, CLASSES] = -100.0  # and are classified as generated
    assert losses.discriminator(real, fake, labels, fake_class_targets="source").item() == pytest.approx(0, abs=1e-6)
    no_emotion = torch.full((6, CLASSES + 1), -100.0)
    assert losses.discriminator(real, no_emotion, labels, fake_class_targets="zero").item() == pytest.approx(
        0, abs=1e-6
    )
    source = losses.discriminator(real, no_emotion, labels, fake_class_targets="source").item()
    assert source == pytest.approx(100 / 5)


def test_anchor_pulls_the_poker_face_alone():
    poker, rec = torch.zeros(2, 3, 4, 4, requires_grad=True), torch.full((2, 3, 4, 4), 0.5, requires_grad=True)
    loss = losses.anchor(poker, rec)
    loss.backward()
    assert loss.item() == 0.5
    assert torch.allclose(poker.grad, torch.full_like(poker, -1 / poker.numel()))
    assert rec.grad is None


def test_swap_compares_the_poker_faces_of_swapped_neutral_photos_with_the_photos():
    images, unswapped = torch.zeros(2, 3, 4, 4), torch.tensor([0.5, 7.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    assert losses.swap(unswapped, images, torch.tensor([True, False])).item() == 0.125


def test_neutral_faces_are_the_first_ones_of_their_groups():
    labels = torch.tensor([1, 2, 0, 0, 3, 1, 1, 2, 0, 0, 0, 0])
    assert neutral_faces(labels, 0, 4).tolist() == [2, 4, 8]
    assert neutral_faces(labels, 0, 1).tolist() == list(range(12))
    assert neutral_faces(torch.tensor([1, 0, 2]), 0, 2).tolist() == [1, 2]  # the last group is not full
    halves = [neutral_faces(part, 0, 2) for part in labels.chunk(2)]
    assert torch.equal(torch.cat([halves[0], halves[1] + 6]), neutral_faces(labels, 0, 2))


def test_swapped_faces_get_the_expression_of_the_other_of_their_pair():
    values = config(weights=replace(FIXED.weights, swap=1.0), generate_every=2, erasure_start=0, encoder_grad_share=0.5)
    (batch,) = make_micro_batches(raw(), values, 5, SINGLE)
    model = factory.build(values, CLASSES)["model"]
    faces = torch.tensor([1, 2, 4, 7])
    output = model(batch.images, emotion_view=False, generate_every=2, swap_rows=faces)
    with torch.no_grad():
        swapped = model.transfer(batch.images[[2, 0, 6, 4]], batch.images[faces]).clamp(-1, 1)
        expected = model.generator(model.separate(swapped)[2])
    assert torch.allclose(output.unswapped, expected, atol=1e-6)

    output.unswapped.square().mean().backward()
    norms = {name: part.grad.norm() for name, part in model.named_parameters() if part.grad is not None}
    assert norms["separator.excite.weight"] > 0
    assert norms["encoder.cls_token"] > 0
    again = model(swapped, emotion_view=False)  # the only gradient is that of the poker faces of swapped images
    model.zero_grad()
    again.poker.square().mean().backward()
    for name, part in model.named_parameters():
        if part.grad is not None and name in norms:
            assert torch.allclose(part.grad.norm(), norms[name], rtol=1e-3), name


def test_swap_term_is_part_of_the_step_after_the_warmup():
    values = config(weights=replace(FIXED.weights, swap=3.0), generate_every=2)
    assert values.pf_mag.weights.swap == 3.0
    by_warmup = {}
    for warmup in (True, False):
        (batch,) = make_micro_batches(raw(), values, 5, SINGLE)
        model, discriminator = engines(values)
        step = pf_mag_step([batch], model, discriminator, settings(values), balancer(values), warmup=warmup)
        by_warmup[warmup] = step.metrics
    assert "swap" not in by_warmup[True]
    weights, terms = vars(values.pf_mag.weights), by_warmup[False]
    weighted = sum(weights[name] * terms[name] for name in ("cls", "adv", "rec", "ort", "swap"))
    assert terms["loss"] == pytest.approx(weighted.item())
    assert 0 < terms["swap"] < 1


def test_encoder_grad_share_scales_all_but_the_classification_loss():
    full, quarter = config(), config(encoder_grad_share=0.25)
    for terms, share in ((("adv", "rec", "ort"), 0.25), (("cls",), 1.0)):
        expected = share * encoder_gradient(full, *terms)
        assert torch.allclose(encoder_gradient(quarter, *terms), expected, rtol=1e-4, atol=1e-8)


def test_confusion_is_smallest_for_uniform_output():
    uniform, other = torch.full((2, 5), 3.0), torch.tensor([[2.0, 0.0, 0.0, 0.0, 0.0]])
    assert losses.confusion(uniform).item() == pytest.approx(math.log(5))
    by_hand = -sum(math.log(math.exp(value) / (math.exp(2) + 4)) for value in other[0].tolist()) / 5
    assert losses.confusion(other).item() == pytest.approx(by_hand)


def test_adversary_trains_with_discriminator_and_pf_vit_against_it():
    values = config(weights=LossWeights(cls=0.0, adv=0.0, rec=0.0, ort=0.0, confusion=1.0))
    (batch,) = make_micro_batches(raw(), values, 5, SINGLE)
    model, discriminator = engines(values)
    before = discriminator.module.adversary.head.weight.detach().clone()
    output = model(batch.images, None, emotion_view=False)
    terms = discriminator_terms(discriminator, output, batch, settings(values), update=0, with_r1=False, sync=True)
    discriminator.backward(terms["disc_loss"] + terms["adversary_loss"])
    assert all(parameter.grad is None for parameter in model.module.parameters())
    model.backward(output.logits.sum() * 0)
    for engine in (model, discriminator):
        engine.step()
    assert not torch.equal(discriminator.module.adversary.head.weight, before)

    model, discriminator = engines(values)
    for _ in range(3):
        metrics = pf_mag_step([batch], model, discriminator, settings(values), balancer(values), warmup=False).metrics
        assert metrics["loss"] == metrics["confusion"] >= math.log(CLASSES)
    moved = {
        name for name, value in model.module.named_parameters() if (model.optimizer.state[value]["exp_avg"] != 0).any()
    }
    assert {"separator.excite.weight", "encoder.cls_token"} <= moved
    assert not any(name.startswith(("classifier.", "generator.")) for name in moved)


def test_confusion_raises_the_adversarys_loss():
    """With the confusion loss the adversary's loss stays higher than without, where it memorises the batch."""
    adversary_loss = {}
    for weight in (1e-9, 5.0):  # the smaller gradient is below Adam's epsilon
        values = config(
            weights=LossWeights(cls=0.0, adv=0.0, rec=0.0, ort=0.0, confusion=weight), discriminator_updates=2
        )
        (batch,) = make_micro_batches(raw(), values, 5, SINGLE)
        model, discriminator = engines(values, replace(MOVING, lr=3e-3))
        for _ in range(25):
            step = pf_mag_step([batch], model, discriminator, settings(values), balancer(values), warmup=False)
        adversary_loss[weight] = step.metrics["adversary_loss"].item()
    assert adversary_loss[1e-9] < 0.5 * adversary_loss[5.0]


def test_automatic_balancing_divides_the_swap_cycle_by_the_reconstructions_magnitude() -> None:
    balance = LossBalancer(LossWeights(cls=1.0, rec=3.0, swap=2.0), True, 2, 1.0, 1.0, SINGLE)
    for rec in (0.1, 0.3):  # the first steps have no neutral image, and the swap cycle is 0
        balance.observe({"cls": torch.tensor(4.0), "rec": torch.tensor(rec), "swap": torch.tensor(0.0)})
    assert [balance.weight(name) for name in ("cls", "rec", "swap")] == pytest.approx([0.25, 15.0, 10.0])
