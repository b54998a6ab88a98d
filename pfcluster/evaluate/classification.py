"""Scores of a classifier from its confusion matrix, over all processes.

Legend: b images, k classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from pfcluster.data import transforms
from pfcluster.data.split_types import Split
from pfcluster.dist import World


def chunks(count: int, batch_size: int, world: World) -> list[Tensor]:
    """This rank's samples of 0 ... count - 1 in batches. Ranks may differ by one sample, and no sample is seen
    twice.
    """
    return list(torch.arange(world.rank, count, world.size).split(batch_size))


def load_images(split: Split, indices: Tensor, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images as the nets read them, without augmentation: float b 3 size size in -1..1; and labels b."""
    raw = split.batch(indices)
    images = transforms.resize(raw.images.to(device), size).div_(127.5).sub_(1.0)
    return images, raw.labels.to(device)


@torch.inference_mode()
def confusion(
    classify: Callable[[Tensor], Tensor], split: Split, *, size: int, batch_size: int, classes: int, world: World
) -> Tensor:
    """Counts of (truth, prediction) over a whole split: -> k k on the CPU. `classify`: b 3 h w -> logits b k."""
    counts = torch.zeros(classes, classes, dtype=torch.long, device=world.device)
    for indices in chunks(len(split), batch_size, world):
        images, labels = load_images(split, indices, size, world.device)
        counts += multiclass_confusion_matrix(classify(images).float(), labels, num_classes=classes, ignore_index=-1)
    return world.sum(counts).cpu()


def scores(counts: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    """Accuracy, macro F1, recall per class and the matrix itself, of counts k k (rows truth, columns prediction).

    Classes that the split lacks are left out of the mean F1 and have no accuracy.
    """
    matrix = counts.double()
    hits, truth, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
    f1 = 2 * hits / (truth + predicted).clamp(min=1)
    present = truth > 0
    return {
        "n": int(counts.sum()),
        "accuracy": (hits.sum() / matrix.sum().clamp(min=1)).item(),
        "macro_f1": f1[present].mean().item() if present.any() else 0.0,
        "per_class": {
            name: (hits[index] / truth[index]).item() for index, name in enumerate(classes) if present[index]
        },
        "confusion": counts.tolist(),
    }
