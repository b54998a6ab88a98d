"""Finished classifiers opened beside each other: the same faces, each run's answers to them and its features.

Legend: n samples, b images, k classes, d features.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pfcluster.checkpoint import store
from pfcluster.config import DataConfig, RunConfig
from pfcluster.config.io import load
from pfcluster.data.dataset import open_dataset
from pfcluster.data.types import Dataset, Split
from pfcluster.distributed.process_group import World, generator
from pfcluster.evaluate.classification import load_images, predict
from pfcluster.evaluate.final import classify_with
from pfcluster.evaluate.image_grid import pick
from pfcluster.evaluate.predictions import checksum
from pfcluster.models import factory
from pfcluster.models.pf_vit import PFViT
from pfcluster.models.vit import Classifier


class PicturesError(ValueError):
    """Runs of which no pictures can be made: says which, why, and what to do."""


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """A finished run's classifier at its best checkpoint, frozen, and the faces that it is shown."""

    folder: Path
    label: str
    """Its name and seed; where runs share those, its folder within the one that holds them all."""
    config: RunConfig
    model: PFViT | Classifier
    split: Split

    @property
    def classes(self) -> tuple[str, ...]:
        return self.split.classes

    def images(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Faces at this run's own size, b 3 h w in -1..1, and labels b."""
        return load_images(self.split, chosen, self.config.data.size, next(self.model.parameters()).device)


@dataclass(frozen=True, eq=False)
class Answers:
    """What a run says to every face of its split, in the split's order, on the CPU."""

    logits: Tensor
    """n k."""
    features: Tensor
    """n d: what goes into the last linear layer."""
    labels: Tensor
    """n."""

    @property
    def probabilities(self) -> Tensor:
        """n k."""
        return self.logits.softmax(1)


def finished_config(folder: Path) -> RunConfig:
    """The config of a run that has finished. Raises PicturesError, ConfigError."""
    if not (folder / "config.json").is_file():
        inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
        hint = f", such as {folder / inner[0]}" if inner else " (OUTPUT/NAME/seed-N)"
        raise PicturesError(f"{folder} is no run: it has no config.json; give the folder of one run{hint}")
    try:
        status = json.loads((folder / "result.json").read_text()).get("status")
    except FileNotFoundError:
        status = "no result yet"
    except (OSError, ValueError, AttributeError) as error:
        raise PicturesError(f"{folder / 'result.json'} cannot be read: {error}; train the run again") from error
    if status != "finished":
        raise PicturesError(f"{folder} has not finished ({status}); give its command again, or leave it out")
    return load(folder / "config.json")


def open_runs(folders: Sequence[Path], split: str = "test", device: torch.device | str = "cpu") -> list[ComparedRun]:
    """Classifiers that were asked about the same faces. Raises PicturesError where a run has not finished, is no ViT
    that classifies, or saw other faces than the first; ConfigError, DataError, CheckpointError.
    """
    if not folders:
        raise PicturesError("no classifier was given; give folders of runs of finetune or pf-mag")
    configs = {folder: finished_config(folder) for folder in dict.fromkeys(folders)}
    for folder, config in configs.items():
        _require_vit(folder, config)
    datasets: dict[DataConfig, Dataset] = {}
    runs = []
    for (folder, config), label in zip(configs.items(), labels(configs), strict=True):
        if config.data not in datasets:
            datasets[config.data] = open_dataset(config.data, config.seed)
        dataset = datasets[config.data]
        chosen = {"validation": dataset.validation, "test": dataset.test}[split]
        if chosen is None:
            raise PicturesError(
                f"{dataset.name}, on which {folder} was trained, has no test split; give --split validation"
            )
        runs.append(ComparedRun(folder, label, config, _model(folder, config, dataset, device), chosen))
    _require_same_faces(runs, [datasets[run.config.data] for run in runs])
    return runs


def labels(configs: dict[Path, RunConfig]) -> list[str]:
    """Each run's name and seed; where runs share those, its folder within the one that holds them all."""
    named = [f"{config.name}, seed {config.seed}" for config in configs.values()]
    counts = Counter(named)
    home = common_folder(list(configs))
    places = [folder.resolve().relative_to(home).as_posix() for folder in configs]
    return [name if counts[name] == 1 else place for name, place in zip(named, places, strict=True)]


def common_folder(folders: Sequence[Path]) -> Path:
    """The innermost folder that holds all of these; of one, itself."""
    return Path(os.path.commonpath([folder.resolve() for folder in folders]))


def choose(run: ComparedRun, count: int, seed: int) -> Tensor:
    """Faces drawn by a seed, going round the classes: long (n,). The same for all runs that saw the same faces."""
    truth = run.split.labels()
    mixed = torch.randperm(len(truth), generator=generator(seed, "pictures"))
    return mixed[pick(truth[mixed], len(run.classes), count)]


def answers(run: ComparedRun, here: World) -> Answers:
    """A run's logits and features of its whole split."""
    assert here.size == 1
    head = run.model.classifier if isinstance(run.model, PFViT) else run.model.head
    with _inputs(head) as features:
        logits, truth = predict(
            classify_with(run.model),
            run.split,
            size=run.config.data.size,
            batch_size=run.config.evaluate.batch_size,
            classes=len(run.classes),
            world=here,
        )
    return Answers(logits, torch.cat(features), truth)


@contextmanager
def _inputs(head: nn.Module) -> Iterator[list[Tensor]]:
    """All that a module is given meanwhile, b d each."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append(given[0].float().cpu())

    hook = head.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        hook.remove()


def _require_vit(folder: Path, config: RunConfig) -> None:
    wanted = "give runs of finetune or pf-mag"
    if config.objective == "mae":
        raise PicturesError(f"{folder} is a run of MAE pre-training, which classifies nothing; {wanted}")
    if config.model.architecture == "cnn":
        raise PicturesError(f"{folder} is a judge, a CNN without transformer blocks to look into; {wanted}")


def _model(folder: Path, config: RunConfig, dataset: Dataset, device: torch.device | str) -> PFViT | Classifier:
    model = factory.build(config, len(dataset.classes), load_init=False)["model"]
    model.load_state_dict(store.load(folder).weights())
    assert isinstance(model, PFViT | Classifier)
    return model.to(device).eval().requires_grad_(False)


def _require_same_faces(runs: Sequence[ComparedRun], datasets: Sequence[Dataset]) -> None:
    def faces(run: ComparedRun, dataset: Dataset) -> tuple[Any, ...]:
        rendered = run.config.data.synthetic if run.config.data.shards is None else None
        names = checksum(run.split.keys(torch.arange(len(run.split))))
        return dataset.name, dataset.votes, run.classes, rendered, names, run.split.labels().tolist()

    def told(run: ComparedRun, dataset: Dataset) -> str:
        return f"{run.folder} ({dataset.name}, {len(run.split)} faces of {len(run.classes)} classes)"

    wanted = faces(runs[0], datasets[0])
    for run, dataset in zip(runs[1:], datasets[1:], strict=True):
        if faces(run, dataset) != wanted:
            raise PicturesError(
                f"{told(runs[0], datasets[0])} and {told(run, dataset)} were asked about different faces: runs stand"
                " beside each other for one dataset and one split only; make the pictures of each apart"
            )
