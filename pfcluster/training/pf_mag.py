"""PF-MAG: PF-ViT and its discriminator, two optimizers, one forward for both turns (METHOD.md, section 3).

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
from pfcluster.training.gan_diagnostics import critic_answers, gradient_norms, mask_shape
from pfcluster.training.objective import Metrics, mean

TERMS = ("cls", "adv", "rec", "ort", "sep")
SMALLEST_MAGNITUDE = 1e-4


@dataclass(frozen=True)
class Setting:
    """What the losses need besides the batch."""

    neutral: int | None
    """Index of the neutral class; None where the dataset has none."""
    class_weights: Tensor | None
    """Weights of the classes in L_cls, k, or None."""
    label_smoothing: float
    fake_emotions: str
    recognition: nn.Module | None
    """φ; None takes the cosine on the tokens."""
    r1: float = 0.0
    """Weight of the R1 penalty in L_Δ."""
    critic_emotions: bool = True
    """Whether Δ looks at emotions; else at real and generated alone."""
    emotion_weight: float = 1.0
    """Of real images' emotions in L_Δ."""
    smoothing: float = 0.0
    """Of real images' target in L_Δ."""
    turns: int = 1
    """Δ's updates a step."""
    reads_faces: bool = False
    """Whether Δ's engine has a Reader of f_p, and L_PFViT an L_sep."""


def pf_mag_setting(
    config: PfMagConfig,
    neutral: int | None,
    class_weights: Tensor | None,
    label_smoothing: float,
    recognition: nn.Module | None,
) -> Setting:
    """The setting that a config asks for."""
    return Setting(
        neutral,
        class_weights,
        label_smoothing,
        config.fake_emotions,
        recognition,
        config.r1,
        config.critic_emotions,
        emotion_weight=config.critic_emotion_weight,
        smoothing=config.critic_smoothing,
        turns=config.critic_turns,
        reads_faces=config.weights.sep > 0,
    )


def critic_terms(
    critic: Engine, views: Views, batch: Batch, setting: Setting, *, turn: int, fakes: bool, sync: bool
) -> Metrics:
    """L_Δ on real images, reconstructions and poker faces, in one forward pass of Δ, with the shares that it judges
    rightly; without `fakes` on real images' emotions alone. With a Reader its cross-entropy besides.
    """
    made = [image.detach() for image in (views.reconstruction, views.poker) if image is not None and fakes]
    images = batch.show(batch.images.detach(), turn).requires_grad_(setting.r1 > 0)
    seen = torch.cat([images, *[batch.show(image, turn) for image in made]])
    logits, read = _answers(critic, seen, views, setting, detached=True, sync=sync)
    real, fake = logits[: len(images)], logits[len(images) :]
    loss = losses.discriminator(
        real,
        fake if fakes else None,
        batch.labels,
        fake_emotions=setting.fake_emotions,
        emotions=setting.critic_emotions,
        emotion_weight=setting.emotion_weight,
        smoothing=setting.smoothing,
    )
    if setting.r1 > 0:
        slope = critic.input_gradient(real[:, -1].float().sum(), images)
        loss = loss + setting.r1 * losses.gradient_penalty(slope)
    answers = critic_answers(logits.detach(), batch.labels, setting.neutral, emotions=setting.critic_emotions)
    if read is None:
        return {"critic": loss, **answers}
    # weighted as L_cls is: an unweighted reader of nothing would answer the classes' frequencies, not evenly
    return {"critic": loss, "reader": losses.classification(read, batch.labels, setting.class_weights), **answers}


def _answers(
    critic: Callable[..., Any], images: Tensor, views: Views, setting: Setting, *, detached: bool, **named: bool
) -> tuple[Tensor, Tensor | None]:
    """Δ's logits of images, and its Reader's of f_p where it has one."""
    if not setting.reads_faces:
        return critic(images, **named), None
    assert views.face_tokens is not None
    faces = views.face_tokens.detach() if detached else views.face_tokens
    logits, read = critic(images, faces, **named)
    return logits, read


def pf_vit_terms(views: Views, batch: Batch, judge: Callable[..., Any] | None, setting: Setting) -> Metrics:
    """The terms of L_PFViT: in the warm-up, without a judge, the two that need none; L_ort only with a separator, L_sep
    only with a Reader.
    """
    terms = {
        "cls": losses.classification(views.logits, batch.labels, setting.class_weights, setting.label_smoothing),
        "rec": losses.reconstruction(batch.images, views.reconstruction, views.poker, batch.labels, setting.neutral),
    }
    if judge is None:
        return terms
    size = len(batch.images)
    shown = [views.reconstruction] if views.poker is None else [views.reconstruction, views.poker]
    seen, read = _answers(judge, batch.show(torch.cat(shown), -1), views, setting, detached=False)
    if read is not None:
        terms["sep"] = losses.confusion(read)
    poker = None if views.poker is None else seen[size:]
    terms["adv"] = losses.adversarial(
        seen[:size], poker, batch.labels, setting.neutral, emotions=setting.critic_emotions
    )
    if views.poker is None or views.face_tokens is None:
        return terms
    if setting.recognition is None:
        terms["ort"] = losses.orthogonality(views.emotion_tokens, views.face_tokens)
    else:
        assert views.emotion is not None
        features = setting.recognition(torch.cat([views.emotion, views.poker]).float())
        terms["ort"] = losses.orthogonality(features[:size], features[size:])
    return terms


