"""`inputs.json` in a run folder: what the run was trained on and started from, by content instead of by path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pfcluster.config import ConfigError
from pfcluster.config.json_files import JsonFileError, read_record
from pfcluster.runs.folder import INPUTS_FILE, RESULT_FILE, read_config, try_read_object
from pfcluster.system.atomic_files import write_atomically

DATA_FIELD = "data.shards"
"""The config's field of the data; also its name in `inputs` of result.json."""


@dataclass(frozen=True)
class SplitRecord:
    """One split of a dataset."""

    samples: int
    sha256: str
    """Fingerprint of its images and labels."""


@dataclass(frozen=True)
class DataRecord:
    """A dataset's content. Paths do not count."""

    name: str
    classes: tuple[str, ...]
    """In the order of the labels; empty for unlabelled data."""
    votes: str | None
    plan: str | None
    """Checksum of the plan with which shards were built: builds with equal plans have the same photos in the same
    splits, also at another size or alignment."""
    splits: dict[str, SplitRecord]

    def describe(self) -> str:
        """Name, counts and classes, for messages."""
        counts = ", ".join(f"{name} {split.samples}" for name, split in self.splits.items())
        return f"{self.name} ({counts}; {', '.join(self.classes) or 'no labels'})"

    def same_samples(self, other: DataRecord, split: str) -> bool:
        """Whether a split has the same samples with the same labels in both, perhaps at another size."""
        if self.plan is not None and self.plan == other.plan:
            return True
        return split in self.splits and self.splits[split] == other.splits.get(split)


@dataclass(frozen=True)
class RunInputs:
    """Everything that a run reads from elsewhere."""

    data: DataRecord
    weights: dict[str, str]
    """Field of the config that names weights -> fingerprint of these weights."""
    notes: tuple[str, ...] = ()
    """How weights from elsewhere were read."""


def read_inputs(folder: Path) -> RunInputs | None:
    """What a run recorded of its inputs; None if it has not. Raises JsonFileError if the file is damaged."""
    try:
        return read_record(RunInputs, folder / INPUTS_FILE)
    except FileNotFoundError:
        return None


def write_inputs(folder: Path, inputs: RunInputs) -> None:
    """Record a run's inputs."""
    write_atomically(folder / INPUTS_FILE, json.dumps(asdict(inputs), indent=1) + "\n")


def recorded_classes(folder: Path) -> tuple[str, ...] | None:
    """The classes of a run's outputs, in their order: of its result, else of its data; None if neither tells."""
    dataset = (try_read_object(folder / RESULT_FILE) or {}).get("dataset")
    classes = dataset.get("classes") if isinstance(dataset, Mapping) else None
    if isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes):
        return tuple(classes)
    try:
        inputs, target = read_inputs(folder), read_config(folder).data.target
    except (JsonFileError, ConfigError):
        return None
    return None if inputs is None or target != "emotion" else inputs.data.classes
