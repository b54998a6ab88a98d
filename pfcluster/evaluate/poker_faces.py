"""Metrics of poker faces: emotion by the judge, identity by a face net, and distance to the true neutral face where it
is known.

Every metric is also computed for the input, the reconstruction and the true neutral face: a poker face that copies its
input, or one that the judge calls neutral merely because it is blurred, must not look good.

Legend: b images, h w pixels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pfcluster.config import RunConfig
from pfcluster.data import transforms
from pfcluster.data.labels import neutral_index
from pfcluster.data.splits import SyntheticSplit
from pfcluster.data.types import Split
from pfcluster.distributed.process_group import World
from pfcluster.engine.precision import autocast
from pfcluster.evaluate.classification import load_images, rank_batches
from pfcluster.evaluate.evaluators import Evaluators
from pfcluster.evaluate.frechet import frechet_distance
from pfcluster.evaluate.similarity import psnr, ssim
from pfcluster.models.pf_vit import PFViT

EXPRESSION_THRESHOLD = 0.25
"""A pixel belongs to the expression region if input and truth (-1..1) differ by more in one of the channels."""
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
TRANSFER = "expression transfer"
ROWS = ("input", "reconstruction", "poker face", TRANSFER, "truth")


def expression_region(inputs: Tensor, truth: Tensor) -> Tensor:
    """Mask of the pixels that the expression changes: photos and true poker faces b 3 h w -> bool b 1 h w."""
    return (inputs - truth).abs().amax(1, keepdim=True) > EXPRESSION_THRESHOLD


def masked_squared_error(images: Tensor, truth: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of squared errors within a mask, and the number of values: b 3 h w twice, bool b 1 h w -> b, b."""
    weights = mask.to(images.dtype)
    squared = ((images - truth).square() * weights).sum((1, 2, 3))
    return squared, weights.sum((1, 2, 3)) * images.shape[1]


@torch.inference_mode()
def measure(config: RunConfig, model: PFViT, split: Split, evaluators: Evaluators, world: World) -> dict[str, Any]:
    """Metrics of the first `evaluate.n_poker_faces` samples of a split, in rows input, reconstruction, poker face and
    truth:

    - neutral_rate: share that the judge classifies as neutral; neutralised_rate: the same over inputs that are not
      neutral; emotion_agreement: share of all, neutral inputs included, that the judge assigns to the *input's*
      emotion.
    - neutralised_x_agreement (poker face only): its neutralised_rate times the reconstruction's emotion_agreement, as
      blur raises the first and lowers the second.
    - identity_cosine: cosine similarity of identity features to the input's.
    - psnr (dB), ssim, mse_inside, mse_outside: against the true neutral face; the mean squared errors (values in
      -1..1) inside and outside the expression region.
    - fid, fid_neutral: Fréchet distance to all inputs and to the neutral inputs.

    The row expression transfer has faces with the emotion tokens of another sample (half the samples further on):
    emotion_agreement with that sample's emotion, identity_cosine to the face's own photo.

    Also n, and the mse of the reconstruction. A metric is None where it cannot be computed; a model without a
    separator has no row poker face. The model computes in `engine.precision`, the evaluators in float32.
    """
    with torch.autocast(world.device.type, enabled=False):
        return _measure(config, model, split, evaluators, world)


def _measure(config: RunConfig, model: PFViT, split: Split, evaluators: Evaluators, world: World) -> dict[str, Any]:
    count = min(config.evaluate.n_poker_faces, len(split))
    with_truth = isinstance(split, SyntheticSplit)
    separated = ("poker face", TRANSFER)
    rows = [row for row in ROWS if (row not in separated or model.separator) and (row != "truth" or with_truth)]
    features = _FrechetFeatures(split, count, [row for row in rows if row != TRANSFER], evaluators, world)
    means = _Means([f"{row}/{column}" for row in ROWS for column in COLUMNS] + ["mse"])
    for indices in rank_batches(count, config.evaluate.batch_size, world):
        images, labels = load_images(split, indices, config.data.size, world.device)
        with autocast(world.device, config.engine.precision):
            faces = _views(model, images)
        means.add("mse", (faces["reconstruction"] - images).square().mean() * len(images), len(images))
        if isinstance(split, SyntheticSplit):
            faces["truth"] = transforms.to_float(split.poker_faces(indices).to(world.device))
        features.add_labels(labels, indices)
        for row, face in faces.items():
            _add_judge_metrics(means, row, face, labels, evaluators)
            _add_identity(means, row, face, images, evaluators)
            features.add(row, face, indices)
            if "truth" in faces:
                _add_distances(means, row, face, faces["truth"], images)
        if model.separator is not None and evaluators.judge is not None:
            _add_transfer(means, config, model, split, (indices, images), count, evaluators, world)
    values = means.over_ranks(world)
    figures = {row: {column: values[f"{row}/{column}"] for column in COLUMNS} for row in rows}
    if "poker face" in figures:
        neutralised, agreement = values["poker face/neutralised_rate"], values["reconstruction/emotion_agreement"]
        product = None if neutralised is None or agreement is None else neutralised * agreement
        figures["poker face"]["neutralised_x_agreement"] = product
    for row, distances in features.distances().items():
        figures[row] |= distances
    return {"n": count, "rows": figures, "mse": values["mse"]}


