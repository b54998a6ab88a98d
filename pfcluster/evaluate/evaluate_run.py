"""Scores of a finished run and of its poker faces: its best checkpoint on any split, of its own dataset or of other
shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pfcluster.checkpoint import store
from pfcluster.config import ConfigError, DataConfig, RunConfig
from pfcluster.data.dataset import open_dataset
from pfcluster.data.fingerprints import is_other_build, require_same_data
from pfcluster.data.manifest import ShardError, load_manifest
from pfcluster.data.splits import damaged_record, may_share_photos, sharded
from pfcluster.data.types import DataError, Dataset, Split, UnfitDataError
from pfcluster.distributed.process_group import World, world
from pfcluster.engine.precision import autocast
from pfcluster.evaluate import poker_faces
from pfcluster.evaluate.classification import confusion_matrix, logits_function, predict, scores
from pfcluster.evaluate.evaluators import Evaluators, load_judge
from pfcluster.evaluate.shared_classes import SharedClasses
from pfcluster.models import factory
from pfcluster.models.pf_vit import PFViT
from pfcluster.runs.folder import enclosing_run, read_config
from pfcluster.runs.run_inputs import read_inputs, recorded_classes


def evaluate_run(run: Path, split: str = "test", data: DataConfig | str | None = None) -> dict[str, Any]:
    """Scores of a classifier's best checkpoint (see `classification.scores`) over the emotions that the run and the
    data share, matched by name; also the numbers of dropped samples (`dropped`), the classes that the data lacks
    (`missing_classes`), the damaged samples that others replaced (`damaged_samples`, as in result.json), and a
    `crop_warning` if the data was cropped in another way than the run's, else None.

    `data` is a folder of shards or a DataConfig, read at the run's image size; None is the run's own dataset.
    Raises ConfigError, also if there is other data now where the run's own was, and for another build of the run's
    dataset whose split may hold its training photos; DataError, of which UnfitDataError for data without the split or
    without two classes of the run; CheckpointError.
    """
    weights = store.load(run).weights()
    config, dataset, classes = _read(run, split, data)
    shared = SharedClasses(_split(dataset, split), classes)
    with world(config.engine.device) as ranks:
        all_logits = logits_function(_model(run, weights, config, classes).to(ranks.device).eval())
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
        damaged = _damaged(shared, ranks)
    values = scores(confusion_matrix(logits, labels), shared.classes)
    name = f"{dataset.name} ({dataset.votes} votes)" if dataset.votes else dataset.name
    return {
        **values,
        "dataset": name,
        "dropped": shared.dropped(),
        "missing_classes": list(shared.missing_classes),
        "damaged_samples": damaged,
        "crop_warning": _crop_warning(read_config(enclosing_run(run) or run).data, config.data),
    }


def _crop_warning(trained: DataConfig, evaluated: DataConfig) -> str | None:
    """Says that of two shard folders only one is aligned by landmarks; None if not, or if that is not known."""
    if trained.shards is None or evaluated.shards is None:
        return None
    try:
        ours, theirs = (load_manifest(place).options.get("align") for place in (trained.shards, evaluated.shards))
    except (ShardError, OSError):
        return None
    if None in (ours, theirs) or (ours == "none") == (theirs == "none"):
        return None
    return (
        f"the run was trained on faces cropped with --align {ours}, and these are of --align {theirs}: expect fewer"
        f" right answers than on a build with --align {ours}"
    )


def judge_run(run: Path, judge: Path, split: str = "test", data: DataConfig | str | None = None) -> dict[str, Any]:
    """Figures of all poker faces of a split by a judge (see `poker_faces.measure`), which need not be the judge that
    the run was trained with: `judge` is the folder of its run. `data`, and `damaged_samples` in the figures, as in
    `evaluate_run`.

    Raises ConfigError, as `evaluate_run`, also for a run that generates no images and for a judge that was trained on
    another build of the data or on other classes; DataError; CheckpointError.
    """
    weights = store.load(run).weights()
    config, dataset, classes = _read(run, split, data)
    if config.objective != "pf_mag":
        raise ConfigError(f"{run} is a run of {config.objective}, which makes no poker faces; leave --judge out")
    faces = _split(dataset, split)
    config = replace(config, evaluate=replace(config.evaluate, judge=str(judge), n_poker_faces=len(faces)))
    with world(config.engine.device) as ranks:
        model = _model(run, weights, config, classes).to(ranks.device).eval()
        assert isinstance(model, PFViT)
        evaluators = Evaluators(load_judge(config, dataset, ranks, "--judge"))
        figures = poker_faces.measure(config, model, faces, evaluators, ranks)
        return {**figures, "damaged_samples": _damaged(faces, ranks)}


def _damaged(split: Split, ranks: World) -> dict[str, Any]:
    """The damaged samples of a split that the ranks have met, by the name of the split; empty if there are none."""
    source = sharded(split)
    keys: set[str] = set() if source is None else set().union(*ranks.gather(set(source.damaged)))
    return {source.shards.split: damaged_record(keys, len(source))} if source is not None and keys else {}


def _read(run: Path, split: str, data: DataConfig | str | None) -> tuple[RunConfig, Dataset, tuple[str, ...]]:
    """Config of a run with the data to evaluate on, the dataset of these data, and the run's classes."""
    folder = enclosing_run(run) or run
    config = read_config(folder)
    if config.objective == "mae":
        raise ConfigError(f"{run} is a run of MAE pre-training, which has no classes; pass a run of finetune or pf-mag")
    if data is None:
        dataset = open_own_dataset(folder, config)
        return config, dataset, recorded_classes(folder) or dataset.classes
    classes = recorded_classes(folder) or open_dataset(config.data, config.seed).classes
    if isinstance(data, str):
        data = replace(config.data, shards=data, expected_name=None, limit=None)
    data = replace(data, size=config.data.size)
    dataset = open_dataset(data, config.seed)
    _require_unseen(folder, config, data, _split(dataset, split))
    return replace(config, data=data), dataset, classes


def _require_unseen(folder: Path, config: RunConfig, data: DataConfig, split: Split) -> None:
    """Raises ConfigError if other data are another build of the dataset of the run in a folder, and a split of them may
    contain photos, or identities, that the run was trained on. Raises ShardError, OSError.
    """
    recorded = read_inputs(folder)
    if recorded is None or not is_other_build(data, recorded):
        return
    try:
        may_be_seen = may_share_photos(open_own_dataset(folder, config).train, split)
    except (ConfigError, DataError, OSError):
        may_be_seen = True  # its own data are gone: nothing to compare with
    if may_be_seen:
        raise ConfigError(
            f"--shards: {folder} was trained on another build of {recorded.data.name} than {data.shards}, so it may"
            " have been trained on these photos; evaluate it on the shards that it was trained on, or, if these are"
            " another dataset of the same name, build them under their own --name"
        )


def _model(run: Path, weights: Mapping[str, Tensor], config: RunConfig, classes: tuple[str, ...]) -> nn.Module:
    """The net of a run with these weights."""
    require_outputs(enclosing_run(run) or run, weights, classes)
    model = factory.build(config, len(classes), load_init=False)["model"]
    model.load_state_dict(weights)
    return model


def open_own_dataset(folder: Path, config: RunConfig) -> Dataset:
    """The dataset that a run was trained on. Raises ConfigError if there is other data in its place; DataError."""
    try:
        require_same_data(folder, read_inputs(folder), config)
    except ConfigError as error:
        raise ConfigError(
            f"{error}. To evaluate on another dataset, with the classes matched by name, name it: pfcluster evaluate"
            " RUN --shards FOLDER"
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


def _split(dataset: Dataset, name: str) -> Split:
    split = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}[name]
    if split is None:
        raise UnfitDataError(f"{dataset.name} has no test split; use --split validation")
    return split
