"""Fingerprints of a run's inputs: its data, and the weights that it reads. Two paths are the same input if their
fingerprints are equal. No torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pfcluster.config import ConfigError, DataConfig, RunConfig
from pfcluster.config.io import flatten
from pfcluster.data.labels import CANONICAL, in_canonical_order
from pfcluster.data.manifest import Manifest, ShardError, load_manifest
from pfcluster.runs.folder import (
    CHECKPOINT_FILE,
    CHECKPOINTS_DIR,
    CONFIG_FILE,
    changes_on_resume,
    enclosing_run,
    read_config,
)
from pfcluster.runs.run_inputs import DATA_FIELD, DataRecord, RunInputs, SplitRecord, read_inputs, recorded_classes
from pfcluster.system.atomic_files import sha256

WEIGHT_FIELDS = (
    "model.init",
    "pf_mag.decoder_init",
    "pf_mag.identity_net_weights",
    "evaluate.judge",
    "evaluate.identity_net",
    "evaluate.fid",
)
"""Fields that name a run, a checkpoint or a file of weights."""


START_FIELDS = ("model.init", "pf_mag.decoder_init")
"""Fields that name the weights that a run starts from."""


def split_fingerprint(manifest: Manifest, split: str) -> str:
    """Hash of a split's contents: the checksums of its tars and indexes, and the classes that its labels index."""
    files = [(shard.sha256, shard.index_sha256) for shard in manifest.splits[split].shards]
    return hashlib.sha256(json.dumps([manifest.classes, files]).encode()).hexdigest()


def data_record(config: DataConfig) -> DataRecord:
    """The content of the data that a config names; reads only the manifest of shards. Raises ShardError, OSError."""
    if config.shards is None:
        options = config.synthetic
        classes = in_canonical_order(options.classes or CANONICAL)
        digest = hashlib.sha256(json.dumps(asdict(options)).encode()).hexdigest()
        splits = {name: SplitRecord(getattr(options, name), digest) for name in ("train", "validation", "test")}
        return DataRecord("synthetic", classes, None, None, splits)
    manifest = load_manifest(config.shards)
    splits = {
        name: SplitRecord(split.samples, split_fingerprint(manifest, name)) for name, split in manifest.splits.items()
    }
    plan = manifest.source.get("plan_sha256")
    return DataRecord(manifest.name, manifest.classes, manifest.votes, plan, splits)


def weights_fingerprint(place: str, warn: Callable[[str], None] = lambda problem: None) -> str | None:
    """Fingerprint of a run's checkpoint that would be loaded, of a checkpoint, a file or a folder of weights. A name
    that is not a path, such as `timm:NAME`, is its own fingerprint; None if nothing exists yet. What is wrong with the
    checkpoints of a run goes to `warn`.
    """
    path = Path(place)
    try:
        if path.is_file():
            return sha256(path)
        if not path.is_dir():
            return place if place.startswith("timm:") or place == "inception" else None
        if (path / CHECKPOINT_FILE).is_file() or (path / CHECKPOINTS_DIR).is_dir():
            from pfcluster.checkpoint import store

            # this file holds the checksums of all files of the checkpoint
            return sha256(store.load(path, warn).path / CHECKPOINT_FILE)
        files = sorted(file for file in path.iterdir() if file.is_file())
        return hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest() if files else None
    except (OSError, ValueError):
        return None


def run_inputs(
    config: RunConfig, notes: tuple[str, ...] = (), warn: Callable[[str], None] = lambda problem: None
) -> RunInputs:
    """The inputs of a run as they are now; what is wrong with them goes to `warn`. Raises ShardError, OSError."""
    weights = {
        name: weights_fingerprint(place, lambda problem, name=name: warn(f"{name}: {problem}"))  # type: ignore[misc]
        for name, place in _places(config).items()
        if name in WEIGHT_FIELDS
    }
    return RunInputs(data_record(config.data), {name: one for name, one in weights.items() if one is not None}, notes)


def require_same_data(folder: Path, recorded: RunInputs | None, config: RunConfig) -> None:
    """Raises ConfigError if a config's data are not those that the run in a folder was trained on; ShardError, OSError.

    Synthetic faces are determined by the config.
    """
    if recorded is None or config.data.shards is None:
        return
    now = data_record(config.data)
    before = recorded.data
    if (now.splits, now.classes) == (before.splits, before.classes):
        return
    what = now.describe() if now.describe() != before.describe() else "as many, but other, photos or labels"
    raise ConfigError(
        f"data.shards: {folder} was trained on {before.describe()}, and {config.data.shards} holds other data now:"
        f" {what}; restore that data, or train in another folder"
    )


def is_other_build(data: DataConfig, recorded: RunInputs) -> bool:
    """Whether shards are another build of the dataset that a run was trained on: equal names, other training samples.
    Raises ShardError, OSError.
    """
    if data.shards is None:
        return False
    now = data_record(data)
    return recorded.data.name == now.name and not now.same_samples(recorded.data, "train")


