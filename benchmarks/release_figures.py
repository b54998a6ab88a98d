"""Figures of a model on a test split, as `predict` computes them, and whether they are the committed ones.

Legend: n images, k classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.poker_aims import run_figures
from pfcluster.config import DataConfig, EvaluateConfig, ModelConfig, RunConfig
from pfcluster.data.dataset import open_dataset
from pfcluster.data.labels import neutral_index
from pfcluster.data.types import DataError, Split
from pfcluster.distributed.process_group import World
from pfcluster.evaluate import poker_faces
from pfcluster.evaluate.classification import confusion_matrix, scores
from pfcluster.evaluate.evaluators import Evaluators, Judge
from pfcluster.inference.model import Model
from pfcluster.models.pf_vit import PFViT

BATCH = 32
"""The default of `predict`."""
TOLERANCE = 0.002
"""Difference that rounding on another machine may cause in a share: 2 of 1,000 images. On one machine there is none."""
ERROR_TOLERANCE = 0.01
"""The same, relative, in a squared error."""


@dataclass(frozen=True)
class Measured:
    """Figures on a test split."""

    test: dict[str, Any]
    """`classification.scores`."""
    poker: dict[str, Any] | None
    """`poker_faces.measure`; None for a model without poker faces."""
    predicted: Tensor
    """Index of each image's label, n."""

    @property
    def correct(self) -> int:
        """Number of images with the right label."""
        return sum(row[index] for index, row in enumerate(self.test["confusion"]))

    def figures(self) -> dict[str, float]:
        """All figures by name."""
        values = run_figures({"test": self.test, "poker": self.poker})
        values |= {name: self.test[name] for name in ("mean_class_accuracy", "macro_f1")}
        return values | {f"recall_{name}": value for name, value in self.test["per_class"].items()}


def measure(model: Model, data: DataConfig, judge: Model | None) -> Measured:
    """Figures of a model on the test split of a dataset. Raises DataError."""
    dataset = open_dataset(data, model.info.training.seed)
    split = dataset.test
    if split is None or dataset.classes != model.classes:
        problem = "has no test split" if split is None else f"has the classes {', '.join(dataset.classes)}"
        raise DataError(
            f"{dataset.name} {problem}, {model.info.name} has {', '.join(model.classes)}; give its own data"
        )
    logits = torch.cat([_logits(model, split, indices) for indices in torch.arange(len(split)).split(BATCH)])
    test = scores(confusion_matrix(logits, split.labels()), split.classes)
    poker = _poker_faces(model, data, split, judge) if model.info.generates else None
    return Measured(test, poker, logits.argmax(1))


def _logits(model: Model, split: Split, indices: Tensor) -> Tensor:
    crops = split.batch(indices).images.permute(0, 2, 3, 1).contiguous().numpy()
    return torch.from_numpy(model.predictor.logits(crops))


def _poker_faces(model: Model, data: DataConfig, split: Split, judge: Model | None) -> dict[str, Any]:
    net = model.predictor.net
    assert isinstance(net, PFViT)
    encoder = model.info.network.encoder
    assert encoder is not None
    config = RunConfig(
        objective="pf_mag",
        data=data,
        model=ModelConfig(patch=encoder.patch),
        evaluate=EvaluateConfig(n_poker_faces=len(split)),
    )
    world = World(0, 1, model.predictor.device)
    return poker_faces.measure(config, net, split, Evaluators(_judge(judge, split)), world)


def _judge(judge: Model | None, split: Split) -> Judge | None:
    neutral = neutral_index(split.classes)
    if judge is None or neutral is None:
        return None
    columns, net = [judge.classes.index(name) for name in split.classes], judge.predictor.net
    return Judge(lambda images: net(images)[:, columns], judge.info.network.size, neutral)


def differences(committed: Mapping[str, float], measured: Mapping[str, float]) -> list[str]:
    """Figures that differ by more than rounding, and those that only one side has."""
    problems = [
        f"{name}: {committed[name]:.5f} committed, not measured" for name in sorted(committed.keys() - measured)
    ]
    for name, value in measured.items():
        if name not in committed:
            problems.append(f"{name}: {value:.5f} measured, not committed")
            continue
        allowed = ERROR_TOLERANCE * abs(committed[name]) if "mse" in name else TOLERANCE
        if not abs(value - committed[name]) <= allowed:
            problems.append(f"{name}: {committed[name]:.5f} committed, {value:.5f} measured")
    return problems
