"""The optimised nets equal plain implementations, and the parts of PF-ViT follow docs/concepts/method.md."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pfcluster.models import losses
from pfcluster.models.cnn import SmallCNN
from pfcluster.models.discriminator import Discriminator
from pfcluster.models.generator import Generator
from pfcluster.models.mae import MAE, Decoder, hidden_patches, inpaint, kept_count
from pfcluster.models.pf_vit import PFViT, Separator
from pfcluster.models.vit import Block, ViT, patchify, sincos_positions, take, unpatchify
from tests.reference.plain_steps import plain_mae_loss

SIZES = {"size": 32, "patch": 8, "width": 32, "depth": 2, "heads": 4}


def decoder(width: int = 16) -> Decoder:
    return Decoder(side=4, patch=8, encoder_width=32, width=width, depth=2, heads=2)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_unpatchify_inverts_patchify():
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(unpatchify(patchify(images, 8), 8), images)
    assert torch.equal(patchify(images, 8)[0, 1].view(3, 8, 8), images[0, :, :8, 8:16])


def test_take_equals_gather():
    tokens, indices = torch.randn(3, 7, 5), torch.stack([torch.randperm(7)[:4] for _ in range(3)])
    assert torch.equal(take(tokens, indices), tokens.gather(1, indices.unsqueeze(2).expand(-1, -1, 5)))


def test_sincos_positions_match_mae():
    positions = sincos_positions(3, 8)
    assert positions.shape == (9, 8)
    assert torch.allclose(positions[0], torch.tensor([0.0, 0, 1, 1, 0, 0, 1, 1]))
    column = torch.tensor([1.0, 0.01])  # second column, first row: frequencies 1 and 1/100
    assert torch.allclose(positions[1], torch.cat([column.sin(), column.cos(), torch.tensor([0.0, 0, 1, 1])]))


def test_block_with_queries_equals_rows_of_full_output():
    block, tokens = Block(32, 4, 4.0), torch.randn(2, 9, 32)
    full = block(tokens)
    assert torch.allclose(block(tokens, queries=slice(0, 1)), full[:, :1], atol=1e-6)
    assert torch.allclose(block(tokens, queries=slice(4, None)), full[:, 4:], atol=1e-6)


def test_mae_equals_plain_mae_in_loss_and_gradients():
    mae = MAE(ViT(**SIZES), decoder(), mask_ratio=0.75)
    images, order = torch.randn(3, 3, 32, 32), torch.stack([torch.randperm(16) for _ in range(3)])
    plain = plain_mae_loss(mae, images, order)
    expected = torch.autograd.grad(plain, list(mae.parameters()))
    target = hidden_patches(images, order, mae.kept, 8)
    fast = losses.mae(mae(images, order), target, norm_pixels=True)
    assert torch.allclose(fast, plain, atol=1e-6)
    for gradient, expected_gradient in zip(torch.autograd.grad(fast, list(mae.parameters())), expected, strict=True):
        assert torch.allclose(gradient, expected_gradient, atol=1e-5)


@pytest.mark.parametrize(("ratio", "kept"), [(0.75, 4), (0.01, 15), (0.99, 1)])
def test_kept_count_keeps_and_hides_at_least_one_patch(ratio, kept):
    assert kept_count(16, ratio) == kept


def test_inpainting_a_perfect_prediction_restores_the_image():
    images, order = torch.randn(2, 3, 32, 32), torch.stack([torch.randperm(16) for _ in range(2)])
    truth = hidden_patches(images, order, 4, 8)
    restored = inpaint(images, losses.normalised(truth), order, 4, 8, norm_pixels=True)
    assert torch.allclose(restored, images, atol=1e-4)


def test_emotion_and_face_tokens_sum_to_input():
    emotion, face, mask = Separator(32, 8)(tokens := torch.randn(2, 17, 32))
    assert torch.allclose(emotion + face, tokens, atol=1e-6)
    assert torch.equal(emotion, mask * tokens)


def pf_vit() -> PFViT:
    generator = Generator(decoder(), width=16, heads=2, patch=8)
    return PFViT(ViT(**SIZES), generator, width=32, classes=5)


def test_batched_generation_equals_separate_calls():
    model, images = pf_vit(), torch.randn(2, 3, 32, 32)
    output = model(images)
    tokens = model.encoder(images)
    emotion, face, mask = model.separator(tokens)
    for image, source in ((output.reconstruction, tokens), (output.poker, face), (output.emotion, emotion)):
        assert torch.allclose(image, model.generator(source), atol=1e-5)
    assert torch.allclose(output.logits, model.classify(images), atol=1e-6)
    assert model(images, emotion_view=False).emotion is None
    assert torch.equal(output.mask, mask)
    assert not output.mask.requires_grad


def test_generator_output_depends_on_tokens():
    model = pf_vit()
    first, second = model.generator(torch.randn(1, 17, 32)), model.generator(torch.randn(1, 17, 32))
    assert first.shape == (1, 3, 32, 32)
    assert not torch.allclose(first, second)


def test_new_pixel_head_starts_near_grey():
    assert pf_vit()(torch.randn(4, 3, 32, 32)).reconstruction.abs().mean() < 0.3


def test_discriminator_has_one_logit_more_than_emotions():
    discriminator = Discriminator(decoder(), patch=8, width=16, classes=5)
    assert discriminator(torch.randn(3, 3, 32, 32)).shape == (3, 6)


def test_every_parameter_gets_a_gradient():
    images = torch.randn(2, 3, 32, 32)
    discriminator = Discriminator(decoder(), patch=8, width=16, classes=5)
    model = pf_vit()
    output = model(images)
    nets: list[tuple[nn.Module, torch.Tensor]] = [
        (model, output.logits.sum() + output.reconstruction.square().sum() + output.poker.sum()),
        (discriminator, discriminator(images).square().sum()),
        (cnn := SmallCNN(5), cnn(images).square().sum()),
    ]
    for net, loss in nets:
        loss.backward()
        assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []
