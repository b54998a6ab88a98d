"""Linear erasure of the emotion from the identity tokens f_p. Not in the paper, whose losses leave the emotion in f_p.

Where the mean of a feature vector is the same for every class, no linear classifier predicts the class better than a
constant does (Belrose et al. 2023, "LEACE", theorem 3.1). The erasure projects each token along the differences between
the class means of that token, orthogonally in the metric of the tokens' covariance, so that it changes little else.
Features that are not linear, such as products, may still tell the emotion.

Legend: b images, k classes, t tokens, d channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

DECAY = 0.98
"""Of the running sums over training steps: they cover the last 50 steps."""
FIT_EVERY = 5
"""Steps between two fits of the projection, with which the scatter is observed too: it is the largest tensor that ranks
exchange for the erasure, t d d."""
RIDGE = 0.01
"""Added to a token's covariance, over its mean variance, so that it can be inverted: directions in which a token hardly
varies do not count more than ten times as much as its others."""
RIDGE_BETWEEN = 1e-9
"""As RIDGE, for the products of the differences between class means, of which one more than there are directions."""
TOKENS_AT_ONCE = 16
"""Tokens whose projections are computed at once, in fp64."""
TINY = 1e-30


def _without_autocast(device: str) -> AbstractContextManager[object]:
    """Where autocast is on, a context without it; elsewhere nothing, which exports to a graph."""
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


class ClassStatistics(NamedTuple):
    """Sums over images from which class means and the covariance within classes follow."""

    counts: Tensor
    """Images of each class, k."""
    sums: Tensor
    """Their tokens, k t d."""
    scatter: Tensor | None
    """Outer products of each token's deviations from its class mean, over all images, t d d; None if not observed."""


def class_statistics(
    tokens: Tensor, labels: Tensor, classes: int, total: Callable[[Tensor], Tensor], *, with_scatter: bool = True
) -> ClassStatistics:
    """Statistics of tokens b t d with labels b on all ranks; `total` sums a tensor over ranks, a collective.

    In fp64: with few images the fit amplifies the rounding of sums in another order, which differs between numbers of
    ranks. Deviations are taken from the means of this batch: products of tokens minus those of means would cancel.
    """
    tokens = tokens.detach().double()
    with _without_autocast(tokens.device.type):
        of_class = functional.one_hot(labels, classes).to(tokens)
        counts, sums = total(of_class.sum(0)), total(torch.einsum("bk,btd->ktd", of_class, tokens))
        if not with_scatter:
            return ClassStatistics(counts, sums, None)
        deviations = tokens - class_means(counts, sums)[labels]
        return ClassStatistics(counts, sums, total(torch.einsum("btd,bte->tde", deviations, deviations)))


def class_means(counts: Tensor, sums: Tensor) -> Tensor:
    """k, k t d -> k t d; 0 for classes without images."""
    return sums / torch.where(counts > 0, counts, 1)[:, None, None]


