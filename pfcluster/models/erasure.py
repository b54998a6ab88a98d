"""Erasure of the emotion from the identity tokens f_p. Not in the paper, whose losses leave the emotion in f_p.

An offset, which depends linearly on the probabilities that PF-ViT's classifier assigns to the emotions, is subtracted
from an image's patch tokens, so that their mean is the same for every class. Then no linear classifier predicts the
class from them better than a constant does (Belrose et al. 2023, theorem 3.1). The class token, from which the
classifier reads the emotion, is replaced by the mean class token. Nonlinear classifiers may still predict the emotion.

The projection of Belrose et al. (LEACE), which needs no classifier, removes k - 1 dimensions of every token; this
offset has k - 1 degrees of freedom for all patch tokens together (docs/results/poker_face_search.md).

Legend: b images, k classes, t tokens, n = t - 1 patches, d channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

DECAY = 0.98
"""Decay of the running sums over training steps, which cover about the last 50 steps."""
SMALLEST_COUNT = 1e-12
"""Smallest count of a class in the running sums: a class that has not occurred for a thousand steps keeps its mean,
which would be lost to rounding if its sums became ever smaller."""
TEMPERATURE = 3.0
"""Softens the classifier's probabilities, so that they grade an expression instead of being near 0 or 1."""
RIDGE = 1e-4
"""Added to the squared differences between the classes' mean probabilities: a classifier that cannot distinguish the
classes, at the start of a training from the MAE, removes little instead of amplifying noise."""


def _without_autocast(device: str) -> AbstractContextManager[object]:
    """Where autocast is on, a context without it; elsewhere nothing, which exports to a graph."""
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


def graded_emotions(logits: Tensor) -> Tensor:
    """The classifier's probabilities at `TEMPERATURE` minus 1 / k: b k -> b k, fp32, without gradients.

    softmax(x) - 1 / k = (expm1(x) - mean(expm1(x))) / Σ exp(x), without the cancellation where all are nearly equal:
    the fit divides by differences of these values.
    """
    logits = logits.detach().float() / TEMPERATURE
    powers = torch.expm1(logits - logits.amax(1, keepdim=True))
    return (powers - powers.mean(1, keepdim=True)) / (powers.shape[1] + powers.sum(1, keepdim=True))


class ClassStatistics(NamedTuple):
    """Sums over the images of each class from which the erasure is fitted."""

    counts: Tensor
    """Images of each class, k."""
    tokens: Tensor
    """Their f_p, k t d."""
    emotions: Tensor
    """Their graded emotions, k k."""

    def finite(self) -> Tensor:
        """Whether all sums are finite, a scalar on the device."""
        return self.tokens.isfinite().all() & self.emotions.isfinite().all()


def class_statistics(
    tokens: Tensor, emotions: Tensor, labels: Tensor, total: Callable[[Tensor], Tensor]
) -> ClassStatistics:
    """Statistics of tokens b t d, graded emotions b k and labels b on all ranks; `total` sums a tensor over ranks and
    is called once.

    In fp64: sums in another order, which differs between numbers of ranks, then give the same erasure.
    """
    classes = emotions.shape[1]
    with _without_autocast(tokens.device.type):
        of_class = functional.one_hot(labels, classes).double()
        parts = (torch.ones_like(of_class[:, :1]), emotions.double(), tokens.detach().double().flatten(1))
        local = torch.cat([of_class.T @ part for part in parts], dim=1)
        counts, of_emotions, of_tokens = total(local).split([part.shape[1] for part in parts], dim=1)
    return ClassStatistics(counts[:, 0], of_tokens.unflatten(1, tokens.shape[1:]), of_emotions)


def class_means(counts: Tensor, sums: Tensor) -> Tensor:
    """k, k ... -> k ...; 0 for classes without images."""
    return sums / torch.where(counts > 0, counts, 1).reshape(-1, *[1] * (sums.ndim - 1))


