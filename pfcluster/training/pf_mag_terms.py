"""Terms of PF-MAG's two losses, of PF-ViT and of its discriminator, from a batch and its generated images
(docs/concepts/method.md, section 3).

Legend: b images, k emotion classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfcluster.config import PfMagConfig
from pfcluster.data.batch import Batch
from pfcluster.engine.base import Engine
from pfcluster.models import losses
from pfcluster.models.pf_vit import PFViTOutput
from pfcluster.training.gan_diagnostics import discriminator_accuracies
from pfcluster.training.objective import Metrics


@dataclass(frozen=True)
class LossSettings:
    """What the losses depend on besides the batch."""

    neutral: int | None
    """Index of the neutral class; None if the dataset has none."""
    class_weights: Tensor | None
    """Weights of the classes in L_cls, (k,); None weights all alike."""
    label_smoothing: float
    """Of L_cls."""
    fake_class_targets: str
    """Targets of the discriminator's emotion outputs for generated images, as in the config."""
    identity_net: nn.Module | None
    """φ of L_ort; None takes the cosine of the tokens."""
    r1: float = 0.0
    """Weight of the R1 penalty where it is computed, `r1_every` times that of the config."""
    r1_every: int = 1
    """Steps between two computations of the R1 penalty."""
    generate_every: int = 1
    """Images are generated from every n-th image of a micro-batch."""
    discriminator_emotions: bool = True
    """Whether the discriminator also classifies emotions."""
    discriminator_updates: int = 1
    """Of each step."""
    has_adversary: bool = False
    """Whether the discriminator's module holds an EmotionAdversary, which adds the confusion term to L_PFViT."""
    has_anchor: bool = False
    """Whether L_PFViT has the anchor term."""
    has_swap: bool = False
    """Whether L_PFViT has the swap-cycle term."""
    warmup_discriminator: bool = True
    """Whether the discriminator trains during the warm-up."""

    def has_term(self, name: str) -> bool:
        """Whether a term is part of L_PFViT after the warm-up."""
        return {"confusion": self.has_adversary, "anchor": self.has_anchor, "swap": self.has_swap}.get(name, True)


def loss_settings(
    config: PfMagConfig,
    neutral: int | None,
    class_weights: Tensor | None,
    label_smoothing: float,
    identity_net: nn.Module | None,
) -> LossSettings:
    """The settings that a config specifies."""
    return LossSettings(
        neutral,
        class_weights,
        label_smoothing,
        config.fake_class_targets,
        identity_net,
        r1=config.r1 * config.r1_every,
        r1_every=config.r1_every,
        generate_every=config.generate_every,
        discriminator_emotions=config.discriminator_emotions,
        discriminator_updates=config.discriminator_updates,
        has_adversary=config.weights.confusion > 0,
        has_anchor=config.weights.anchor > 0,
        has_swap=config.weights.swap > 0,
        warmup_discriminator=config.warmup_discriminator,
    )


def discriminator_terms(
    discriminator: Engine,
    output: PFViTOutput,
    batch: Batch,
    settings: LossSettings,
    *,
    update: int,
    with_r1: bool,
    sync: bool,
) -> Metrics:
    """L_Δ on real images, reconstructions and poker faces in one forward pass, the adversary's loss if there is one,
    and accuracies. `with_r1` adds the R1 penalty. The batch is that of the generated images.

    `update` is the number of the discriminator's update within the step: each has its own augmentation.
    """
    fakes = [image.detach() for image in (output.reconstruction, output.poker) if image is not None]
    real_images = batch.augment_for_discriminator(batch.images.detach(), update).requires_grad_(with_r1)
    inputs = torch.cat([real_images, *[batch.augment_for_discriminator(image, update) for image in fakes]])
    tokens = None if output.identity_tokens is None else output.identity_tokens.detach()
    logits, adversary_logits = _call_discriminator(discriminator, inputs, tokens, settings, sync=sync)
    real, fake = logits[: len(real_images)], logits[len(real_images) :]
    loss = losses.discriminator(
        real,
        fake,
        batch.labels,
        fake_class_targets=settings.fake_class_targets,
        emotions=settings.discriminator_emotions,
    )
    if with_r1:
        gradient = discriminator.input_gradient(real[:, -1].float().sum(), real_images)
        loss = loss + settings.r1 * losses.gradient_penalty(gradient)
    accuracies = discriminator_accuracies(
        logits.detach(), batch.labels, settings.neutral, emotions=settings.discriminator_emotions
    )
    if adversary_logits is None:
        return {"disc_loss": loss, **accuracies}
    # With the weights of L_cls: without information in f_p the unweighted optimum is the class frequencies, but the
    # confusion loss drives the adversary towards the uniform distribution.
    adversary_loss = losses.classification(adversary_logits, batch.labels, settings.class_weights)
    return {"disc_loss": loss, "adversary_loss": adversary_loss, **accuracies}


