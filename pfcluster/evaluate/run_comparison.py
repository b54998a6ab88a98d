"""Open several finished classifiers that were evaluated on the same faces, with their logits and features.

Legend: n samples, b images, k classes, d features.
"""

from __future__ import annotations

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
from pfcluster.config.json_files import JsonFileError
from pfcluster.data.dataset import open_dataset
from pfcluster.data.fingerprints import require_same_data
from pfcluster.data.splits import sample_ids
from pfcluster.data.types import Dataset, Split
from pfcluster.distributed.process_group import World, generator
from pfcluster.evaluate.classification import load_images, predict_run
from pfcluster.evaluate.image_grid import pick_round_robin
from pfcluster.evaluate.predictions import checksum
from pfcluster.models import factory
from pfcluster.models.pf_vit import PFViT
from pfcluster.models.vit import Classifier
from pfcluster.runs.folder import CONFIG_FILE, read_config, read_result
from pfcluster.runs.run_inputs import read_inputs


class PicturesError(ValueError):
    """Runs that cannot be drawn together; the message names the run, the reason and the remedy."""


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """The frozen classifier of a finished run's best checkpoint, and the split to evaluate it on."""

    folder: Path
    label: str
    """Name and seed; the path below the common folder if runs share name and seed."""
    config: RunConfig
    model: PFViT | Classifier
    split: Split

    @property
    def classes(self) -> tuple[str, ...]:
        return self.split.classes

    def images(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images at this run's size, b 3 h w in -1..1, and labels b."""
        return load_images(self.split, indices, self.config.data.size, next(self.model.parameters()).device)


@dataclass(frozen=True, eq=False)
class ClassifierOutputs:
    """Outputs of a run for every sample of its split, in the split's order, on the CPU."""

    logits: Tensor
    """n k."""
    features: Tensor
    """n d: input of the last linear layer."""
    labels: Tensor
    """n."""


def finished_config(folder: Path) -> RunConfig:
    """The config of a finished run. Raises PicturesError if the folder is not a run or has not finished;
    ConfigError."""
    if not (folder / CONFIG_FILE).is_file():
        runs = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))
        hint = f", such as {folder / runs[0]}" if runs else " (OUTPUT/NAME/seed-N)"
        raise PicturesError(f"{folder} is not a run: it has no {CONFIG_FILE}; pass the folder of one run{hint}")
    try:
        result = read_result(folder)
    except JsonFileError as error:
        raise PicturesError(f"{error}; train the run again") from error
    status = "no result yet" if result is None else result.get("status")
    if status != "finished":
        raise PicturesError(f"{folder} has not finished ({status}); run its command again, or leave it out")
    return read_config(folder)


def open_runs(folders: Sequence[Path], split: str = "test", device: torch.device | str = "cpu") -> list[ComparedRun]:
    """Open finished classifiers that share a split.

    Raises PicturesError if a run has not finished, is not a ViT classifier, or has other faces than the first run;
    ConfigError, DataError, CheckpointError.
    """
    if not folders:
        raise PicturesError("no classifier was given; pass folders of runs of finetune or pf-mag")
    configs = {folder: finished_config(folder) for folder in dict.fromkeys(folders)}
    for folder, config in configs.items():
        _require_vit(folder, config)
    datasets: dict[DataConfig, Dataset] = {}
    runs = []
    for (folder, config), label in zip(configs.items(), run_labels(configs), strict=True):
        if config.data not in datasets:
            datasets[config.data] = open_dataset(config.data, config.seed)
        require_same_data(folder, read_inputs(folder), config)
        dataset = datasets[config.data]
        evaluated = {"validation": dataset.validation, "test": dataset.test}[split]
        if evaluated is None:
            raise PicturesError(
                f"{dataset.name}, on which {folder} was trained, has no test split; use --split validation"
            )
        runs.append(ComparedRun(folder, label, config, _model(folder, config, dataset, device), evaluated))
    _require_same_faces(runs, [datasets[run.config.data] for run in runs])
    return runs


def run_labels(configs: dict[Path, RunConfig]) -> list[str]:
    """Name and seed of each run; the path below the common folder if runs share name and seed."""
    names = [f"{config.name}, seed {config.seed}" for config in configs.values()]
    counts = Counter(names)
    root = common_folder(list(configs))
    paths = [folder.resolve().relative_to(root).as_posix() for folder in configs]
    return [name if counts[name] == 1 else path for name, path in zip(names, paths, strict=True)]


def common_folder(folders: Sequence[Path]) -> Path:
    """The innermost common folder; of one folder, itself."""
    return Path(os.path.commonpath([folder.resolve() for folder in folders]))


def draw_faces(run: ComparedRun, count: int, seed: int) -> Tensor:
    """Random faces, taken from each class in turn: long (n,). Equal for all runs with the same split."""
    labels = run.split.labels()
    order = torch.randperm(len(labels), generator=generator(seed, "pictures"))
    return order[pick_round_robin(labels[order], len(run.classes), count)]


def classifier_outputs(run: ComparedRun, world: World) -> ClassifierOutputs:
    """Logits and features of a run's whole split; one process only."""
    assert world.size == 1
    head = run.model.classifier if isinstance(run.model, PFViT) else run.model.head
    with _recorded_inputs(head) as features:
        logits, labels = predict_run(run.config, run.model, run.split, len(run.classes), world)
    return ClassifierOutputs(logits, torch.cat(features), labels)


@contextmanager
def _recorded_inputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the module's inputs, b d each, on the CPU."""
    inputs: list[Tensor] = []

    def record(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs.append(arguments[0].float().cpu())

    hook = module.register_forward_pre_hook(record)
    try:
        yield inputs
    finally:
        hook.remove()


def _require_vit(folder: Path, config: RunConfig) -> None:
    remedy = "pass runs of finetune or pf-mag"
    if config.objective == "mae":
        raise PicturesError(f"{folder} is a run of MAE pre-training, which has no classifier; {remedy}")
    if config.model.architecture == "cnn":
        raise PicturesError(f"{folder} is a CNN (a judge), which has no transformer blocks; {remedy}")


def _model(folder: Path, config: RunConfig, dataset: Dataset, device: torch.device | str) -> PFViT | Classifier:
    model = factory.build(config, len(dataset.classes), load_init=False)["model"]
    model.load_state_dict(store.load(folder).weights())
    assert isinstance(model, PFViT | Classifier)
    return model.to(device).eval().requires_grad_(False)


def _require_same_faces(runs: Sequence[ComparedRun], datasets: Sequence[Dataset]) -> None:
    """Raises PicturesError if a run's dataset, classes, sample names or labels differ from the first run's."""

    def fingerprint(run: ComparedRun, dataset: Dataset) -> tuple[Any, ...]:
        rendered = run.config.data.synthetic if run.config.data.shards is None else None
        names = checksum(sample_ids(run.split))
        return dataset.name, dataset.votes, run.classes, rendered, names, run.split.labels().tolist()

    def describe(run: ComparedRun, dataset: Dataset) -> str:
        return f"{run.folder} ({dataset.name}, {len(run.split)} faces of {len(run.classes)} classes)"

    first = fingerprint(runs[0], datasets[0])
    for run, dataset in zip(runs[1:], datasets[1:], strict=True):
        if fingerprint(run, dataset) != first:
            raise PicturesError(
                f"{describe(runs[0], datasets[0])} and {describe(run, dataset)} have different faces: only runs on"
                " the same split can be drawn together; draw the pictures of each separately"
            )
