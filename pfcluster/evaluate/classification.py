"""Run a frozen classifier over a split on all ranks, and compute scores from the confusion matrix.

Legend: n samples, b images, k classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pfcluster.config import RunConfig
from pfcluster.data import transforms
from pfcluster.data.types import Split
from pfcluster.distributed.process_group import World
from pfcluster.engine.precision import autocast
from pfcluster.models.pf_vit import PFViT


def rank_batches(count: int, batch_size: int, world: World) -> list[Tensor]:
    """Batches of this rank's share of the indices 0 ... count - 1. Shares are disjoint and differ by at most one; a
    rank beyond the last index has no batch.
    """
    share = torch.arange(count)[world.rank :: world.size]
    return list(share.split(batch_size)) if len(share) else []


def load_images(split: Split, indices: Tensor, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Network inputs without augmentation, float b 3 size size in -1..1, and labels b."""
    raw = split.batch(indices)
    return transforms.network_input(raw.images.to(device), size), raw.labels.to(device)


def logits_function(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The function b 3 h w -> logits b k of a classifier or a PF-ViT."""
    return model.classify if isinstance(model, PFViT) else model


@torch.inference_mode()
def predict(
    classify: Callable[[Tensor], Tensor], split: Split, *, size: int, batch_size: int, classes: int, world: World
) -> tuple[Tensor, Tensor]:
    """Logits n k (float32) and labels n of a whole split, in the split's order, on the CPU of every rank.

    `classify`: b 3 h w -> logits b k. Each rank fills in its share of a zero tensor; ranks are then summed.
    """
    logits = torch.zeros(len(split), classes, device=world.device)
    labels = torch.zeros(len(split), dtype=torch.long, device=world.device)
    for indices in rank_batches(len(split), batch_size, world):
        images, truth = load_images(split, indices, size, world.device)
        rows = indices.to(world.device)
        logits[rows] = classify(images).float()
        labels[rows] = truth
    return world.sum(logits).cpu(), world.sum(labels).cpu()


def predict_run(config: RunConfig, model: nn.Module, split: Split, classes: int, world: World) -> tuple[Tensor, Tensor]:
    """`predict` with a run's model, precision, image size and evaluation batch size."""
    with autocast(world.device, config.engine.precision):
        return predict(
            logits_function(model),
            split,
            size=config.data.size,
            batch_size=config.evaluate.batch_size,
            classes=classes,
            world=world,
        )


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts k k (rows truth, columns prediction) from logits n k and labels n. Samples labelled -1 are ignored."""
    classes, labelled = logits.shape[1], labels != -1
    cells = labels[labelled] * classes + logits[labelled].argmax(1)
    return torch.bincount(cells, minlength=classes**2).view(classes, classes)


def scores(counts: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    """Accuracy, mean class accuracy, macro F1, recall per class and the matrix itself, from counts k k (rows truth,
    columns prediction).

    Mean class accuracy is the unweighted mean of the recalls, also known as balanced accuracy (Brodersen et al. 2010).
    Classes that do not occur in the split are left out of both means and of `per_class`.
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
