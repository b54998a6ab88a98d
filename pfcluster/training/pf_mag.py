"""PF-MAG: PF-ViT and its discriminator, two optimizers, one forward for both turns (docs/concepts/method.md, section
3).

Legend: b images, k emotion classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pfcluster.config import LossWeights, PfMagConfig
from pfcluster.data.batch import Batch
from pfcluster.distributed.process_group import World
from pfcluster.engine.base import Engine
from pfcluster.models import losses
from pfcluster.models.pf_vit import Views
from pfcluster.training.gan_diagnostics import discriminator_outputs, gradient_norms, mask_shape
from pfcluster.training.objective import Metrics, mean

TERMS = ("cls", "adv", "rec", "ort", "confusion")
SMALLEST_MAGNITUDE = 1e-4


@dataclass(frozen=True)
class LossSettings:
    """What the losses need besides the batch."""

    neutral: int | None
    """Index of the neutral class; None where the dataset has none."""
    class_weights: Tensor | None
    """Weights of the classes in L_cls, k, or None."""
    label_smoothing: float
    fake_class_targets: str
    identity_net: nn.Module | None
    """φ; None takes the cosine on the tokens."""
    r1: float = 0.0
    """Weight of the R1 penalty in L_Δ."""
    discriminator_emotions: bool = True
    """Whether Δ looks at emotions; else at real and generated alone."""
    emotion_weight: float = 1.0
    """Of real images' emotions in L_Δ."""
    smoothing: float = 0.0
    """Of real images' target in L_Δ."""
    turns: int = 1
    """Δ's updates a step."""
    has_adversary: bool = False
    """Whether Δ's engine has a Reader of f_p, and L_PFViT an L_sep."""


def loss_settings(
    config: PfMagConfig,
    neutral: int | None,
    class_weights: Tensor | None,
    label_smoothing: float,
    identity_net: nn.Module | None,
) -> LossSettings:
    """The setting that a config asks for."""
    return LossSettings(
        neutral,
        class_weights,
        label_smoothing,
        config.fake_class_targets,
        identity_net,
        config.r1,
        config.discriminator_emotions,
        emotion_weight=config.discriminator_emotion_weight,
        smoothing=config.real_label_smoothing,
        turns=config.discriminator_updates,
        has_adversary=config.weights.confusion > 0,
    )


def discriminator_terms(
    discriminator: Engine, views: Views, batch: Batch, settings: LossSettings, *, turn: int, fakes: bool, sync: bool
) -> Metrics:
    """L_Δ on real images, reconstructions and poker faces, in one forward pass of Δ, with the shares that it judges
    rightly; without `fakes` on real images' emotions alone. With a Reader its cross-entropy besides.
    """
    made = [image.detach() for image in (views.reconstruction, views.poker) if image is not None and fakes]
    images = batch.augment_for_discriminator(batch.images.detach(), turn).requires_grad_(settings.r1 > 0)
    seen = torch.cat([images, *[batch.augment_for_discriminator(image, turn) for image in made]])
    logits, read = _answers(discriminator, seen, views, settings, detached=True, sync=sync)
    real, fake = logits[: len(images)], logits[len(images) :]
    loss = losses.discriminator(
        real,
        fake if fakes else None,
        batch.labels,
        fake_class_targets=settings.fake_class_targets,
        emotions=settings.discriminator_emotions,
        emotion_weight=settings.emotion_weight,
        smoothing=settings.smoothing,
    )
    if settings.r1 > 0:
        slope = discriminator.input_gradient(real[:, -1].float().sum(), images)
        loss = loss + settings.r1 * losses.gradient_penalty(slope)
    answers = discriminator_outputs(
        logits.detach(), batch.labels, settings.neutral, emotions=settings.discriminator_emotions
    )
    if read is None:
        return {"disc_loss": loss, **answers}
    # weighted as L_cls is: an unweighted reader of nothing would answer the classes' frequencies, not evenly
    return {
        "disc_loss": loss,
        "adversary_loss": losses.classification(read, batch.labels, settings.class_weights),
        **answers,
    }


def _answers(
    discriminator: Callable[..., Any],
    images: Tensor,
    views: Views,
    settings: LossSettings,
    *,
    detached: bool,
    **named: bool,
) -> tuple[Tensor, Tensor | None]:
    """Δ's logits of images, and its Reader's of f_p where it has one."""
    if not settings.has_adversary:
        return discriminator(images, **named), None
    assert views.face_tokens is not None
    faces = views.face_tokens.detach() if detached else views.face_tokens
    logits, read = discriminator(images, faces, **named)
    return logits, read


