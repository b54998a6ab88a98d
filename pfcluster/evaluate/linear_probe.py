"""Linear probes: what can a linear reader still find in a run's tokens? (Alain & Bengio 2016.)

The paper claims that f_e holds the emotion and f_p the person, and measures neither. A probe that reads the emotion
back out of f_p says how far the separation is one.

Legend: n images, t tokens with the class token first, d channels, f features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

LEAST_FACES = 4
"""A person with fewer faces is left out: half of them teach, half test."""


def pooled(tokens: Tensor) -> Tensor:
    """b t d -> the class token beside the mean of the patches: b 2d, in floats."""
    return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1).float()


def probe_accuracy(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor) -> float:
    """Test accuracy of a logistic regression on standardised features: n f, n, m f, m -> a share.

    L2 penalty 1 on the sum over samples: scikit-learn's own choice, for all features alike. Where there are more
    features than samples both are turned into the samples' span, which changes no answer of such a regression.
    """
    from sklearn.linear_model import LogisticRegression

    mean, std = train.mean(0), train.std(0).clamp(min=1e-6)
    train, test = (train - mean) / std, (test - mean) / std
    if train.shape[1] > len(train):
        span = torch.linalg.qr(train.T).Q
        train, test = train @ span, test @ span
    probe = LogisticRegression(max_iter=500)
    probe.fit(train.numpy(), labels.numpy())
    return float(probe.score(test.numpy(), truth.numpy()))


def halves_by_person(people: list[str], most: int) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Names n -> images that teach, their people's numbers, images that test, their people's numbers: every other face
    of the `most` people with the most faces. None where fewer than two people have enough.
    """
    names, counts = np.unique([name for name in people if name], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    known = {str(names[index]): number for number, index in enumerate(order) if counts[index] >= LEAST_FACES}
    if len(known) < 2:
        return None
    seen = dict.fromkeys(known, 0)
    halves: tuple[list[int], list[int]] = ([], [])
    for index, name in enumerate(people):
        if name in known:
            halves[seen[name] % 2].append(index)
            seen[name] += 1
    numbers = [torch.tensor([known[people[index]] for index in half]) for half in halves]
    return torch.tensor(halves[0]), numbers[0], torch.tensor(halves[1]), numbers[1]


def probe(
    train: dict[str, Tensor],
    labels: Tensor,
    test: dict[str, Tensor],
    truth: Tensor,
    people: list[str],
    most_people: int,
) -> dict[str, Any]:
    """Probes of each kind of features, by name: `train` and its labels teach emotions, which `test` is asked for;
    people are taught and told apart within `test`, whose features need no partner in `train`. Chance is the share of
    the most frequent answer.
    """
    halves = halves_by_person(people, most_people)
    found: dict[str, Any] = {
        "emotion_chance": float(truth.bincount().max() / len(truth)),
        "identity_chance": None if halves is None else float(halves[3].bincount().max() / len(halves[3])),
        "n": {"train": len(labels), "test": len(truth), "people": 0 if halves is None else int(halves[1].max()) + 1},
        "rows": {},
    }
    for name, features in test.items():
        row: dict[str, float | None] = {"emotion": None, "identity": None}
        if name in train:
            row["emotion"] = probe_accuracy(train[name], labels, features, truth)
        if halves is not None:
            teach, who, ask, answer = halves
            row["identity"] = probe_accuracy(features[teach], who, features[ask], answer)
        found["rows"][name] = row
    return found