def _views(model: PFViT, images: Tensor) -> dict[str, Tensor]:
    """Images, reconstructions and, with a separator, poker faces by row, b 3 h w in -1..1."""
    views = model(images, emotion_view=False)
    faces = {"input": images, "reconstruction": views.reconstruction.float().clamp(-1, 1)}
    if views.poker is not None:
        faces["poker face"] = views.poker.float().clamp(-1, 1)
    return faces


def _add_transfer(
    means: _Means,
    config: RunConfig,
    model: PFViT,
    split: Split,
    faces: tuple[Tensor, Tensor],
    count: int,
    evaluators: Evaluators,
    world: World,
) -> None:
    """Metrics of expression transfer to `faces` (indices, images) from the samples half of `count` further on."""
    indices, images = faces
    sources, emotions = load_images(split, (indices + count // 2) % count, config.data.size, world.device)
    with autocast(world.device, config.engine.precision):
        swapped = model.transfer(sources, images).float().clamp(-1, 1)
    assert evaluators.judge is not None
    predicted = evaluators.judge.classify(transforms.resize(swapped, evaluators.judge.size)).argmax(1)
    means.add(f"{TRANSFER}/emotion_agreement", (predicted == emotions).sum(), len(images))
    _add_identity(means, TRANSFER, swapped, images, evaluators)


class _Means:
    """Means over batches and ranks, by name. Names are fixed up front, so that all ranks sum the same tensor."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.values = torch.zeros(len(names), 2, dtype=torch.float64)

    def add(self, name: str, value: Tensor | float, count: Tensor | float) -> None:
        self.values[self.names.index(name)] += torch.tensor([float(value), float(count)], dtype=torch.float64)

    def over_ranks(self, world: World) -> dict[str, float | None]:
        """Mean by name, None without samples. A collective."""
        totals = world.sum(self.values).cpu().tolist()
        return {
            name: (total / count if count else None) for name, (total, count) in zip(self.names, totals, strict=True)
        }


class _FrechetFeatures:
    """Features for the Fréchet distance, by row. Each rank fills in its own images; `distances` sums over ranks."""

    def __init__(self, split: Split, count: int, rows: list[str], evaluators: Evaluators, world: World) -> None:
        self.net, self.world = evaluators.fid, world
        self.neutral = neutral_index(split.classes)
        self.labels = torch.zeros(count, dtype=torch.long, device=world.device)
        self.rows: dict[str, Tensor] = {}
        if self.net is not None:
            width = self.net(torch.zeros(1, 3, 48, 48, device=world.device)).shape[1]
            self.rows = {row: torch.zeros(count, width, device=world.device) for row in rows}

    def add_labels(self, labels: Tensor, indices: Tensor) -> None:
        """Labels of the images that were read, which differ from the split's where a damaged sample was replaced."""
        self.labels[indices.to(labels.device)] = labels

    def add(self, row: str, faces: Tensor, indices: Tensor) -> None:
        if self.net is not None:
            self.rows[row][indices.to(faces.device)] = self.net(faces).float()

    def distances(self) -> dict[str, dict[str, float | None]]:
        """`fid` and `fid_neutral` by row. A collective."""
        features = {row: self.world.sum(values).cpu() for row, values in self.rows.items()}
        labels = self.world.sum(self.labels).cpu()
        neutral = None if self.neutral is None else labels == self.neutral
        return {
            row: {
                "fid": frechet_distance(values, features["input"]),
                "fid_neutral": None if neutral is None else frechet_distance(values, features["input"][neutral]),
            }
            for row, values in features.items()
        }


def _add_judge_metrics(means: _Means, row: str, faces: Tensor, labels: Tensor, evaluators: Evaluators) -> None:
    judge = evaluators.judge
    if judge is None:
        return
    predicted = judge.classify(transforms.resize(faces, judge.size)).argmax(1)
    neutral, expressive = predicted == judge.neutral, labels != judge.neutral
    means.add(f"{row}/neutral_rate", neutral.sum(), len(faces))
    means.add(f"{row}/neutralised_rate", (neutral & expressive).sum(), expressive.sum())
    means.add(f"{row}/emotion_agreement", (predicted == labels).sum(), len(faces))


def _add_identity(means: _Means, row: str, faces: Tensor, inputs: Tensor, evaluators: Evaluators) -> None:
    net = evaluators.identity_net
    if net is not None:
        similarity = torch.cosine_similarity(net(faces), net(inputs), dim=1)
        means.add(f"{row}/identity_cosine", similarity.sum(), len(faces))


def _add_distances(means: _Means, row: str, faces: Tensor, truth: Tensor, inputs: Tensor) -> None:
    region = expression_region(inputs, truth)
    for name, mask in (("mse_inside", region), ("mse_outside", ~region)):
        squared, values = masked_squared_error(faces, truth, mask)
        means.add(f"{row}/{name}", squared.sum(), values.sum())
    if row == "truth":
        return
    means.add(f"{row}/psnr", psnr(faces, truth).clamp(max=100).sum(), len(faces))
    means.add(f"{row}/ssim", ssim(faces, truth).sum(), len(faces))