class Projection(nn.Module):
    """x -> x - L Rᵀ (x - c) for each token, with L and R t d k. The identity until `fit`."""

    left: Tensor
    right: Tensor
    centre: Tensor

    def __init__(self, tokens: int, width: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("left", torch.zeros(tokens, width, classes))
        self.register_buffer("right", torch.zeros(tokens, width, classes))
        self.register_buffer("centre", torch.zeros(tokens, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """b t d -> b t d, computed in fp32."""
        values = tokens.float()
        with _without_autocast(tokens.device.type):
            read = torch.einsum("btd,tdk->btk", values - self.centre, self.right)
            return (values - torch.einsum("btk,tdk->btd", read, self.left)).to(tokens.dtype)

    @torch.no_grad()
    def fit(self, statistics: ClassStatistics, valid: Tensor | None = None) -> None:
        """Give the tokens of the images that were counted the same mean for all their classes; nothing where `valid`, a
        scalar on the device, is false. Reads nothing from the device.
        """
        assert statistics.scatter is not None
        counts = statistics.counts.double()
        present = (counts > 0).to(counts)[:, None, None]
        for start in range(0, len(self.centre), TOKENS_AT_ONCE):
            rows = slice(start, start + TOKENS_AT_ONCE)
            means = class_means(counts, statistics.sums[:, rows].double())
            centre = means.sum(0) / present.sum().clamp(min=1)
            left = (present * (means - centre)).permute(1, 2, 0)  # t d k
            left = left / left.flatten(1).norm(dim=1)[:, None, None].clamp(min=TINY)  # so that L and R fit into fp16
            metric = _with_ridge(statistics.scatter[rows].double(), RIDGE)  # its scale does not matter
            weighted = torch.cholesky_solve(left, torch.linalg.cholesky_ex(metric)[0])
            between = torch.linalg.cholesky_ex(_with_ridge(left.transpose(1, 2) @ weighted, RIDGE_BETWEEN))[0]
            right = torch.cholesky_solve(weighted.transpose(1, 2), between).transpose(1, 2)
            for buffer, fitted in ((self.left, left), (self.right, right), (self.centre, centre)):
                now = buffer[rows]
                now.copy_(fitted if valid is None else torch.where(valid, fitted.float(), now))


def _with_ridge(matrices: Tensor, ridge: float) -> Tensor:
    """n d d, symmetric, plus `ridge` times its mean diagonal entry on the diagonal: positive definite."""
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    return matrices + torch.diag_embed((ridge * diagonal.mean(1, keepdim=True) + TINY).expand_as(diagonal))


class EmotionErasure(nn.Module):
    """The erasure of f_p: in training fitted to running sums, in evaluation to images without augmentation.

    In training mode it applies `running`, which follows the weights; in evaluation mode `calibrated`, which belongs to
    the weights that were last evaluated, as the batch norms of averaged weights are recomputed (Izmailov et al. 2018).
    """

    counts: Tensor
    sums: Tensor
    scatter: Tensor

    def __init__(self, tokens: int, width: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("counts", torch.zeros(classes))
        self.register_buffer("sums", torch.zeros(classes, tokens, width))
        self.register_buffer("scatter", torch.zeros(tokens, width, width))
        self.running: Projection | None = Projection(tokens, width, classes)
        self.calibrated = Projection(tokens, width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """f_p b t d -> f_p without the emotion, b t d."""
        running = self.running if self.training else None
        projected: Tensor = (self.calibrated if running is None else running)(tokens)
        return projected

    @torch.no_grad()
    def observe(self, step: ClassStatistics, *, fit: bool, skips: Tensor | None = None) -> None:
        """Add the statistics of a step to the running ones; `fit` fits the projection to them. Changes nothing if they
        are not finite, or if `skips`, a scalar on the device, is not 0.
        """
        valid = step.sums.isfinite().all()
        updates = [(self.counts, step.counts, DECAY), (self.sums, step.sums, DECAY)]
        if step.scatter is not None:
            valid = valid & step.scatter.isfinite().all()
            updates.append((self.scatter, step.scatter, DECAY**FIT_EVERY))
        if skips is not None:
            valid = valid & (skips == 0)
        for running, added, decay in updates:
            running.copy_(torch.where(valid, decay * running + (1 - decay) * added.float(), running))
        if fit and self.running is not None:
            self.running.fit(ClassStatistics(self.counts, self.sums, self.scatter), valid)

    @property
    def erases(self) -> bool:
        """Whether the projection has been fitted in training. Reads from the device."""
        return self.running is not None and bool(self.running.left.any())

    def drop_training_state(self) -> None:
        """Keep the calibrated projection alone, in training mode too: `inference_weights` are then the state dict."""
        del self.counts, self.sums, self.scatter
        self.running = None

    def calibrate_from_running(self) -> None:
        """Take the running projection for the calibrated one: for weights that are saved without an evaluation."""
        if self.running is not None:
            self.calibrated.load_state_dict(self.running.state_dict())

    def copy_calibration(self, other: EmotionErasure) -> None:
        """Take over the calibrated projection of another erasure of the same size."""
        self.calibrated.load_state_dict(other.calibrated.state_dict())


def inference_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's weights without what only the training of its erasure needs."""
    return {
        name: value
        for name, value in weights.items()
        if not name.startswith("erasure.") or name.startswith("erasure.calibrated.")
    }
