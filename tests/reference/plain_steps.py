"""Training steps written the straightforward way. The project's own steps are timed against them (benchmarks/) and must
give the same gradients (tests/unit).

`plain_mae_loss` follows the MAE paper: embed every patch, drop the masked ones, restore the image order for the
decoder, predict every patch, average over the masked ones. `plain_pf_mag_step` is the usual GAN loop: one forward pass
without gradients makes the discriminator's fakes, a second one serves PF-ViT's update, every batch of images passes the
discriminator separately, and the discriminator accumulates gradients in PF-ViT's update that are then discarded. Nets
and loss functions are the project's.

Legend: b images, n patches, k classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pfcluster.config import LossWeights
from pfcluster.data.batch import Batch
from pfcluster.models import losses
from pfcluster.models.discriminator import Discriminator
from pfcluster.models.mae import MAE
from pfcluster.models.pf_vit import PFViT
from pfcluster.models.vit import patchify
from pfcluster.training.pf_mag_terms import LossSettings


def plain_mae_loss(mae: MAE, images: Tensor, order: Tensor) -> Tensor:
    """L_mae on normalised patches: b 3 h w, a permutation of the patches b n (visible first) -> scalar."""
    encoder, decoder = mae.encoder, mae.decoder
    tokens = encoder.patch_embed(patchify(images, encoder.patch)) + encoder.positions
    visible = torch.gather(tokens, 1, order.unsqueeze(2).expand_as(tokens))[:, : mae.kept]
    tokens = torch.cat([encoder.cls_token.expand(len(images), -1, -1), visible], dim=1)
    for block in encoder.blocks:
        tokens = block(tokens)
    embedded = decoder.embed(encoder.norm(tokens))
    mask_tokens = decoder.mask_token.expand(len(images), order.shape[1] - mae.kept, -1)
    restore = order.argsort(1).unsqueeze(2).expand(-1, -1, embedded.shape[2])
    image_order = torch.gather(torch.cat([embedded[:, 1:], mask_tokens], dim=1), 1, restore) + decoder.positions
    tokens = torch.cat([embedded[:, :1], image_order], dim=1)
    for block in decoder.blocks:
        tokens = block(tokens)
    prediction = decoder.head(decoder.norm(tokens))[:, 1:]
    patch_errors = (prediction - losses.normalised(patchify(images, encoder.patch))).square().mean(2)
    masked = torch.ones_like(patch_errors).scatter(1, order[:, : mae.kept], 0.0)
    return (patch_errors * masked).sum() / masked.sum()


def plain_discriminator(discriminator: Discriminator, images: Tensor) -> Tensor:
    """Δ with all tokens in the last block, though only the class token's output is used: b 3 h w -> b (k + 1)."""
    tokens = discriminator.patch_embed(patchify(images, discriminator.patch)) + discriminator.positions
    tokens = torch.cat([discriminator.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
    for block in discriminator.blocks:
        tokens = block(tokens)
    return discriminator.head(discriminator.norm(tokens)[:, 0])


def plain_pf_mag_step(
    pf_vit: PFViT,
    discriminator: Discriminator,
    batch: Batch,
    settings: LossSettings,
    weights: LossWeights,
    update_discriminator: Callable[[], None] = lambda: None,
) -> None:
    """Gradients of both updates with fixed loss weights. `update_discriminator` is called between the two, when the
    discriminator's gradients are in place.
    """
    images, labels = batch.images, batch.labels
    assert pf_vit.separator is not None
    with torch.no_grad():
        tokens = pf_vit.encoder(images)
        fakes = [pf_vit.generator(tokens), pf_vit.generator(pf_vit.separator(tokens)[1])]
    fake_logits = torch.cat([plain_discriminator(discriminator, fake) for fake in fakes])
    real_logits = plain_discriminator(discriminator, images)
    losses.discriminator(real_logits, fake_logits, labels, fake_class_targets=settings.fake_class_targets).backward()
    update_discriminator()

    tokens = pf_vit.encoder(images)
    emotion, identity, _ = pf_vit.separator(tokens)
    reconstruction, poker = pf_vit.generator(tokens), pf_vit.generator(identity)
    if settings.identity_net is None:
        orthogonality = losses.orthogonality(emotion, identity)
    else:
        features = [settings.identity_net(pf_vit.generator(emotion)), settings.identity_net(poker)]
        orthogonality = losses.orthogonality(*features)
    logits_rec = plain_discriminator(discriminator, reconstruction)
    logits_poker = plain_discriminator(discriminator, poker)
    total = (
        weights.cls * losses.classification(pf_vit.classifier(emotion[:, 0]), labels, settings.class_weights)
        + weights.adv * losses.adversarial(logits_rec, logits_poker, labels, settings.neutral)
        + weights.rec * losses.reconstruction(images, reconstruction, poker, labels, settings.neutral)
        + weights.ort * orthogonality
    )
    total.backward()
    discriminator.zero_grad(set_to_none=True)
