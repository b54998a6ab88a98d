"""A classifier's answers over all processes, and the scores of their confusion matrix.

Legend: n samples, b images, k classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from pfcluster.data import transforms
from pfcluster.data.types import Split
from pfcluster.distributed.process_group import World


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
def predict(
    classify: Callable[[Tensor], Tensor], split: Split, *, size: int, batch_size: int, classes: int, world: World
) -> tuple[Tensor, Tensor]:
    """Logits n k (float32) and labels n of a whole split, in its own order, on the CPU of every rank.

    `classify`: b 3 h w -> logits b k. Each rank answers its own samples among zeros; the sum over ranks is the whole.
    """
    logits = torch.zeros(len(split), classes, device=world.device)
    labels = torch.zeros(len(split), dtype=torch.long, device=world.device)
    for indices in chunks(len(split), batch_size, world):
        images, truth = load_images(split, indices, size, world.device)
        mine = indices.to(world.device)
        logits[mine] = classify(images).float()
        labels[mine] = truth
    return world.sum(logits).cpu(), world.sum(labels).cpu()


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts of (truth, prediction) -> k k, of logits n k and labels n. Samples labelled -1 are not counted."""
    return multiclass_confusion_matrix(logits, labels, num_classes=logits.shape[1], ignore_index=-1)


def scores(counts: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    """Accuracy, mean class accuracy, macro F1, recall per class and the matrix itself, of counts k k (rows truth,
    columns prediction).

    Mean class accuracy is the mean recall, each class weighing alike, also known as balanced accuracy (Brodersen et
    al. 2010). Classes that the split lacks are left out of both means and have no accuracy.
    """
    matrix = counts.double()
    hits, truth, predicted = matrix.diag(), matrix.sum(1), matrix.sum(0)
    f1 = 2 * hits / (truth + predicted).clamp(min=1)
    present = truth > 0
    recall = hits[present] / truth[present]
    return {
        "n": int(counts.sum()),
        "accuracy": (hits.sum() / matrix.sum().clamp(min=1)).item(),
        "mean_class_accuracy": recall.mean().item() if present.any() else 0.0,
        "macro_f1": f1[present].mean().item() if present.any() else 0.0,
        "per_class": {
            name: (hits[index] / truth[index]).item() for index, name in enumerate(classes) if present[index]
        },
        "confusion": counts.tolist(),
    }