def _call_discriminator(
    discriminator: Callable[..., Any],
    images: Tensor,
    identity_tokens: Tensor | None,
    settings: LossSettings,
    **named: bool,
) -> tuple[Tensor, Tensor | None]:
    """The discriminator's logits of images, and its adversary's logits of f_p if it has one."""
    if not settings.has_adversary:
        return discriminator(images, **named), None
    assert identity_tokens is not None
    logits, adversary_logits = discriminator(images, identity_tokens, **named)
    return logits, adversary_logits


def pf_vit_terms(
    output: PFViTOutput, batch: Batch, discriminator: Callable[..., Any] | None, settings: LossSettings
) -> Metrics:
    """The terms of L_PFViT. Without a discriminator (warm-up) L_cls and L_rec only; L_ort and the anchor only with a
    separator, the confusion term only with an adversary. L_cls is over all images of the batch, the other terms are
    over those from which images were generated.
    """
    terms = {
        "cls": losses.classification(output.logits, batch.labels, settings.class_weights, settings.label_smoothing)
    }
    whole, batch = batch, batch.every(len(output.logits) // len(output.reconstruction))
    terms["rec"] = losses.reconstruction(
        batch.images, output.reconstruction, output.poker, batch.labels, settings.neutral
    )
    if discriminator is None:
        return terms
    size = len(batch.images)
    generated = [output.reconstruction] if output.poker is None else [output.reconstruction, output.poker]
    inputs = batch.augment_for_discriminator(torch.cat(generated), -1)
    logits, adversary_logits = _call_discriminator(discriminator, inputs, output.identity_tokens, settings)
    if adversary_logits is not None:
        terms["confusion"] = losses.confusion(adversary_logits)
    poker_logits = None if output.poker is None else logits[size:]
    terms["adv"] = losses.adversarial(
        logits[:size], poker_logits, batch.labels, settings.neutral, emotions=settings.discriminator_emotions
    )
    if output.poker is None or output.identity_tokens is None:
        return terms
    if settings.has_anchor:
        terms["anchor"] = losses.anchor(output.poker, output.reconstruction)
    if output.unswapped is not None:
        assert settings.neutral is not None
        faces = neutral_faces(whole.labels, settings.neutral, settings.generate_every)
        is_neutral = whole.labels[faces] == settings.neutral
        terms["swap"] = losses.swap(output.unswapped, whole.images[faces], is_neutral)
    if settings.identity_net is None:
        terms["ort"] = losses.orthogonality(output.emotion_tokens, output.identity_tokens)
    else:
        assert output.emotion is not None
        features = settings.identity_net(torch.cat([output.emotion, output.poker]).float())
        terms["ort"] = losses.orthogonality(features[:size], features[size:])
    return terms


def neutral_faces(labels: Tensor, neutral: int, group: int) -> Tensor:
    """Index of the first neutral image of each `group` consecutive ones, or of the group's first image if none is:
    labels b -> b / group, rounded up. The choice within a group does not depend on the number of ranks and
    micro-batches.
    """
    is_neutral = functional.pad((labels == neutral).int(), (0, -len(labels) % group))
    within = is_neutral.view(-1, group).argmax(1)  # the first of equal ones
    return torch.arange(0, len(labels), group, device=labels.device) + within
