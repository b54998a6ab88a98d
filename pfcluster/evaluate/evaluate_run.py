"""Scores of a finished run: its best checkpoint on any split, of its own dataset or of other shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pfcluster.checkpoint import store
from pfcluster.config import ConfigError, DataConfig, RunConfig
from pfcluster.data.dataset import open_dataset
from pfcluster.data.fingerprints import require_same_data
from pfcluster.data.manifest import ShardError
from pfcluster.data.types import DataError, Dataset, Split, UnfitDataError
from pfcluster.distributed.process_group import world
from pfcluster.engine.precision import autocast
from pfcluster.evaluate.classification import confusion_matrix, logits_function, predict, scores
from pfcluster.evaluate.shared_classes import SharedClasses
from pfcluster.models import factory
from pfcluster.runs.folder import enclosing_run, read_config
from pfcluster.runs.run_inputs import read_inputs, recorded_classes


def evaluate_run(run: Path, split: str = "test", data: DataConfig | str | None = None) -> dict[str, Any]:
    """Scores of a classifier's best checkpoint (see `classification.scores`) over the emotions that the run and the
    data share, matched by name; also the numbers of dropped samples (`dropped`) and the classes that the data lacks
    (`missing_classes`).

    `data` is a folder of shards or a DataConfig, read at the run's image size; None is the run's own dataset.
    Raises ConfigError, also if there is other data now where the run's own was; DataError, of which UnfitDataError for
    data without the split or without two classes of the run; CheckpointError.
    """
    weights = store.load(run).weights()
    config = read_config(enclosing_run(run) or run)
    if config.objective == "mae":
        raise ConfigError(f"{run} is a run of MAE pre-training, which has no classes; give a run of finetune or pf-mag")
    folder = enclosing_run(run) or run
    dataset = open_own_dataset(folder, config) if data is None else _evaluation_data(config, data)
    classes = recorded_classes(folder) or open_dataset(config.data, config.seed).classes
    require_outputs(folder, weights, classes)
    shared = SharedClasses(_split(dataset, split), classes)
    with world(config.engine.device) as ranks:
        model = factory.build(config, len(classes), load_init=False)["model"]
        model.load_state_dict(weights)
        all_logits = logits_function(model.to(ranks.device).eval())
        columns = shared.columns.to(ranks.device)

        def classify(images: Tensor) -> Tensor:
            """b 3 h w -> logits of the shared classes, b k."""
            return all_logits(images)[:, columns]

        with autocast(ranks.device, config.engine.precision):  # as in training, for the scores of result.json
            logits, labels = predict(
                classify,
                shared,
                size=config.data.size,
                batch_size=config.evaluate.batch_size,
                classes=len(shared.classes),
                world=ranks,
            )
    values = scores(confusion_matrix(logits, labels), shared.classes)
    name = f"{dataset.name} ({dataset.votes} votes)" if dataset.votes else dataset.name
    return {**values, "dataset": name, "dropped": shared.dropped(), "missing_classes": list(shared.missing_classes)}


def open_own_dataset(folder: Path, config: RunConfig) -> Dataset:
    """The dataset that a run was trained on. Raises ConfigError if there is other data in its place; DataError."""
    try:
        require_same_data(folder, read_inputs(folder), config)
    except ConfigError as error:
        raise ConfigError(
            f"{error}. To evaluate on other data, with the classes matched by name, name it: pfcluster evaluate RUN"
            " --shards FOLDER"
        ) from error
    except (ShardError, OSError) as error:
        raise DataError(str(error)) from error
    return open_dataset(config.data, config.seed)


def require_outputs(folder: Path, weights: Mapping[str, Tensor], classes: tuple[str, ...]) -> None:
    """Raises ConfigError if a classifier has another number of outputs than classes are known of it."""
    outputs = [len(value) for name, value in weights.items() if name in ("head.weight", "classifier.weight")]
    if outputs and outputs[0] != len(classes):
        raise ConfigError(
            f"{folder} has {outputs[0]} outputs, and its data has {len(classes)} classes ({', '.join(classes)}): the"
            " data in its place is not what it was trained on; restore that data"
        )


def _evaluation_data(config: RunConfig, data: DataConfig | str) -> Dataset:
    """The dataset to evaluate on, at the run's image size."""
    if isinstance(data, str):
        data = replace(config.data, shards=data, expected_name=None, limit=None)
    return open_dataset(replace(data, size=config.data.size), config.seed)


def _split(dataset: Dataset, name: str) -> Split:
    split = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}[name]
    if split is None:
        raise UnfitDataError(f"{dataset.name} has no test split; give --split validation")
    return split