class OffsetRemoval(nn.Module):
    """x -> x - Mᵀ(p - π) for the patch tokens of an image with graded emotions p; the class token becomes c, the mean
    one. The identity until `fit`.
    """

    offsets: Tensor
    expected: Tensor
    class_token: Tensor
    fitted: Tensor

    def __init__(self, tokens: int, width: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("offsets", torch.zeros(classes, tokens - 1, width))  # M
        self.register_buffer("expected", torch.zeros(classes))  # π
        self.register_buffer("class_token", torch.zeros(width))  # c
        self.register_buffer("fitted", torch.zeros(()))  # 1 after the first fit

    def forward(self, tokens: Tensor, emotions: Tensor) -> Tensor:
        """f_p b t d, b k -> b t d, computed in fp32."""
        values = tokens.float()
        with _without_autocast(tokens.device.type):
            class_token = torch.lerp(values[:, :1], self.class_token.expand_as(values[:, :1]), self.fitted)
            offsets = ((emotions - self.expected) @ self.offsets.flatten(1)).unflatten(1, self.offsets.shape[1:])
            return torch.cat([class_token, values[:, 1:] - offsets], dim=1).to(tokens.dtype)

    @torch.no_grad()
    def fit(self, statistics: ClassStatistics, valid: Tensor | None = None) -> None:
        """Fit the offset such that the patch tokens of the counted images have the same mean for all classes. No effect
        where `valid`, a scalar on the device, is false. Reads nothing from the device.

        D are the differences of the classes' mean tokens from the mean of these means, Q those of their graded
        emotions. M solves Q M = D by ridge regression: M = Qᵀ(Q Qᵀ + ε I)⁻¹ D with ε = RIDGE.
        """
        counts = statistics.counts.double()
        mean_token, differences = _centred_means(counts, statistics.tokens)
        expected, emotions = _centred_means(counts, statistics.emotions)
        square = emotions @ emotions.T + RIDGE * torch.eye(len(counts), dtype=torch.double, device=counts.device)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(square)[0])
        offsets = (emotions.T @ inverse @ differences[:, 1:].flatten(1)).reshape_as(self.offsets)
        for buffer, fitted in (
            (self.offsets, offsets),
            (self.expected, expected),
            (self.class_token, mean_token[0]),
            (self.fitted, torch.ones_like(self.fitted)),
        ):
            buffer.copy_(fitted if valid is None else torch.where(valid, fitted.to(buffer), buffer))


def _centred_means(counts: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of the class means, and the classes' differences from it, 0 for classes without images: k, k ... -> ...,
    k ... in fp64.
    """
    means = class_means(counts, sums.double())
    present = (counts > 0).double()
    centre = means.sum(0) / present.sum().clamp(min=1)
    return centre, (means - centre) * present.reshape(-1, *[1] * (means.ndim - 1))


class EmotionErasure(nn.Module):
    """The erasure of f_p: in training fitted to running sums, in evaluation to images without augmentation.

    In training mode it applies `running`, which follows the weights; in evaluation mode `calibrated`, which belongs to
    the weights that were last evaluated, as the batch norms of averaged weights are recomputed (Izmailov et al. 2018).
    """

    counts: Tensor
    tokens: Tensor
    emotions: Tensor

    def __init__(self, tokens: int, width: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.zeros(classes))
        self.register_buffer("tokens", torch.zeros(classes, tokens, width))
        self.register_buffer("emotions", torch.zeros(classes, classes))
        self.running: OffsetRemoval | None = OffsetRemoval(tokens, width, classes)
        self.calibrated = OffsetRemoval(tokens, width, classes)

    def forward(self, tokens: Tensor, logits: Tensor) -> Tensor:
        """f_p b t d and the classifier's logits b k -> f_p without the emotion, b t d."""
        running = self.running if self.training else None
        erased: Tensor = (self.calibrated if running is None else running)(tokens, graded_emotions(logits))
        return erased

    @torch.no_grad()
    def observe(self, step: ClassStatistics, *, fit: bool, skips: Tensor | None = None) -> None:
        """Add the statistics of a step to the running ones; `fit` fits the erasure to them. Changes nothing if they
        are not finite, or if `skips`, a scalar on the device, is not 0.
        """
        valid = step.finite()
        if skips is not None:
            valid = valid & (skips == 0)
        sums = ClassStatistics(self.counts, self.tokens, self.emotions)
        for running, added in zip(sums, step, strict=True):
            running.copy_(torch.where(valid, DECAY * running + (1 - DECAY) * added.float(), running))
        faded = (self.counts > 0) & (self.counts < SMALLEST_COUNT)
        scale = torch.where(faded, SMALLEST_COUNT / self.counts, 1)
        for running in sums:
            running.mul_(scale.reshape(-1, *[1] * (running.ndim - 1)))
        if fit and self.running is not None:
            self.running.fit(sums, valid)

    @property
    def erases(self) -> bool:
        """Whether the erasure has been fitted in training. Reads from the device."""
        return self.running is not None and bool(self.running.fitted)

    def drop_training_state(self) -> None:
        """Keep the calibrated erasure alone, in training mode too: `inference_weights` are then the state dict."""
        del self.counts, self.tokens, self.emotions
        self.running = None

    def calibrate_from_running(self) -> None:
        """Use the running erasure as the calibrated one: for weights that are saved without an evaluation."""
        if self.running is not None:
            self.calibrated.load_state_dict(self.running.state_dict())

    def copy_calibration(self, other: EmotionErasure) -> None:
        """Take over the calibrated erasure of another one of the same size."""
        self.calibrated.load_state_dict(other.calibrated.state_dict())


def inference_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's weights without those that its erasure needs in training only."""
    return {
        name: value
        for name, value in weights.items()
        if not name.startswith("erasure.") or name.startswith("erasure.calibrated.")
    }
