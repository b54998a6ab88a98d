"""The manifest of a shard folder: what is read before anything else of it, and checked field by field.

<split>-00000.tar           plain WebDataset: <key>.jpg and <key>.json a sample
<split>-00000.index.json    key, offset and size of each JPEG, label, identity
manifest.json               classes, counts, checksums, options, what was left out: written last
left_out.csv                every photo that is in no shard, with its reason
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfcluster.data.storage import LocalStore, Store, StoreError, open_store
from pfcluster.runs.atomic_files import sha256

FORMAT = 2
MANIFEST = "manifest.json"
BUILD_FOLDER = ".build"
"""Within a shard folder while its build is under way."""
LARGEST_SIZE = 1024
"""Pixels; no build makes larger images."""
REBUILD = "delete the folder and build it again with shards/build.py"


class ShardError(ValueError):
    """A shard folder that cannot be used: says which file, what is wrong, and what to do."""


@dataclass(frozen=True)
class ShardFile:
    """One tar and its index."""

    file: str
    samples: int
    sha256: str
    bytes: int
    index_sha256: str

    @property
    def index_file(self) -> str:
        return index_name(self.file)


@dataclass(frozen=True)
class SplitInfo:
    """One split of a shard folder."""

    samples: int
    per_class: dict[str, int]
    """Class -> samples, in the order of the manifest's classes."""
    identities: int
    """People, or photos of unknown people, that share no other split's."""
    shards: tuple[ShardFile, ...]


@dataclass(frozen=True)
class Manifest:
    """What a shard folder holds. No times and no paths of the machine: the same build gives the same bytes."""

    format: int
    name: str
    classes: tuple[str, ...]
    """Canonical names; a label's number is its place here. Empty where the build ignored labels."""
    votes: str | None
    """How annotators' votes became labels (FERPlus): accuracies under different modes do not compare."""
    size: int
    """Side of the square images in pixels."""
    splits: dict[str, SplitInfo]
    photos: int
    """Photos that went in."""
    left_out: dict[str, int]
    """Reason -> photos."""
    left_out_file: str
    options: dict[str, Any]
    source: dict[str, Any]
    versions: dict[str, str]


def index_name(tar: str) -> str:
    """`train-00000.tar` -> `train-00000.index.json`."""
    return tar.removesuffix(".tar") + ".index.json"


def load_manifest(folder: Path | str | Store) -> Manifest:
    """Read `manifest.json` of a shard folder or its URL. Raises ShardError."""
    store = as_store(folder)
    try:
        values = json.loads(store.listing(MANIFEST))
    except FileNotFoundError as error:
        hint = "give a folder made by shards/build.py"
        if isinstance(store, LocalStore) and (store.folder / BUILD_FOLDER).is_dir():
            hint = "its build has not finished; run the same shards/build.py command again"
        raise ShardError(f"{store.name} holds no {MANIFEST}: {hint}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ShardError(f"{store.name}/{MANIFEST} cannot be read ({error}); {REBUILD}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else None
        found = found if isinstance(found, int) else None
        raise ShardError(f"{store.name}/{MANIFEST} has format {found!r}, this version reads format {FORMAT}; {REBUILD}")
    try:
        return _manifest(values)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ShardError(f"{store.name}/{MANIFEST} lacks or garbles a field ({error!r}); {REBUILD}") from error


def as_store(folder: Path | str | Store, cache: str | Path | None = None) -> Store:
    """A store is one already. Raises ShardError."""
    try:
        return open_store(folder, cache) if isinstance(folder, str | Path) else folder
    except StoreError as error:
        raise ShardError(str(error)) from error


def _manifest(values: Mapping[str, Any]) -> Manifest:
    """Raises ValueError, TypeError, KeyError, AttributeError where a field is not what it should be."""
    classes = values["classes"]
    if not isinstance(classes, list) or not are_texts(*classes) or len(set(classes)) != len(classes):
        raise ValueError("the classes are no list of different names")
    splits = {name: _split_info(split, classes) for name, split in values["splits"].items()}
    files = [shard.file for split in splits.values() for shard in split.shards]
    if len(set(files)) != len(files):
        raise ValueError("a shard is named twice")
    manifest = Manifest(**{**values, "classes": tuple(classes), "splits": splits})
    if not is_count(manifest.size) or not 1 <= manifest.size <= LARGEST_SIZE:
        raise ValueError(f"the images' size must lie in 1..{LARGEST_SIZE} pixels")
    if not are_texts(manifest.name, manifest.left_out_file, manifest.votes or ""):
        raise ValueError("the name, the votes or left_out_file is no text")
    if not is_count(manifest.photos) or not _are_counts(manifest.left_out):
        raise ValueError("the photos or left_out are no counts")
    if not all(isinstance(held, dict) for held in (manifest.options, manifest.source, manifest.versions)):
        raise ValueError("the options, the source or the versions are no fields of their own")
    if not is_count(manifest.source.get("known_identities")):
        raise ValueError("the source's known_identities are no count")
    if manifest.photos != sum(split.samples for split in splits.values()) + sum(manifest.left_out.values()):
        raise ValueError("the photos are not as many as the samples and those left out")
    return manifest


def _split_info(values: Mapping[str, Any], classes: Sequence[str]) -> SplitInfo:
    split = SplitInfo(**{**values, "shards": tuple(_shard_file(shard) for shard in values["shards"])})
    if sum(shard.samples for shard in split.shards) != split.samples:
        raise ValueError("the shards' samples do not add up")
    if not is_count(split.samples) or not is_count(split.identities):
        raise ValueError("a split's samples or identities are no count")
    if not _are_counts(split.per_class) or set(split.per_class) != set(classes):
        raise ValueError("per_class does not count the samples of each class")
    return split


def _shard_file(values: Mapping[str, Any]) -> ShardFile:
    shard = ShardFile(**values)
    if not re.fullmatch(r"[\w-][\w.-]*\.tar", shard.file):
        raise ValueError("a shard's file lies outside its folder, or is no tar")
    if not is_count(shard.samples) or not is_count(shard.bytes) or shard.bytes == 0:
        raise ValueError("a shard's samples or bytes are no count")
    if not all(re.fullmatch("[0-9a-f]{64}", checksum) for checksum in (shard.sha256, shard.index_sha256)):
        raise ValueError("a checksum is no SHA-256")
    return shard


def is_count(value: object) -> bool:
    """Whether a value of JSON is a whole number that fits into 63 bits; true and 1.0 are none."""
    return type(value) is int and 0 <= value < 2**63


def _are_counts(values: object) -> bool:
    return isinstance(values, dict) and all(map(is_count, values.values()))


def are_texts(*values: object) -> bool:
    return all(isinstance(value, str) for value in values)


def check_shard(folder: Path, shard: ShardFile) -> None:
    """Compare a tar and its index with the manifest's checksums. Raises ShardError."""
    for name, wanted in ((shard.file, shard.sha256), (shard.index_file, shard.index_sha256)):
        path = folder / name
        try:
            found = sha256(path)
        except OSError as error:
            raise ShardError(f"{path} cannot be read ({error.strerror or error}); {REBUILD}") from error
        require_same(str(path), found, wanted)


def require_same(where: str, found: str, wanted: str) -> None:
    """Raises ShardError where two checksums differ."""
    if found != wanted:
        raise ShardError(
            f"{where} has changed since it was built: its SHA-256 is {found[:12]}..., the manifest says"
            f" {wanted[:12]}...; {REBUILD}"
        )
