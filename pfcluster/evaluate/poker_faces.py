"""How good are the poker faces: neutral to a judge that never saw them, the same person, near the truth where it is
known.

Every figure stands beside those of the input, the reconstruction and the true neutral face: a poker face that merely
copies its input must not look good, and a judge takes blur for calm.

Legend: b images, h w pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from pfcluster.data import transforms
from pfcluster.data.dataset import SyntheticSplit
from pfcluster.data.labels import neutral_index
from pfcluster.data.types import Split
from pfcluster.distributed.process_group import World
from pfcluster.evaluate.classification import chunks, load_images
from pfcluster.evaluate.evaluators import Evaluators
from pfcluster.evaluate.frechet import frechet_distance
from pfcluster.models.pf_vit import PFViT

EXPRESSION_THRESHOLD = 0.25
"""Input and truth differ by more than this (in -1..1, the largest of three channels) within the expression's region."""


def expression_region(inputs: Tensor, truth: Tensor) -> Tensor:
    """Where an expression changes a face: photos and true poker faces b 3 h w -> b 1 h w, bool."""
    return (inputs - truth).abs().amax(1, keepdim=True) > EXPRESSION_THRESHOLD


def region_error(images: Tensor, truth: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error within the expression's region, summed, and the number of values: b 3 h w thrice -> b, b."""
    return _error_within(expression_region(inputs, truth), images, truth)


def outside_error(images: Tensor, truth: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The same everywhere but within that region."""
    return _error_within(~expression_region(inputs, truth), images, truth)


def _error_within(where: Tensor, images: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    region = where.to(images.dtype)
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


COLUMNS = (
    "neutral_rate",
    "neutralised_rate",
    "emotion_agreement",
    "identity_cosine",
    "psnr",
    "ssim",
    "mse_inside",
    "mse_outside",
)
ROWS = ("input", "reconstruction", "poker face", "truth")


@torch.inference_mode()
def measure(
    model: PFViT,
    split: Split,
    *,
    size: int,
    count: int,
    batch_size: int,
    evaluators: Evaluators,
    world: World,
) -> dict[str, Any]:
    """Figures of up to `count` samples of a split: rows input, reconstruction, poker face, truth.

    neutrality: share that the judge calls neutral; calmed: that share of the inputs that are not neutral; recognised:
    share whose *input's* emotion the judge names; identity: cosine of recognition features to the input's; psnr (dB),
    ssim, region_error and outside_error (mean squared error where the expression is and elsewhere, values in -1..1):
    against the true neutral face; fid and fid_neutral: Fréchet distance to the inputs and to the neutral ones among
    them. Of the poker face also separation: its `calmed` times the reconstruction's `recognised`, for blur raises the
    one and lowers the other. None where a figure cannot be had; a model without a separator has no poker face.
    """
    count = min(count, len(split))
    with_truth = isinstance(split, SyntheticSplit)
    rows = [row for row in ROWS if (row != "poker face" or model.separator) and (row != "truth" or with_truth)]
    features = _Features(split, count, rows, evaluators, world)
    sums = _Sums([f"{row}/{column}" for row in ROWS for column in COLUMNS] + ["mse"])
    for indices in chunks(count, batch_size, world):
        images, labels = load_images(split, indices, size, world.device)
        views = model(images, emotion_view=False)
        faces = {
            "input": images,
            "reconstruction": views.reconstruction.float().clamp(-1, 1),
        }
        if views.poker is not None:
            faces["poker face"] = views.poker.float().clamp(-1, 1)
        sums.add("mse", (faces["reconstruction"] - images).square().mean() * len(images), len(images))
        if isinstance(split, SyntheticSplit):
            faces["truth"] = transforms.to_float(split.poker_faces(indices).to(world.device))
        for row, shown in faces.items():
            _add_judgement(sums, row, shown, images, labels, evaluators)
            features.add(row, shown, indices)
            if "truth" in faces:
                _add_distance(sums, row, shown, faces["truth"], images)
    means = sums.means(world)
    figures = {row: {column: means[f"{row}/{column}"] for column in COLUMNS} for row in rows}
    if "poker face" in figures:
        calm, clear = means["poker face/neutralised_rate"], means["reconstruction/emotion_agreement"]
        figures["poker face"]["neutralised_x_agreement"] = None if calm is None or clear is None else calm * clear
    for row, distances in features.distances().items():
        figures[row] |= distances
    return {"n": count, "rows": figures, "mse": means["mse"]}


class _Features:
    """What the Fréchet distance compares, by row: each rank sees its own images, the sum over ranks them all."""

    def __init__(self, split: Split, count: int, rows: list[str], evaluators: Evaluators, world: World) -> None:
        self.net, self.world = evaluators.fid, world
        self.labels, self.neutral = split.labels()[:count], neutral_index(split.classes)
        self.rows: dict[str, Tensor] = {}
        if self.net is not None:
            width = self.net(torch.zeros(1, 3, 48, 48, device=world.device)).shape[1]
            self.rows = {row: torch.zeros(count, width, device=world.device) for row in rows}

    def add(self, row: str, shown: Tensor, indices: Tensor) -> None:
        if self.net is not None:
            self.rows[row][indices.to(shown.device)] = self.net(shown).float()

    def distances(self) -> dict[str, dict[str, float | None]]:
        """Every row's `fid` and `fid_neutral`."""
        whole = {row: self.world.sum(found).cpu() for row, found in self.rows.items()}
        calm = None if self.neutral is None else self.labels == self.neutral
        return {
            row: {
                "fid": frechet_distance(found, whole["input"]),
                "fid_neutral": None if calm is None else frechet_distance(found, whole["input"][calm]),
            }
            for row, found in whole.items()
        }


def _add_judgement(
    sums: _Sums, row: str, shown: Tensor, inputs: Tensor, labels: Tensor, evaluators: Evaluators
) -> None:
    judge, people = evaluators.judge, evaluators.people
    if judge is not None:
        called = judge.classify(transforms.resize(shown, judge.size)).argmax(1)
        calm, expressive = called == judge.neutral, labels != judge.neutral
        sums.add(f"{row}/neutral_rate", calm.sum(), len(shown))
        sums.add(f"{row}/neutralised_rate", (calm & expressive).sum(), expressive.sum())
        sums.add(f"{row}/emotion_agreement", (called == labels).sum(), len(shown))
    if people is not None:
        same = torch.cosine_similarity(people(shown), people(inputs), dim=1)
        sums.add(f"{row}/identity", same.sum(), len(shown))


def _add_distance(sums: _Sums, row: str, shown: Tensor, truth: Tensor, inputs: Tensor) -> None:
    for name, error in (("mse_inside", region_error), ("mse_outside", outside_error)):
        squared, values = error(shown, truth, inputs)
        sums.add(f"{row}/{name}", squared.sum(), values.sum())
    if row == "truth":
        return
    noise = peak_signal_noise_ratio(shown, truth, data_range=2.0, reduction="none", dim=(1, 2, 3)).clamp(max=100)
    alike = structural_similarity_index_measure(shown, truth, data_range=2.0, reduction="none")
    assert isinstance(alike, Tensor)
    sums.add(f"{row}/psnr", noise.sum(), len(shown))
    sums.add(f"{row}/ssim", alike.sum(), len(shown))