def pf_vit_terms(views: Views, batch: Batch, judge: Callable[..., Any] | None, settings: LossSettings) -> Metrics:
    """The terms of L_PFViT: in the warm-up, without a judge, the two that need none; L_ort only with a separator, L_sep
    only with a Reader.
    """
    terms = {
        "cls": losses.classification(views.logits, batch.labels, settings.class_weights, settings.label_smoothing),
        "rec": losses.reconstruction(batch.images, views.reconstruction, views.poker, batch.labels, settings.neutral),
    }
    if judge is None:
        return terms
    size = len(batch.images)
    shown = [views.reconstruction] if views.poker is None else [views.reconstruction, views.poker]
    seen, read = _answers(judge, batch.augment_for_discriminator(torch.cat(shown), -1), views, settings, detached=False)
    if read is not None:
        terms["confusion"] = losses.confusion(read)
    poker = None if views.poker is None else seen[size:]
    terms["adv"] = losses.adversarial(
        seen[:size], poker, batch.labels, settings.neutral, emotions=settings.discriminator_emotions
    )
    if views.poker is None or views.face_tokens is None:
        return terms
    if settings.identity_net is None:
        terms["ort"] = losses.orthogonality(views.emotion_tokens, views.face_tokens)
    else:
        assert views.emotion is not None
        features = settings.identity_net(torch.cat([views.emotion, views.poker]).float())
        terms["ort"] = losses.orthogonality(features[:size], features[size:])
    return terms


def pf_mag_step(
    batches: Sequence[Batch],
    pf_vit: Engine,
    discriminator: Engine,
    settings: LossSettings,
    balance: LossBalancer,
    *,
    warm: bool,
    ramp: float = 1.0,
    fakes: bool = True,
) -> Metrics:
    """One turn of the discriminator, one of PF-ViT. images: b 3 h w, labels: b, order: b n where patches are hidden.

    With one micro-batch a single forward of PF-ViT serves both turns, which is exact because Δ's update does not touch
    PF-ViT. With several, Δ must have seen all of them before PF-ViT's turn begins, so views are made twice: the same
    step as the whole batch in one, in less memory. More turns of Δ look at the same views: their metrics are the first
    turn's. `ramp` is the share of λ_adv that is in force; without `fakes` Δ sees real images alone.
    """
    emotion_view = settings.identity_net is not None and not warm
    shared = len(batches) == 1
    metrics: list[Metrics] = []
    seen: list[Views] = []
    norms: list[Tensor] = []
    for turn in range(settings.turns):
        for index, batch in enumerate(batches):
            if turn == 0:
                with nullcontext() if shared else torch.no_grad():
                    seen.append(pf_vit(batch.images, batch.order, emotion_view=emotion_view))
            last = index == len(batches) - 1
            found = discriminator_terms(discriminator, seen[index], batch, settings, turn=turn, fakes=fakes, sync=last)
            loss = found["disc_loss"] + found["adversary_loss"] if settings.has_adversary else found["disc_loss"]
            discriminator.backward(loss / len(batches))
            if turn == 0:
                metrics.append(found | mask_shape(seen[index].mask))
        norms.append(discriminator.step(more_updates_follow=turn < settings.turns - 1))

    with discriminator.frozen() as judge:  # raw module, no gradients of its own
        if balance.watches and not warm:
            balance.observe(magnitudes(seen, batches, judge, settings))
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            views = seen[0] if shared else pf_vit(batch.images, batch.order, emotion_view=emotion_view, sync=last)
            terms = pf_vit_terms(views, batch, None if warm else judge, settings)
            total = balance.total(terms, warm=warm, ramp=ramp)
            pf_vit.backward(total / len(batches))
            correct = (views.logits.argmax(1) == batch.labels).float().mean()
            metrics[index] |= {**terms, "loss": total, "train_accuracy": correct}
    return {**mean(metrics), "grad_norm": pf_vit.step(), "disc_grad_norm": norms[0]}


@torch.no_grad()
def magnitudes(
    seen: Sequence[Views], batches: Sequence[Batch], judge: Callable[..., Any], settings: LossSettings
) -> Metrics:
    """The terms over a whole batch, before any gradient is taken: what the automatic balance goes by."""
    return mean([pf_vit_terms(views, batch, judge, settings) for views, batch in zip(seen, batches, strict=True)])


@dataclass
class LossBalancer:
    """The λ that are in force: fixed ones, or shares of terms brought to equal magnitude (docs/concepts/method.md,
    Losses).

    The automatic balance divides each term by its mean magnitude over the first steps after the warm-up, over all
    ranks; during those steps by the mean so far. Then it never changes again.
    """

    weights: LossWeights
    automatic: bool
    steps: int
    warmup_rec: float
    warmup_cls: float
    world: World
    seen: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    @property
    def watches(self) -> bool:
        """Whether the magnitudes of the coming step are wanted."""
        return self.automatic and self.seen < self.steps

    def observe(self, terms: Metrics) -> None:
        """Take one more step's magnitudes into account, over all its micro-batches and ranks."""
        assert self.watches
        found = [name for name in TERMS if name in terms]
        values = self.world.mean(torch.stack([terms[name].detach().double().abs() for name in found])).tolist()
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in zip(found, values, strict=True)}
        self.seen += 1

    def factor(self, name: str) -> float:
        """λ of a term."""
        share = float(getattr(self.weights, name))
        if not self.automatic:
            return share
        return share / max(self.sums[name] / self.seen, SMALLEST_MAGNITUDE)

    def total(self, terms: Metrics, *, warm: bool, ramp: float = 1.0) -> Tensor:
        """L_PFViT with so much of λ_adv, or in the warm-up the two terms that make images and tell emotions."""
        if warm:
            return self.warmup_rec * terms["rec"] + self.warmup_cls * terms["cls"]
        weighted = [
            self.factor(name) * (ramp if name == "adv" else 1.0) * terms[name] for name in TERMS if name in terms
        ]
        return torch.stack(weighted).sum()


def ramp_share(step: int, steps: int) -> float:
    """Share of λ_adv at a step after the warm-up: from 0 to 1 over so many."""
    return min(1.0, max(0, step) / steps) if steps else 1.0


class PfMagObjective:
    """PF-ViT and Δ with their engines, and the balance between the terms."""

    def __init__(
        self, pf_vit: Engine, discriminator: Engine, settings: LossSettings, config: PfMagConfig, world: World
    ) -> None:
        self.engines = {"model": pf_vit, "discriminator": discriminator}
        self.settings = settings
        self.warmup_steps, self.adv_ramp_steps = config.warmup_steps, config.adv_ramp_steps
        self.discriminator_pretrain_steps = config.discriminator_pretrain_steps
        self.grad_norms_every = config.grad_norms_every
        self.balance = LossBalancer(
            config.weights, config.loss_balancing == "auto", config.loss_balancing_steps, config.warmup_rec, config.warmup_cls, world
        )

    def step(self, batches: Sequence[Batch], step: int) -> Metrics:
        warm = step < self.warmup_steps
        ramp = ramp_share(step - self.warmup_steps, self.adv_ramp_steps)
        model, discriminator = self.engines["model"], self.engines["discriminator"]
        fakes = step >= self.discriminator_pretrain_steps
        metrics = pf_mag_step(
            batches, model, discriminator, self.settings, self.balance, warm=warm, ramp=ramp, fakes=fakes
        )
        if self.grad_norms_every and (step + 1) % self.grad_norms_every == 0:
            metrics |= self._diagnose(batches[0], warm=warm, ramp=ramp)
        return metrics

    def _diagnose(self, batch: Batch, *, warm: bool, ramp: float) -> Metrics:
        """How hard each term pulls, with the weights after the step, when both engines rest."""

        def alone(name: str, views: Views, part: Batch, judge: Callable[..., Any]) -> Tensor:
            terms = pf_vit_terms(views, part, None if warm else judge, self.settings)
            still = {other: term.detach() for other, term in terms.items()}
            return self.balance.total(still | {name: terms[name]}, warm=warm, ramp=ramp)

        names = (
            ("cls", "rec")
            if warm
            else tuple(name for name in TERMS if name != "confusion" or self.settings.has_adversary)
        )
        emotion_view = self.settings.identity_net is not None and not warm
        model, discriminator = self.engines["model"], self.engines["discriminator"]
        return gradient_norms(batch, model, discriminator, names, alone, emotion_view=emotion_view)

    def state(self) -> dict[str, Any]:
        return {"balance_seen": self.balance.seen, "balance_sums": self.balance.sums}

    def load_state(self, state: dict[str, Any]) -> None:
        self.balance.seen, self.balance.sums = state["balance_seen"], dict(state["balance_sums"])
