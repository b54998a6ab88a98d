"""Scores of a finished run: its best checkpoint on any split, of its own dataset or of other shards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pfcluster.checkpoint import store
from pfcluster.config import ConfigError, DataConfig, RunConfig
from pfcluster.data.dataset import open_dataset
from pfcluster.data.types import DataError, Dataset, Split
from pfcluster.distributed.process_group import world
from pfcluster.evaluate.classification import confusion_matrix, logits_function, predict, scores
from pfcluster.evaluate.shared_classes import SharedClasses
from pfcluster.models import factory
from pfcluster.runs.folder import enclosing_run, read_config


def evaluate_run(run: Path, split: str = "test", data: DataConfig | str | None = None) -> dict[str, Any]:
    """Scores of a classifier's best checkpoint (see `classification.scores`) over the emotions that the run and the
    data share, matched by name; also the numbers of dropped samples (`dropped`) and the classes that the data lacks
    (`missing_classes`).

    `data` is a folder of shards or a DataConfig, read at the run's image size; None is the run's own dataset.
    Raises ConfigError, DataError, CheckpointError.
    """
    weights = store.load(run).weights()
    config = read_config(enclosing_run(run) or run)
    if config.objective == "mae":
        raise ConfigError(f"{run} is a run of MAE pre-training, which has no classes; give a run of finetune or pf-mag")
    training_data = open_dataset(config.data, config.seed)
    dataset = _evaluation_data(config, data) or training_data
    shared = SharedClasses(_split(dataset, split), training_data.classes)
    with world(config.engine.device) as ranks:
        model = factory.build(config, len(training_data.classes), load_init=False)["model"]
        model.load_state_dict(weights)
        all_logits = logits_function(model.to(ranks.device).eval())
        columns = shared.columns.to(ranks.device)

        def classify(images: Tensor) -> Tensor:
            """b 3 h w -> logits of the shared classes, b k."""
            return all_logits(images)[:, columns]

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


def _evaluation_data(config: RunConfig, data: DataConfig | str | None) -> Dataset | None:
    """The dataset to evaluate on, at the run's image size; None for the run's own."""
    if data is None:
        return None
    if isinstance(data, str):
        data = replace(config.data, shards=data, expected_name=None, limit=None)
    return open_dataset(replace(data, size=config.data.size), config.seed)


def _split(dataset: Dataset, name: str) -> Split:
    split = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}[name]
    if split is None:
        raise DataError(f"{dataset.name} has no test split; give --split validation")
    return split