def pf_mag_step(
    batches: Sequence[Batch],
    pf_vit: Engine,
    critic: Engine,
    setting: Setting,
    balance: Balance,
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
    emotion_view = setting.recognition is not None and not warm
    shared = len(batches) == 1
    metrics: list[Metrics] = []
    seen: list[Views] = []
    norms: list[Tensor] = []
    for turn in range(setting.turns):
        for index, batch in enumerate(batches):
            if turn == 0:
                with nullcontext() if shared else torch.no_grad():
                    seen.append(pf_vit(batch.images, batch.order, emotion_view=emotion_view))
            last = index == len(batches) - 1
            found = critic_terms(critic, seen[index], batch, setting, turn=turn, fakes=fakes, sync=last)
            loss = found["critic"] + found["reader"] if setting.reads_faces else found["critic"]
            critic.backward(loss / len(batches))
            if turn == 0:
                metrics.append(found | mask_shape(seen[index].mask))
        norms.append(critic.step(again=turn < setting.turns - 1))

    with critic.frozen() as judge:  # raw module, no gradients of its own
        if balance.watches and not warm:
            balance.observe(magnitudes(seen, batches, judge, setting))
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            views = seen[0] if shared else pf_vit(batch.images, batch.order, emotion_view=emotion_view, sync=last)
            terms = pf_vit_terms(views, batch, None if warm else judge, setting)
            total = balance.total(terms, warm=warm, ramp=ramp)
            pf_vit.backward(total / len(batches))
            correct = (views.logits.argmax(1) == batch.labels).float().mean()
            metrics[index] |= {**terms, "loss": total, "train_accuracy": correct}
    return {**mean(metrics), "grad_norm": pf_vit.step(), "critic_grad_norm": norms[0]}


@torch.no_grad()
def magnitudes(seen: Sequence[Views], batches: Sequence[Batch], judge: Callable[..., Any], setting: Setting) -> Metrics:
    """The terms over a whole batch, before any gradient is taken: what the automatic balance goes by."""
    return mean([pf_vit_terms(views, batch, judge, setting) for views, batch in zip(seen, batches, strict=True)])


@dataclass
class Balance:
    """The λ that are in force: fixed ones, or shares of terms brought to equal magnitude (METHOD.md, Losses).

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

    def __init__(self, pf_vit: Engine, critic: Engine, setting: Setting, config: PfMagConfig, world: World) -> None:
        self.engines = {"model": pf_vit, "critic": critic}
        self.setting = setting
        self.warmup_steps, self.ramp_steps = config.warmup_steps, config.ramp_steps
        self.critic_first_steps = config.critic_first_steps
        self.diagnose_every = config.diagnose_every
        self.balance = Balance(
            config.weights, config.balance == "auto", config.balance_steps, config.warmup_rec, config.warmup_cls, world
        )

    def step(self, batches: Sequence[Batch], step: int) -> Metrics:
        warm = step < self.warmup_steps
        ramp = ramp_share(step - self.warmup_steps, self.ramp_steps)
        model, critic = self.engines["model"], self.engines["critic"]
        fakes = step >= self.critic_first_steps
        metrics = pf_mag_step(batches, model, critic, self.setting, self.balance, warm=warm, ramp=ramp, fakes=fakes)
        if self.diagnose_every and (step + 1) % self.diagnose_every == 0:
            metrics |= self._diagnose(batches[0], warm=warm, ramp=ramp)
        return metrics

    def _diagnose(self, batch: Batch, *, warm: bool, ramp: float) -> Metrics:
        """How hard each term pulls, with the weights after the step, when both engines rest."""

        def alone(name: str, views: Views, part: Batch, judge: Callable[..., Any]) -> Tensor:
            terms = pf_vit_terms(views, part, None if warm else judge, self.setting)
            still = {other: term.detach() for other, term in terms.items()}
            return self.balance.total(still | {name: terms[name]}, warm=warm, ramp=ramp)

        names = ("cls", "rec") if warm else tuple(name for name in TERMS if name != "sep" or self.setting.reads_faces)
        emotion_view = self.setting.recognition is not None and not warm
        model, critic = self.engines["model"], self.engines["critic"]
        return gradient_norms(batch, model, critic, names, alone, emotion_view=emotion_view)

    def state(self) -> dict[str, Any]:
        return {"balance_seen": self.balance.seen, "balance_sums": self.balance.sums}

    def load_state(self, state: dict[str, Any]) -> None:
        self.balance.seen, self.balance.sums = state["balance_seen"], dict(state["balance_sums"])
