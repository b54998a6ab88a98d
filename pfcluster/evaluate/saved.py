"""Scores of a run that is already there: its best checkpoint on any split, of its own data or other shards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pfcluster import checkpoint, models
from pfcluster.config import ConfigError
from pfcluster.config_json import load
from pfcluster.data.source import open_dataset
from pfcluster.data.split_types import DataError
from pfcluster.dist import world
from pfcluster.evaluate.classification import confusion, scores
from pfcluster.evaluate.final import classify_with


def evaluate_run(run: Path, split: str = "test", shards: str | None = None) -> dict[str, Any]:
    """Scores of a classifier's best checkpoint (see `classification.scores`). Raises ConfigError, DataError,
    CheckpointError.
    """
    weights = checkpoint.load(run).weights()
    home = next((folder for folder in (run, *run.parents) if (folder / "config.json").is_file()), run)
    config = load(home / "config.json")
    if config.objective == "mae":
        raise ConfigError(f"{run} is a run of MAE pre-training: it has no classes to score")
    trained = open_dataset(config.data, config.seed)
    data = config.data if shards is None else replace(config.data, shards=shards, expect=None, limit=None)
    dataset = trained if shards is None else open_dataset(data, config.seed)
    if dataset.classes != trained.classes:
        raise DataError(
            f"{shards} has the classes {', '.join(dataset.classes)},"
            f" the run was trained on {', '.join(trained.classes)}"
        )
    chosen = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}[split]
    if chosen is None:
        raise DataError(f"{dataset.name} has no test split; give --split validation")
    with world(config.engine.device) as here:
        model = models.build(config, len(dataset.classes), load_init=False)["model"]
        model.load_state_dict(weights)
        model.to(here.device).eval()
        counts = confusion(
            classify_with(model),
            chosen,
            size=config.data.size,
            batch_size=config.evaluate.batch_size,
            classes=len(dataset.classes),
            world=here,
        )
    return scores(counts, dataset.classes)
