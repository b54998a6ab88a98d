"""Losses against values computed by hand or by torch's functions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from pfcluster.models import losses

LOG2 = math.log(2)


def test_mae_on_normalised_patches():
    target = torch.tensor([[[1.0, 2.0, 3.0]]])  # mean 2, unbiased variance 1
    prediction = torch.tensor([[[-1.0, 0.0, 2.0]]])
    assert losses.mae(prediction, target, norm_pixels=True).item() == pytest.approx(1 / 3, abs=1e-5)
    assert losses.mae(prediction, target, norm_pixels=False).item() == pytest.approx((4 + 4 + 1) / 3)


def test_classification_is_cross_entropy_averaged_over_samples():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 0, 1, 2, 2, 2])
    assert torch.allclose(losses.classification(logits, labels, None), functional.cross_entropy(logits, labels))
    weights = torch.tensor([1.0, 3.0, 0.5])
    each = functional.cross_entropy(logits, labels, reduction="none") * weights[labels]
    halves = [losses.classification(logits[part], labels[part], weights) for part in (slice(0, 3), slice(3, 6))]
    assert torch.allclose(torch.stack(halves).mean(), each.mean())


def test_inverse_frequency_has_mean_one_and_zero_for_absent_classes():
    counts = torch.tensor([6.0, 2.0, 0.0])
    weights = losses.inverse_frequency(counts)
    assert weights.tolist() == pytest.approx([8 / 12, 2.0, 0.0])
    assert (weights * counts).sum().item() == pytest.approx(counts.sum().item())


def test_discriminator_loss():
    real, fake = torch.zeros(1, 3), torch.zeros(2, 3)
    labels = torch.tensor([1])
    assert losses.discriminator(real, fake, labels).item() == pytest.approx(2 * LOG2)
    fake[:, 2] = 100.0  # classified as real with certainty
    assert losses.discriminator(real, fake, labels).item() == pytest.approx(LOG2 + 100)


def test_discriminator_ignores_fake_emotions_or_targets_zero():
    real, labels = torch.zeros(1, 3), torch.tensor([0])
    fake = torch.tensor([[50.0, 50.0, -50.0]])
    assert losses.discriminator(real, fake, labels, fake_class_targets="ignore").item() == pytest.approx(LOG2)
    assert losses.discriminator(real, fake, labels, fake_class_targets="zero").item() == pytest.approx(LOG2 + 100 / 3)


def test_adversarial_targets_label_for_reconstruction_and_neutral_for_poker_face():
    large = 40.0
    rec = torch.tensor([[-large, large, large]])  # emotion 1, real
    poker = torch.tensor([[large, -large, large]])  # neutral is class 0, real
    labels = torch.tensor([1])
    assert losses.adversarial(rec, poker, labels, 0).item() == pytest.approx(0.0, abs=1e-6)
    assert losses.adversarial(poker, poker, labels, 0).item() == pytest.approx(2 * large / 3)
    assert losses.adversarial(rec, torch.tensor([[-large, -large, large]]), labels, None).item() < 1e-6


def test_reconstruction_includes_poker_face_of_neutral_inputs_only():
    images, rec, poker = torch.zeros(4, 3, 2, 2), torch.full((4, 3, 2, 2), 0.5), torch.ones(4, 3, 2, 2)
    labels = torch.tensor([0, 1, 1, 0])
    assert losses.reconstruction(images, rec, poker, labels, 0).item() == pytest.approx(0.25 + 0.5)
    assert losses.reconstruction(images, rec, poker, labels, None).item() == pytest.approx(0.25)


def test_orthogonality_is_the_absolute_cosine():
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert losses.orthogonality(a, torch.tensor([[0.0, 2.0], [-3.0, 0.0]])).item() == pytest.approx(0.5)


def test_gradient_penalty_is_half_the_mean_squared_norm():
    gradient = torch.tensor([[[[3.0, 4.0]]], [[[0.0, 1.0]]]])
    assert losses.gradient_penalty(gradient).item() == pytest.approx(0.5 * (25 + 1) / 2)
