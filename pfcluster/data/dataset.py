"""Where a run's faces come from: shards made by shards/build.py, or the embedded synthetic faces.

Legend: b images, h w pixels.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from pfcluster.config import DataConfig
from pfcluster.data.identity_task import identity_dataset
from pfcluster.data.in_memory import load_in_host_memory, load_on_device
from pfcluster.data.labels import CANONICAL, in_canonical_order
from pfcluster.data.manifest import ShardError, load_manifest
from pfcluster.data.sampler import Balanced, BlockShuffle, FullShuffle, SampleOrder
from pfcluster.data.shards import BadSampleError, ShardSplit
from pfcluster.data.storage import default_cache
from pfcluster.data.synthetic.dataset import SyntheticFaces
from pfcluster.data.types import DataError, Dataset, RawBatch, Split
from pfcluster.distributed.process_group import generator

CACHE_BYTES = 2**31
RENDER_CHUNK = 512


class SyntheticSplit:
    """Synthetic faces, rendered once and kept where they fit into memory, else rendered as they are asked for. With a
    folder they are kept in a file there, which other processes and later runs find again.
    """

    def __init__(self, faces: SyntheticFaces, first_index: int = 0, folder: Path | None = None) -> None:
        self.faces = faces
        self.folder = folder
        self.first_index = first_index
        self.classes = tuple(faces.classes)
        self._cached: Tensor | None = None
        self._rendering = threading.Lock()
        self._labels = faces.labels()

    def __len__(self) -> int:
        return len(self.faces)

    def labels(self) -> Tensor:
        return self._labels

    def batch(self, indices: Tensor) -> RawBatch:
        return RawBatch(self._images(indices), self._labels[indices])

    def keys(self, indices: Tensor) -> list[str]:
        return [f"synthetic-{self.first_index + i}" for i in indices.tolist()]

    def poker_faces(self, indices: Tensor) -> Tensor:
        """The true poker faces: uint8 b 3 h w."""
        return self.faces.poker_faces(indices)

    def _images(self, indices: Tensor) -> Tensor:
        if self.folder is None and len(self) * 3 * self.faces.size**2 > CACHE_BYTES:
            return self.faces.images(indices)
        with self._rendering:  # readers are threads; one of them renders
            if self._cached is None and self.folder is not None:
                bare = SyntheticSplit(self.faces, self.first_index)
                self._cached = load_in_host_memory(bare, self.folder, self.faces.fingerprint(), 1).images
            if self._cached is None:
                chunks = torch.arange(len(self)).split(RENDER_CHUNK)
                self._cached = torch.cat([self.faces.images(chunk) for chunk in chunks])
        return self._cached[indices]


@dataclass
class ShardedSplit:
    """A split of a shard folder. An unreadable sample is named, counted and replaced by the next one of the split."""

    shards: ShardSplit
    max_bad_share: float
    bad: set[str] = field(default_factory=set)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.shards.classes)

    def __len__(self) -> int:
        return len(self.shards)

    def labels(self) -> Tensor:
        return self.shards.labels()

    def batch(self, indices: Tensor) -> RawBatch:
        try:
            images = self.shards.images(indices)
        except BadSampleError:
            indices = torch.tensor([self._readable(index) for index in indices.tolist()])
            images = self.shards.images(indices)
        return RawBatch(images, self.labels()[indices])

    def keys(self, indices: Tensor) -> list[str]:
        return [self.shards.key(i) for i in indices.tolist()]

    def _readable(self, index: int) -> int:
        """This sample, or the next one that can be read. Raises DataError once too many could not."""
        for candidate in range(index, index + len(self)):
            try:
                self.shards.image(candidate % len(self))
            except BadSampleError as error:
                self.bad.add(self.shards.key(candidate % len(self)))
                if len(self.bad) > self.max_bad_share * len(self):
                    names = ", ".join(sorted(self.bad)[:5])
                    raise DataError(
                        f"{len(self.bad)} of {len(self)} samples cannot be read ({names}, ...), more than"
                        f" data.max_bad_share = {self.max_bad_share}: {error}; check with shards/inspect.py --verify"
                    ) from error
            else:
                return candidate % len(self)
        raise DataError("no sample of this split can be read; check with shards/inspect.py --verify")


@dataclass(frozen=True)
class Subset:
    """Some samples of a split, in a fixed order."""

    split: Split
    chosen: Tensor

    @property
    def classes(self) -> tuple[str, ...]:
        return self.split.classes

    def __len__(self) -> int:
        return len(self.chosen)

    def labels(self) -> Tensor:
        return self.split.labels()[self.chosen]

    def batch(self, indices: Tensor) -> RawBatch:
        return self.split.batch(self.chosen[indices])

    def keys(self, indices: Tensor) -> list[str]:
        return self.split.keys(self.chosen[indices])


def open_dataset(config: DataConfig, seed: int) -> Dataset:
    """Open the data a config names. `seed` draws the subset where `data.limit` asks for one. Raises DataError."""
    dataset = _synthetic(config) if config.shards is None else _sharded(config, config.shards)
    if config.target == "identity":
        dataset = identity_dataset(dataset, identities_of(dataset.train))
    if config.limit is None or config.limit >= len(dataset.train):
        return dataset
    chosen = torch.randperm(len(dataset.train), generator=generator(seed, "limit"))[: config.limit]
    return replace(dataset, train=Subset(dataset.train, chosen))


def identities_of(split: Split) -> list[str]:
    """Who is shown, by sample: names that are the same for the same person, "" where nobody knows."""
    if isinstance(split, SyntheticSplit):
        return [str(number) for number in split.faces.identities().tolist()]
    if isinstance(split, ShardedSplit):
        return split.shards.identities()
    if isinstance(split, Subset):
        names = identities_of(split.split)
        return [names[index] for index in split.chosen.tolist()]
    return [""] * len(split)


def require_labels(dataset: Dataset, objective: str) -> None:
    """Raises DataError where an objective needs labels and the dataset has none."""
    if objective != "mae" and not dataset.classes:
        raise DataError(
            f"{dataset.name} was built with --labels ignored: it has faces to pre-train on, no classes for {objective}"
        )


def sample_order(config: DataConfig, dataset: Dataset, seed: int) -> SampleOrder:
    """The order in which a run takes its training samples. Raises DataError."""
    size = len(dataset.train)
    if config.sampling == "balanced":
        if not dataset.classes:
            raise DataError(f"data.sampling is balanced, but {dataset.name} was built without labels")
        return SampleOrder(size, Balanced(dataset.train.labels(), seed))
    if config.order == "blocks" or (config.order == "auto" and dataset.remote):
        return SampleOrder(size, BlockShuffle(size, seed, config.block, config.shuffle_window))
    return SampleOrder(size, FullShuffle(size, seed))


def cache_train_split(dataset: Dataset, config: DataConfig, device: torch.device) -> Dataset:
    """The dataset with its training split where `data.cache_mode` wants it. Raises DataError."""
    if config.cache_mode == "stream" or (config.cache_mode == "host" and config.shards is None):
        return dataset  # synthetic faces are kept anyway
    train = dataset.train
    if config.cache_mode == "device":
        return replace(dataset, train=load_on_device(train, device, config.workers))
    inner = train.split if isinstance(train, Subset) else train
    assert isinstance(inner, ShardedSplit)
    resident = load_in_host_memory(inner, decoded_folder(config), inner.shards.fingerprint(), config.workers)
    return replace(dataset, train=Subset(resident, train.chosen) if isinstance(train, Subset) else resident)


def decoded_folder(config: DataConfig) -> Path:
    """Where splits are kept decoded."""
    return (Path(config.cache) if config.cache is not None else default_cache()) / "decoded"


def _synthetic(config: DataConfig) -> Dataset:
    options = config.synthetic
    if config.expected_name not in (None, "synthetic"):
        raise DataError(
            f"data.expected_name is {config.expected_name!r}, but no data.shards is given: these are synthetic faces"
        )
    if not 32 <= config.size <= 224:
        raise DataError(f"data.size is {config.size}; synthetic faces come in 32 to 224 pixels")
    folder = decoded_folder(config) if config.cache_mode == "host" else None
    people = 0
    faces = 0
    splits = []
    classes = options.classes or CANONICAL
    unknown = [name for name in classes if name not in CANONICAL]
    if unknown or len(set(classes)) < max(2, len(classes)):
        raise DataError(
            f"data.synthetic.classes must be two or more of {', '.join(CANONICAL)}, each once, got {' '.join(classes)}"
        )
    for count, clean in ((options.train, False), (options.validation, True), (options.test, True)):
        identities = max(1, round(options.identities * count / options.train))
        split = SyntheticFaces(
            count,
            size=config.size,
            identities=identities,
            first_identity=people,
            classes=in_canonical_order(classes),
            imbalance=1.0 if clean else options.imbalance,
            label_noise=0.0 if clean else options.label_noise,
            annotators=options.annotators,
            nuisance=options.nuisance,
            min_intensity=options.min_intensity,
            seed=options.seed,
            first_index=faces,
        )
        splits.append(SyntheticSplit(split, first_index=faces, folder=folder))
        people, faces = people + identities, faces + count
    train, validation, test = splits
    return Dataset("synthetic", train.classes, train, validation, test)


def _sharded(config: DataConfig, place: str) -> Dataset:
    try:
        manifest = load_manifest(place)
        if config.expected_name not in (None, manifest.name):
            raise DataError(
                f"{place} holds the dataset {manifest.name!r}, but data.expected_name is {config.expected_name!r}"
            )
        if "train" not in manifest.splits:
            raise DataError(f"{place} has no training split; build it with shards/build.py --input ...")
        if "validation" not in manifest.splits:
            raise DataError(
                f"{place} has no validation split, and checkpoints are chosen on one: build the shards with a"
                " --val-share above 0"
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
