"""Linear probes: how much emotion and identity can be read linearly from frozen features (Alain & Bengio 2016).

The paper claims that f_e holds the emotion and f_p the identity, without measuring either. A linear probe that reads
the emotion from f_p shows how incomplete the separation is.

Legend: n m images, t tokens with the class token first, d channels, f features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

MIN_FACES = 4
"""Identities with fewer faces are left out: the faces are split into a training and a test half."""


class IdentityHalves(NamedTuple):
    """Image indices and identity numbers of a training and a test half."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


CONSTANT = 1e-4
"""Standard deviation up to which a feature counts as constant: divided by it, a test image that differs there would be
an outlier of any size."""


def pool_tokens(tokens: Tensor) -> Tensor:
    """b t d -> class token concatenated with the mean of the patch tokens: b 2d, float32."""
    return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1).float()


def probe_accuracy(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor) -> float | None:
    """Test accuracy of a logistic regression on standardised features: n f, n, m f, m. None if the training samples are
    of one class.

    L2 penalty with C = 1, scikit-learn's default. With more features than samples, both sets are first projected onto
    the span of the training samples, which does not change the solution of an L2-penalised regression.
    """
    from sklearn.linear_model import LogisticRegression

    if len(labels.unique()) < 2:
        return None
    mean, std = train.mean(0), train.std(0)
    std = torch.where(std > CONSTANT, std, 1.0)
    train, test = (train - mean) / std, (test - mean) / std
    if train.shape[1] > len(train):
        span = torch.linalg.qr(train.T).Q
        with torch.autocast("cpu", enabled=False):  # evaluations of bf16 runs on CPUs would project in bf16
            train, test = train @ span, test @ span
    probe = LogisticRegression(max_iter=500)
    probe.fit(train.numpy(), labels.numpy())
    return float(probe.score(test.numpy(), truth.numpy()))


def split_halves_by_identity(identities: list[str], max_identities: int) -> IdentityHalves | None:
    """Split the faces of the `max_identities` most frequent identities in two, every other face of each.

    `identities`: a name for each of n images, "" where unknown. None if fewer than two identities have `MIN_FACES`.
    """
    names, counts = np.unique([name for name in identities if name], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:max_identities]
    numbers = {str(names[index]): number for number, index in enumerate(order) if counts[index] >= MIN_FACES}
    if len(numbers) < 2:
        return None
    seen = dict.fromkeys(numbers, 0)
    halves: tuple[list[int], list[int]] = ([], [])
    for index, name in enumerate(identities):
        if name in numbers:
            halves[seen[name] % 2].append(index)
            seen[name] += 1
    train_labels, test_labels = (torch.tensor([numbers[identities[index]] for index in half]) for half in halves)
    return IdentityHalves(torch.tensor(halves[0]), train_labels, torch.tensor(halves[1]), test_labels)


def probe_features(
    train: dict[str, Tensor],
    labels: Tensor,
    test: dict[str, Tensor],
    truth: Tensor,
    identities: list[str],
    max_identities: int,
) -> dict[str, Any]:
    """Emotion and identity probes for each kind of features, by name.

    Emotion probes train on `train` (n f, labels n) and test on `test` (m f, labels m). Identity probes train and test
    on two halves of `test`; features that are only in `test` have no emotion probe. Chance is the share of the most
    frequent test label.
    """
    halves = split_halves_by_identity(identities, max_identities)
    rows: dict[str, dict[str, float | None]] = {}
    for name, features in test.items():
        row: dict[str, float | None] = {"emotion": None, "identity": None}
        if name in train:
            row["emotion"] = probe_accuracy(train[name], labels, features, truth)
        if halves is not None:
            row["identity"] = probe_accuracy(
                features[halves.train], halves.train_labels, features[halves.test], halves.test_labels
            )
        rows[name] = row
    n_identities, identity_chance = 0, None
    if halves is not None:
        n_identities = int(halves.train_labels.max()) + 1
        identity_chance = float(halves.test_labels.bincount().max() / len(halves.test_labels))
    return {
        "emotion_chance": float(truth.bincount().max() / len(truth)),
        "identity_chance": identity_chance,
        "n": {"train": len(labels), "test": len(truth), "identities": n_identities},
        "rows": rows,
    }
