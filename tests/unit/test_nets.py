"""The fast nets equal plain ones, and the parts of PF-ViT do what the method says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pfcluster.models import losses
from pfcluster.models.cnn import SmallCNN
from pfcluster.models.discriminator import Discriminator
from pfcluster.models.mae import MAE, Decoder, hidden_patches, kept_count, inpaint
from pfcluster.models.pf_vit import Generator, PFViT, Separator
from pfcluster.models.vit import Block, ViT, patchify, sincos_positions, take, unpatchify
from tests.reference.plain_steps import plain_mae_loss

SIZES = {"size": 32, "patch": 8, "width": 32, "depth": 2, "heads": 4}


def decoder(width: int = 16) -> Decoder:
    return Decoder(side=4, patch=8, encoder_width=32, width=width, depth=2, heads=2)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_patches_go_back_to_the_image():
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(unpatchify(patchify(images, 8), 8), images)
    assert torch.equal(patchify(images, 8)[0, 1].view(3, 8, 8), images[0, :, :8, 8:16])


def test_take_is_gather():
    tokens, indices = torch.randn(3, 7, 5), torch.stack([torch.randperm(7)[:4] for _ in range(3)])
    assert torch.equal(take(tokens, indices), tokens.gather(1, indices.unsqueeze(2).expand(-1, -1, 5)))


def test_positions_are_those_of_the_mae_paper():
    positions = sincos_positions(3, 8)
    assert positions.shape == (9, 8)
    assert torch.allclose(positions[0], torch.tensor([0.0, 0, 1, 1, 0, 0, 1, 1]))
    column = torch.tensor([1.0, 0.01])  # second column, first row: frequencies 1 and 1/100
    assert torch.allclose(positions[1], torch.cat([column.sin(), column.cos(), torch.tensor([0.0, 0, 1, 1])]))


def test_a_block_with_few_queries_equals_the_rows_of_the_whole():
    block, tokens = Block(32, 4, 4.0), torch.randn(2, 9, 32)
    whole = block(tokens)
    assert torch.allclose(block(tokens, queries=slice(0, 1)), whole[:, :1], atol=1e-6)
    assert torch.allclose(block(tokens, queries=slice(4, None)), whole[:, 4:], atol=1e-6)


def test_the_fast_mae_equals_the_plain_one_in_loss_and_gradients():
    mae = MAE(ViT(**SIZES), decoder(), mask_ratio=0.75)
    images, order = torch.randn(3, 3, 32, 32), torch.stack([torch.randperm(16) for _ in range(3)])
    plain = plain_mae_loss(mae, images, order)
    expected = torch.autograd.grad(plain, list(mae.parameters()))
    target = hidden_patches(images, order, mae.kept, 8)
    fast = losses.mae(mae(images, order), target, norm_pixels=True)
    assert torch.allclose(fast, plain, atol=1e-6)
    for mine, theirs in zip(torch.autograd.grad(fast, list(mae.parameters())), expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize(("ratio", "kept"), [(0.75, 4), (0.01, 15), (0.99, 1)])
def test_some_patches_are_always_kept_and_some_hidden(ratio, kept):
    assert kept_count(16, ratio) == kept


def test_a_perfect_prediction_paints_the_original():
    images, order = torch.randn(2, 3, 32, 32), torch.stack([torch.randperm(16) for _ in range(2)])
    truth = hidden_patches(images, order, 4, 8)
    painted = inpaint(images, losses.normalised(truth), order, 4, 8, norm_pixels=True)
    assert torch.allclose(painted, images, atol=1e-4)


def test_emotion_and_face_tokens_add_up():
    emotion, face, mask = Separator(32, 8)(tokens := torch.randn(2, 17, 32))
    assert torch.allclose(emotion + face, tokens, atol=1e-6)
    assert torch.equal(emotion, mask * tokens)


def pf_vit() -> PFViT:
    generator = Generator(decoder(), width=16, heads=2, patch=8)
    return PFViT(ViT(**SIZES), generator, width=32, classes=5)


def test_one_batched_generator_call_equals_three():
    model, images = pf_vit(), torch.randn(2, 3, 32, 32)
    views = model(images)
    tokens = model.encoder(images)
    emotion, face, mask = model.separator(tokens)
    for view, source in ((views.reconstruction, tokens), (views.poker, face), (views.emotion, emotion)):
        assert torch.allclose(view, model.generator(source), atol=1e-5)
    assert torch.allclose(views.logits, model.classify(images), atol=1e-6)
    assert model(images, emotion_view=False).emotion is None
    assert torch.equal(views.mask, mask)
    assert not views.mask.requires_grad


def test_the_generator_sees_the_tokens_through_the_fusion_alone():
    model = pf_vit()
    first, second = model.generator(torch.randn(1, 17, 32)), model.generator(torch.randn(1, 17, 32))
    assert first.shape == (1, 3, 32, 32)
    assert not torch.allclose(first, second)


def test_the_new_head_starts_near_grey():
    assert pf_vit()(torch.randn(4, 3, 32, 32)).reconstruction.abs().mean() < 0.3


def test_the_discriminator_answers_with_a_logit_more_than_emotions():
    discriminator = Discriminator(decoder(), patch=8, width=16, classes=5)
    assert discriminator(torch.randn(3, 3, 32, 32)).shape == (3, 6)


def test_every_parameter_of_every_net_gets_a_gradient():
    images = torch.randn(2, 3, 32, 32)
    discriminator = Discriminator(decoder(), patch=8, width=16, classes=5)
    model = pf_vit()
    views = model(images)
    nets: list[tuple[nn.Module, torch.Tensor]] = [
        (model, views.logits.sum() + views.reconstruction.square().sum() + views.poker.sum()),
        (discriminator, discriminator(images).square().sum()),
        (judge := SmallCNN(5), judge(images).square().sum()),
    ]
    for net, loss in nets:
        loss.backward()
        assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []
