"""PF-MAG: adversarial training of PF-ViT and its discriminator with two optimizers (docs/concepts/method.md, section
3).

Legend: b images, k emotion classes, t tokens, d channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pfcluster.config import PfMagConfig
from pfcluster.data.batch import Batch
from pfcluster.distributed.process_group import World
from pfcluster.engine.base import Engine
from pfcluster.models.erasure import EmotionErasure, class_statistics, graded_emotions
from pfcluster.models.pf_vit import PFViT, PFViTOutput
from pfcluster.training.gan_diagnostics import (
    DISCRETE_METRICS,
    gradient_norms,
    mask_statistics,
)
from pfcluster.training.loss_balancing import TERMS, LossBalancer
from pfcluster.training.objective import Metrics, mean
from pfcluster.training.pf_mag_terms import (
    LossSettings,
    discriminator_terms,
    neutral_faces,
    pf_vit_terms,
)


class StepOutput(NamedTuple):
    """What a step of PF-MAG computed."""

    metrics: Metrics
    unerased: list[tuple[Tensor, Tensor]]
    """f_p of all images before the erasure, b t d, and their logits, b k, of each micro-batch; empty without one."""


def pf_mag_step(
    batches: Sequence[Batch],
    pf_vit: Engine,
    discriminator: Engine,
    settings: LossSettings,
    balancer: LossBalancer,
    *,
    warmup: bool,
    with_r1: bool = True,
) -> StepOutput:
    """Update the discriminator, then PF-ViT. Batches: images b 3 h w, labels b, order b n if patches are hidden.

    With one micro-batch a single forward pass of PF-ViT serves both updates, which is exact because the discriminator's
    update does not change PF-ViT. With several, all must pass the discriminator before PF-ViT's update begins, so
    PF-ViT runs forward twice: the same update as with the whole batch at once, with less memory. Further discriminator
    updates use the same generated images; the metrics are those of the first update. `with_r1` adds the R1
    penalty if its weight is positive.
    """
    shared = len(batches) == 1
    outputs: list[PFViTOutput] = []
    for batch in batches:
        with nullcontext() if shared else torch.no_grad():
            outputs.append(_generate(pf_vit, batch, settings, warmup=warmup, swap=shared or balancer.measuring))
    metrics: list[Metrics] = [mask_statistics(output.mask) for output in outputs]
    norms: Metrics = {}
    if settings.warmup_discriminator or not warmup:
        of_discriminator, norms["disc_grad_norm"] = _update_discriminator(
            batches, outputs, discriminator, settings, with_r1=with_r1 and settings.r1 > 0
        )
        metrics = [ours | theirs for ours, theirs in zip(metrics, of_discriminator, strict=True)]
    with discriminator.frozen() as frozen_discriminator:
        if balancer.measuring and not warmup:
            balancer.observe(_magnitudes(outputs, batches, frozen_discriminator, settings))
        of_pf_vit, norms["grad_norm"] = _update_pf_vit(
            batches, outputs if shared else None, pf_vit, frozen_discriminator, settings, balancer, warmup=warmup
        )
    metrics = [ours | theirs for ours, theirs in zip(metrics, of_pf_vit, strict=True)]
    unerased = [(out.unerased_tokens, out.logits.detach()) for out in outputs if out.unerased_tokens is not None]
    return StepOutput(mean(metrics) | norms, unerased)


def _generate(
    pf_vit: Engine, batch: Batch, settings: LossSettings, *, warmup: bool, swap: bool = True, **sync: bool
) -> PFViTOutput:
    """PF-ViT's forward pass with the outputs that the loss terms of this step need; `swap` False leaves out the swapped
    images. `sync`: of the engine.
    """
    swap_rows = None
    if swap and settings.has_swap and not warmup:
        assert settings.neutral is not None
        swap_rows = neutral_faces(batch.labels, settings.neutral, settings.generate_every)
    output: PFViTOutput = pf_vit(
        batch.images,
        batch.order,
        emotion_view=settings.identity_net is not None and not warmup,
        generate_every=settings.generate_every,
        swap_rows=swap_rows,
        **sync,
    )
    return output


def _update_pf_vit(
    batches: Sequence[Batch],
    outputs: Sequence[PFViTOutput] | None,
    pf_vit: Engine,
    discriminator: Callable[..., Any],
    settings: LossSettings,
    balancer: LossBalancer,
    *,
    warmup: bool,
) -> tuple[list[Metrics], Tensor]:
    """One update of PF-ViT; -> metrics of each micro-batch and gradient norm. `outputs` None: generate once more."""
    metrics: list[Metrics] = []
    for index, batch in enumerate(batches):
        last = index == len(batches) - 1
        output = outputs[index] if outputs else _generate(pf_vit, batch, settings, warmup=warmup, sync=last)
        terms = pf_vit_terms(output, batch, None if warmup else discriminator, settings)
        total = balancer.total(terms, warmup=warmup)
        pf_vit.backward(total / len(batches))
        accuracy = (output.logits.argmax(1) == batch.labels).float().mean()
        metrics.append({**terms, "loss": total, "train_accuracy": accuracy})
    return metrics, pf_vit.step()


def _update_discriminator(
    batches: Sequence[Batch],
    outputs: Sequence[PFViTOutput],
    discriminator: Engine,
    settings: LossSettings,
    *,
    with_r1: bool,
) -> tuple[list[Metrics], Tensor]:
    """All updates of the discriminator in a step; -> metrics of each micro-batch and gradient norm of the first."""
    metrics: list[Metrics] = []
    norms: list[Tensor] = []
    for update in range(settings.discriminator_updates):
        for index, (batch, output) in enumerate(zip(batches, outputs, strict=True)):
            last = index == len(batches) - 1
            generated = batch.every(settings.generate_every)
            terms = discriminator_terms(
                discriminator, output, generated, settings, update=update, with_r1=with_r1, sync=last
            )
            loss = terms["disc_loss"] + terms["adversary_loss"] if settings.has_adversary else terms["disc_loss"]
            discriminator.backward(loss / len(batches))
            if update == 0:
                metrics.append(terms)
        norms.append(discriminator.step(more_updates_follow=update < settings.discriminator_updates - 1))
    return metrics, norms[0]


@torch.no_grad()
def _magnitudes(
    outputs: Sequence[PFViTOutput], batches: Sequence[Batch], discriminator: Callable[..., Any], settings: LossSettings
) -> Metrics:
    """The terms as means over the micro-batches, without gradients."""
    return mean(
        [pf_vit_terms(output, batch, discriminator, settings) for output, batch in zip(outputs, batches, strict=True)]
    )


class PfMagObjective:
    """PF-ViT and the discriminator with their engines and the balancer of the loss terms."""

    def __init__(
        self, pf_vit: Engine, discriminator: Engine, settings: LossSettings, config: PfMagConfig, world: World
    ) -> None:
        self.engines = {"model": pf_vit, "discriminator": discriminator}
        self.discrete_metrics = DISCRETE_METRICS | {"train_accuracy"}
        self.settings, self.config = settings, config
        self.balancer = LossBalancer.from_config(config, world)
        module = pf_vit.module
        self.erasure = module.erasure if isinstance(module, PFViT) else None
        self.world = world

    def step(self, batches: Sequence[Batch], step: int) -> Metrics:
        """Update the discriminator and PF-ViT on micro-batches: images b 3 h w; -> scalars of this rank. `step` is
        0-based. A collective.
        """
        config = self.config
        warmup = step < config.warmup_steps
        metrics, unerased = pf_mag_step(
            batches,
            self.engines["model"],
            self.engines["discriminator"],
            self.settings,
            self.balancer,
            warmup=warmup,
            with_r1=step % config.r1_every == 0,
        )
        if self.erasure is not None:
            self._observe(self.erasure, unerased, batches, step)
        if config.grad_norms_every and (step + 1) % config.grad_norms_every == 0:
            metrics |= self._gradient_norms(batches[0], warmup=warmup)
        return metrics

    def _observe(
        self, erasure: EmotionErasure, unerased: Sequence[tuple[Tensor, Tensor]], batches: Sequence[Batch], step: int
    ) -> None:
        """Let the erasure of f_p follow f_p and the logits of a step's micro-batches. A collective."""
        assert self.config.erasure_start is not None
        tokens, logits = (torch.cat(parts) for parts in zip(*unerased, strict=True))
        emotions = graded_emotions(logits)
        labels = torch.cat([batch.labels for batch in batches])
        statistics = class_statistics(tokens, emotions, labels, self.world.sum)
        guard = self.engines["model"].guard
        fit = step + 1 >= self.config.erasure_start
        erasure.observe(statistics, fit=fit, skips=None if guard is None else guard.skips)

    def _gradient_norms(self, batch: Batch, *, warmup: bool) -> Metrics:
        """Gradient norms of the loss terms, with the weights after the step, over the images from which the step
        generates.
        """

        def single_term_loss(name: str, output: PFViTOutput, part: Batch, discriminator: Callable[..., Any]) -> Tensor:
            terms = pf_vit_terms(output, part, None if warmup else discriminator, self.settings)
            constants = {other: term.detach() for other, term in terms.items()}
            return self.balancer.total(constants | {name: terms[name]}, warmup=warmup)

        measured = ("cls", "rec") if warmup else tuple(name for name in TERMS if self.settings.has_term(name))
        names = tuple(name for name in measured if name != "swap")  # its tensors are of other images
        emotion_view = self.settings.identity_net is not None and not warmup
        model, discriminator = self.engines["model"], self.engines["discriminator"]
        generated = batch.every(self.config.generate_every)
        return gradient_norms(generated, model, discriminator, names, single_term_loss, emotion_view=emotion_view)

    def state(self) -> dict[str, Any]:
        """The balancer's state, as JSON values; equal on all ranks. Not a collective."""
        return self.balancer.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned. Not a collective."""
        self.balancer.load_state(state)