def require_same_build(config: RunConfig, run: Path, option: str) -> None:
    """Raises ConfigError if the classifier in a run folder was trained on another build of a config's dataset: what is
    test data here may have been training data there. Raises ShardError, OSError.
    """
    recorded = read_inputs(enclosing_run(run) or run)
    if recorded is not None and is_other_build(config.data, recorded):
        raise ConfigError(
            f"{option}: {run} was trained on another build of {recorded.data.name} than {config.data.shards}, so it may"
            " have been trained on faces of this test split; train it on these shards"
        )


def require_fitting_start(config: RunConfig) -> None:
    """Raises ConfigError if a run of finetune or pf_mag would start from a run that learned the labels of another build
    of its dataset, or PF-ViT from the head of other classes; ShardError, OSError. The head of another number of classes
    is left out (models/factory.py). Pre-training sees no labels, so its runs may be of any build.
    """
    run = None if config.model.init is None else enclosing_run(Path(config.model.init))
    if run is None or config.objective == "mae" or (start := read_config(run).objective) == "mae":
        return
    theirs, ours = recorded_classes(run), data_record(config.data).classes
    heads_meet = (config.objective, start) == ("pf_mag", "finetune")
    if heads_meet and theirs is not None and theirs != ours and len(theirs) == len(ours):
        raise ConfigError(
            f"model.init: {run} classifies {', '.join(theirs)}, and the data has {', '.join(ours)}: its head cannot"
            " start PF-ViT's; use a classifier of the same classes, or weights of pre-training"
        )
    require_same_build(config, run, "model.init")


def check_inputs(folder: Path, config: RunConfig, *, finished: bool = False) -> dict[str, tuple[Any, Any]]:
    """Compare a config with the run recorded in a folder: -> the fields that may and do change on resume, as
    `changes_on_resume`. Paths may differ if they hold the same data and weights.

    Of a finished run missing data are not an error. Raises ConfigError, also for the same path with other contents;
    ShardError, OSError, JsonFileError.
    """
    recorded = read_inputs(folder) if (folder / CONFIG_FILE).exists() else None
    try:
        require_same_data(folder, recorded, config)
    except (ShardError, OSError):
        if not finished:
            raise
    if recorded is not None and not finished:
        _require_same_order(folder, config.data)
    changes = changes_on_resume(folder, config, partial(_is_moved, recorded))
    if recorded is not None and not finished:
        for name, place in _places(config).items():
            before, now = recorded.weights.get(name), weights_fingerprint(place)
            if name in WEIGHT_FIELDS and None not in (before, now) and before != now:
                raise ConfigError(
                    f"{name}: {place} holds other weights now than when {folder} was started with them; restore"
                    " them, or train in another folder"
                )
    return changes


def changed_starts(folder: Path, config: RunConfig) -> list[str]:
    """Sentences about weights that a finished run in a folder started from, and that are others now."""
    recorded = read_inputs(folder)
    places = {name: place for name, place in _places(config).items() if name in START_FIELDS}
    changed = []
    for name, place in places.items():
        before, now = None if recorded is None else recorded.weights.get(name), weights_fingerprint(place)
        if None not in (before, now) and before != now:
            changed.append(
                f"{folder} is finished, but was trained from another checkpoint than {name} {place} has now; to train"
                " it again, remove its folder"
            )
    return changed


def _require_same_order(folder: Path, data: DataConfig) -> None:
    """Raises ConfigError if a run's shards have moved to or from a URL, where `data.order` auto is another order."""
    before = read_config(folder).data
    if None in (before.shards, data.shards) or (data.order, data.sampling) != ("auto", "uniform"):
        return
    if ("://" in str(before.shards)) != ("://" in str(data.shards)):
        raise ConfigError(
            f"data.shards: {folder} was started with {before.shards}, and data.order auto reads {data.shards} in"
            " another order; continue with the former, or train in another folder"
        )


def _is_moved(recorded: RunInputs | None, name: str, old: Any, new: Any) -> bool:
    """Whether the two values of a field are paths of the same data or weights."""
    if name not in (DATA_FIELD, *WEIGHT_FIELDS) or not isinstance(old, str) or not isinstance(new, str):
        return False
    if "://" not in old + new and Path(old).resolve() == Path(new).resolve():
        return True
    if recorded is None:
        return False
    if name == DATA_FIELD:
        return True  # `require_same_data` has compared them
    return name in recorded.weights and recorded.weights[name] == weights_fingerprint(new)


def _places(config: RunConfig) -> dict[str, str]:
    """The paths and names of inputs by field."""
    values = flatten(asdict(config))
    return {name: values[name] for name in (DATA_FIELD, *WEIGHT_FIELDS) if isinstance(values.get(name), str)}
