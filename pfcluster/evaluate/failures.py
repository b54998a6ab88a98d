"""Draw a random sample of misclassified faces.

Legend: n samples, k classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfcluster.distributed.process_group import generator


@dataclass(frozen=True)
class Failure:
    """A misclassified sample."""

    index: int
    truth: int
    top_classes: tuple[tuple[int, float], ...]
    """The most probable classes and their probabilities."""


def draw_failures(logits: Tensor, labels: Tensor, count: int, seed: int, top: int = 2) -> list[Failure]:
    """Up to `count` misclassified samples, from logits n k and labels n.

    The random order depends on the seed alone, so a face that two runs both get wrong tends to be drawn for both.
    """
    order = torch.randperm(len(labels), generator=generator(seed, "failures"))
    wrong = order[logits[order].argmax(1) != labels[order]]
    failures = []
    for index in wrong[:count].tolist():
        values, classes = logits[index].softmax(0).topk(min(top, logits.shape[1]))
        failures.append(Failure(index, int(labels[index]), tuple(zip(classes.tolist(), values.tolist(), strict=True))))
    return failures
