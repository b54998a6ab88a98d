"""How good are the poker faces: neutral to a judge that never saw them, the same person, near the truth where it is
known.

Every figure stands beside those of the input, the reconstruction and the true neutral face: a poker face that merely
copies
its input must not look good, and a judge takes blur for calm.

Legend: b images, h w pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from pfcluster.data import transforms
from pfcluster.data.source import SyntheticSplit
from pfcluster.data.split_types import Split
from pfcluster.dist import World
from pfcluster.evaluate.classification import chunks, load_images
from pfcluster.nn.pf_vit import PFViT

EXPRESSION_THRESHOLD = 0.25
"""Input and truth differ by more than this (in -1..1, the largest of three channels) within the expression's region."""


@dataclass(frozen=True)
class Judge:
    """A separately trained classifier, and which of its classes is neutral."""

    classify: Callable[[Tensor], Tensor]
    size: int
    neutral: int


def region_error(images: Tensor, truth: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error within the expression's region, summed, and the number of values: b 3 h w thrice -> b, b."""
    region = ((inputs - truth).abs().amax(1, keepdim=True) > EXPRESSION_THRESHOLD).to(images.dtype)
    squared = ((images - truth).square() * region).sum((1, 2, 3))
    return squared, region.sum((1, 2, 3)) * images.shape[1]


class _Sums:
    """Sums and counts by row and column, over batches and then over ranks. The order of names is fixed from the
    start.
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.values = torch.zeros(len(names), 2, dtype=torch.float64)

    def add(self, name: str, value: Tensor | float, count: Tensor | float) -> None:
        self.values[self.names.index(name)] += torch.tensor([float(value), float(count)], dtype=torch.float64)

    def means(self, world: World) -> dict[str, float | None]:
        totals = world.sum(self.values).cpu().tolist()
        return {
            name: (total / count if count else None) for name, (total, count) in zip(self.names, totals, strict=True)
        }


COLUMNS = ("neutrality", "identity", "psnr", "ssim", "region_error")
ROWS = ("input", "reconstruction", "poker face", "truth")


@torch.inference_mode()
def measure(
    model: PFViT,
    split: Split,
    *,
    size: int,
    count: int,
    batch_size: int,
    judge: Judge | None,
    recognition: nn.Module | None,
    world: World,
) -> dict[str, Any]:
    """Figures of up to `count` samples of a split: rows input, reconstruction, poker face, truth.

    neutrality: share that the judge calls neutral; identity: cosine of recognition features to the input's; psnr
    (dB), ssim
    and region_error (mean squared error where the expression is, values in -1..1): against the true neutral face. None
    where a figure cannot be had.
    """
    count = min(count, len(split))
    sums = _Sums([f"{row}/{column}" for row in ROWS for column in COLUMNS] + ["mse"])
    for indices in chunks(count, batch_size, world):
        images, _ = load_images(split, indices, size, world.device)
        views = model(images, emotion_view=False)
        faces = {
            "input": images,
            "reconstruction": views.reconstruction.float().clamp(-1, 1),
            "poker face": views.poker.float().clamp(-1, 1),
        }
        sums.add("mse", (faces["reconstruction"] - images).square().mean() * len(images), len(images))
        if isinstance(split, SyntheticSplit):
            faces["truth"] = transforms.to_float(split.poker_faces(indices).to(world.device))
        for row, shown in faces.items():
            _add_judgement(sums, row, shown, images, judge, recognition)
            if "truth" in faces:
                _add_distance(sums, row, shown, faces["truth"], images)
    means = sums.means(world)
    rows = {row: {column: means[f"{row}/{column}"] for column in COLUMNS} for row in ROWS}
    if not isinstance(split, SyntheticSplit):
        del rows["truth"]
    return {"n": count, "rows": rows, "mse": means["mse"]}


def _add_judgement(
    sums: _Sums, row: str, shown: Tensor, inputs: Tensor, judge: Judge | None, recognition: nn.Module | None
) -> None:
    if judge is not None:
        called = judge.classify(transforms.resize(shown, judge.size)).argmax(1)
        sums.add(f"{row}/neutrality", (called == judge.neutral).sum(), len(shown))
    if recognition is not None:
        same = torch.cosine_similarity(recognition(shown), recognition(inputs), dim=1)
        sums.add(f"{row}/identity", same.sum(), len(shown))


def _add_distance(sums: _Sums, row: str, shown: Tensor, truth: Tensor, inputs: Tensor) -> None:
    squared, values = region_error(shown, truth, inputs)
    sums.add(f"{row}/region_error", squared.sum(), values.sum())
    if row == "truth":
        return
    noise = peak_signal_noise_ratio(shown, truth, data_range=2.0, reduction="none", dim=(1, 2, 3)).clamp(max=100)
    alike = structural_similarity_index_measure(shown, truth, data_range=2.0, reduction="none")
    assert isinstance(alike, Tensor)
    sums.add(f"{row}/psnr", noise.sum(), len(shown))
    sums.add(f"{row}/ssim", alike.sum(), len(shown))
