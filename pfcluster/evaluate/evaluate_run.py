"""Scores of a run that is already there: its best checkpoint on any split, of its own data or other shards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pfcluster.checkpoint import store
from pfcluster.config import ConfigError, DataConfig
from pfcluster.config.io import load
from pfcluster.data.dataset import open_dataset
from pfcluster.data.types import DataError
from pfcluster.distributed.process_group import world
from pfcluster.evaluate.classification import confusion, predict, scores
from pfcluster.evaluate.final import classify_with
from pfcluster.evaluate.shared_classes import SharedClasses
from pfcluster.models import factory


def evaluate_run(run: Path, split: str = "test", data: DataConfig | str | None = None) -> dict[str, Any]:
    """Scores of a classifier's best checkpoint (see `classification.scores`), over the emotions that the run and the
    data both know, by name; with the samples dropped and the classes not looked at. `data`: a folder of shards, or
    other data, seen at the run's own size; None takes the run's. Raises ConfigError, DataError, CheckpointError.
    """
    weights = store.load(run).weights()
    home = next((folder for folder in (run, *run.parents) if (folder / "config.json").is_file()), run)
    config = load(home / "config.json")
    if config.objective == "mae":
        raise ConfigError(f"{run} is a run of MAE pre-training: it has no classes to score")
    trained = open_dataset(config.data, config.seed)
    if isinstance(data, str):
        data = replace(config.data, shards=data, expected_name=None, limit=None)
    dataset = trained if data is None else open_dataset(replace(data, size=config.data.size), config.seed)
    chosen = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}[split]
    if chosen is None:
        raise DataError(f"{dataset.name} has no test split; give --split validation")
    shared = SharedClasses(chosen, trained.classes)
    with world(config.engine.device) as here:
        model = factory.build(config, len(trained.classes), load_init=False)["model"]
        model.load_state_dict(weights)
        model.to(here.device).eval()
        whole = classify_with(model)
        columns = shared.columns.to(here.device)

        def classify(images: Tensor) -> Tensor:
            """b 3 h w -> logits of the shared classes, b k."""
            return whole(images)[:, columns]

        logits, labels = predict(
            classify,
            shared,
            size=config.data.size,
            batch_size=config.evaluate.batch_size,
            classes=len(shared.classes),
            world=here,
        )
    found = scores(confusion(logits, labels), shared.classes)
    named = f"{dataset.name} ({dataset.votes} votes)" if dataset.votes else dataset.name
    return {**found, "dataset": named, "dropped": shared.dropped(), "unanswered": list(shared.unanswered)}
