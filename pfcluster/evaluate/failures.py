"""Faces that a classifier gets wrong, drawn by a seed and not by hand.

Legend: n samples, k classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfcluster.distributed.process_group import generator


@dataclass(frozen=True)
class Failure:
    """A sample, its class, and the classes that the classifier takes for likeliest, with their probabilities."""

    index: int
    truth: int
    likeliest: tuple[tuple[int, float], ...]


def draw_failures(logits: Tensor, labels: Tensor, count: int, seed: int, top: int = 2) -> list[Failure]:
    """Up to `count` samples whose largest logit is not the truth's, of logits n k and labels n.

    All runs go through the samples in the same seeded order, so a face that two runs get wrong tends to show in both.
    """
    order = torch.randperm(len(labels), generator=generator(seed, "failures"))
    wrong = order[logits[order].argmax(1) != labels[order]]
    found = []
    for index in wrong[:count].tolist():
        values, classes = logits[index].softmax(0).topk(min(top, logits.shape[1]))
        found.append(Failure(index, int(labels[index]), tuple(zip(classes.tolist(), values.tolist(), strict=True))))
    return found
