"""Open the data that a config names: a shard folder made by `pfcluster build`, or the built-in synthetic faces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from pfcluster.config import DataConfig, RunConfig
from pfcluster.data.identity_task import identity_dataset
from pfcluster.data.in_memory import load_in_host_memory, load_on_device
from pfcluster.data.labels import CANONICAL, in_canonical_order, neutral_index
from pfcluster.data.manifest import ShardError, load_manifest
from pfcluster.data.sampler import Balanced, BlockShuffle, FullShuffle, SampleOrder
from pfcluster.data.shards import ShardSplit
from pfcluster.data.splits import ShardedSplit, Subset, SyntheticSplit, identities_of, sharded
from pfcluster.data.storage import default_cache
from pfcluster.data.synthetic.dataset import SyntheticFaces
from pfcluster.data.types import DataError, Dataset
from pfcluster.distributed.process_group import generator


def open_dataset(config: DataConfig, seed: int) -> Dataset:
    """Open the dataset that a config names; `seed` selects the subset if `data.limit` is set. Raises DataError."""
    dataset = _open_synthetic(config) if config.shards is None else _open_shards(config, config.shards)
    if config.target == "identity":
        dataset = identity_dataset(dataset, identities_of(dataset.train))
    if config.limit is None or config.limit >= len(dataset.train):
        return dataset
    indices = torch.randperm(len(dataset.train), generator=generator(seed, "limit"))[: config.limit]
    return replace(dataset, train=Subset(dataset.train, indices))


def require_labels(dataset: Dataset, config: RunConfig) -> None:
    """Raises DataError if the run needs labels and the dataset has none, or needs neutral photos and it has no such
    class.
    """
    if config.objective != "mae" and not dataset.classes:
        raise DataError(
            f"{dataset.name} was built with --labels ignored: it can be used for pre-training only, because"
            f" {config.objective} needs labels"
        )
    swap = config.pf_mag.weights.swap
    if config.objective == "pf_mag" and swap and neutral_index(dataset.classes) is None:
        raise DataError(
            f"pf_mag.weights.swap must be 0 with {dataset.name}, got {swap:g}: it compares poker faces with neutral"
            f" photos, and the classes {', '.join(dataset.classes)} have no neutral among them"
        )


def missing_test_split(dataset: Dataset, config: RunConfig) -> str | None:
    """A sentence if the run is to be evaluated on the test split, and the dataset has none. With `data.target` identity
    there never is one.
    """
    if dataset.test is not None or config.objective == "mae" or config.evaluate.final_split != "test":
        return None
    if config.data.target == "identity":
        return None
    return (
        f"{dataset.name} has no test split: poker faces are measured on the validation split, and the report has no"
        " accuracies. Build it with --test-share 0.15, or with --test-input, or set --evaluate.final-split validation"
        " if that is intended"
    )


def sample_order(config: DataConfig, dataset: Dataset, seed: int) -> SampleOrder:
    """The order of a run's training samples. Raises DataError if `data.sampling` needs labels that are missing."""
    size = len(dataset.train)
    if config.sampling == "balanced":
        if not dataset.classes:
            raise DataError(f"data.sampling is balanced, but {dataset.name} was built without labels")
        return SampleOrder(size, Balanced(dataset.train.labels(), seed))
    if config.order == "blocks" or (config.order == "auto" and dataset.remote):
        return SampleOrder(size, BlockShuffle(size, seed, config.block, config.shuffle_window))
    return SampleOrder(size, FullShuffle(size, seed))


def cache_train_split(dataset: Dataset, config: DataConfig, device: torch.device) -> Dataset:
    """The dataset with its training split decoded and cached as `data.decode_on` and `data.cache_mode` say. Raises
    DataError if it does not fit.
    """
    shards = sharded(dataset.train)
    if config.decode_on == "device" and shards is not None:
        shards.decoder = device
    if config.cache_mode == "stream" or (config.cache_mode == "host" and config.shards is None):
        return dataset  # open_dataset caches synthetic faces
    train = dataset.train
    if config.cache_mode == "device":
        return replace(dataset, train=load_on_device(train, device, config.workers))
    assert shards is not None
    cached = load_in_host_memory(
        shards, decoded_folder(config), shards.shards.fingerprint(), config.workers, shards.damaged
    )
    return replace(dataset, train=Subset(cached, train.indices) if isinstance(train, Subset) else cached)


def decoded_folder(config: DataConfig) -> Path:
    """Folder of decoded splits (`data.cache_mode` host)."""
    return (Path(config.cache) if config.cache is not None else default_cache()) / "decoded"


def _open_synthetic(config: DataConfig) -> Dataset:
    options = config.synthetic
    if config.expected_name not in (None, "synthetic"):
        raise DataError(
            f"data.expected_name is {config.expected_name!r}, but without data.shards the data are the synthetic faces;"
            " set data.shards"
        )
    if not 32 <= config.size <= 224:
        raise DataError(f"data.size is {config.size}; synthetic faces can have 32 to 224 pixels")
    classes = options.classes or CANONICAL
    unknown = [name for name in classes if name not in CANONICAL]
    if unknown or len(set(classes)) < max(2, len(classes)):
        raise DataError(
            f"data.synthetic.classes must be two or more of {', '.join(CANONICAL)}, each once, got {' '.join(classes)}"
        )
    folder = decoded_folder(config) if config.cache_mode == "host" else None
    first_identity = first_index = 0
    splits = []
    for count, is_train in ((options.train, True), (options.validation, False), (options.test, False)):
        identities = max(1, round(options.identities * count / options.train))
        faces = SyntheticFaces(
            count,
            size=config.size,
            identities=identities,
            first_identity=first_identity,
            classes=in_canonical_order(classes),
            imbalance=options.imbalance if is_train else 1.0,
            label_noise=options.label_noise if is_train else 0.0,
            annotators=options.annotators,
            nuisance=options.nuisance,
            min_intensity=options.min_intensity,
            seed=options.seed,
            first_index=first_index,
        )
        splits.append(SyntheticSplit(faces, first_index=first_index, folder=folder))
        first_identity, first_index = first_identity + identities, first_index + count
    train, validation, test = splits
    return Dataset("synthetic", train.classes, train, validation, test)


def _open_shards(config: DataConfig, place: str) -> Dataset:
    try:
        manifest = load_manifest(place)
        if config.expected_name not in (None, manifest.name):
            raise DataError(
                f"{place} holds the dataset {manifest.name!r}, but data.expected_name is {config.expected_name!r}"
            )
        if "train" not in manifest.splits:
            raise DataError(f"{place} has no training split; build it with `pfcluster build --input ...`")
        if "validation" not in manifest.splits:
            raise DataError(
                f"{place} has no validation split, which selects checkpoints: build the shards with --val-share above"
                f" 0, or from usable photos if {manifest.left_out_file} names all photos of the dataset's own"
                " validation split"
            )
        for name, info in manifest.splits.items():
            if not info.samples:
                raise DataError(
                    f"the {name} split of {place} is empty: {manifest.left_out_file} there says why its photos were"
                    " left out; build the shards again from usable photos"
                )
        splits = {
            name: ShardedSplit(ShardSplit(place, name, cache=config.cache), config.max_bad_share)
            for name in ("train", "validation", "test")
            if name in manifest.splits
        }
    except ShardError as error:
        raise DataError(str(error)) from error
    return Dataset(
        manifest.name,
        tuple(manifest.classes),
        splits["train"],
        splits["validation"],
        splits.get("test"),
        votes=manifest.votes,
        remote=not splits["train"].shards.is_local,
    )
