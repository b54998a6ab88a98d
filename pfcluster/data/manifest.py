"""The manifest of a shard folder, read before its other files and validated field by field.

<split>-00000.tar           plain WebDataset: <key>.jpg and <key>.json per sample
<split>-00000.index.json    key, offset and size of each JPEG, label, identity
<split>-00000.crc32         CRC-32 of each JPEG, four bytes each
manifest.json               classes, counts, checksums, options, numbers of photos left out; written last
left_out.csv                every photo that is in no shard, with the reason
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pfcluster.data.storage import LocalStore, Store, StoreError, open_store
from pfcluster.system.atomic_files import sha256
from pfcluster.system.os_errors import describe, retry_transient

FORMAT = 2
MANIFEST = "manifest.json"
BUILD_FOLDER = ".build"
"""Subfolder of a shard folder while a build is running."""
UNKNOWN_IDENTITY = "photo-"
"""Prefix of the identity recorded for a photo of unknown identity; the rest is the photo's hash."""
BUILD_LOCK = "lock"
"""In the build folder."""
CRC32_BYTES = 4
SHOWN = 8
"""Damaged files that an error names."""
MAX_SIZE = 1024
"""Largest side of an image in pixels."""
REBUILD = "build it again into a new folder with `pfcluster build`"


class ShardError(ValueError):
    """A shard folder cannot be used. The message names the file, the problem and the remedy."""


@dataclass(frozen=True)
class ShardFile:
    """One tar and its index."""

    file: str
    samples: int
    sha256: str
    bytes: int
    index_sha256: str
    crc32_sha256: str
    """Of the checksums of its samples."""

    @property
    def index_file(self) -> str:
        return index_name(self.file)

    @property
    def crc32_file(self) -> str:
        return crc32_name(self.file)


@dataclass(frozen=True)
class SplitInfo:
    """One split of a shard folder."""

    samples: int
    per_class: dict[str, int]
    """Class -> number of samples, in the order of the manifest's classes."""
    identities: int
    """Number of identities, each in this split only; a photo of unknown identity counts as one."""
    shards: tuple[ShardFile, ...]


@dataclass(frozen=True)
class Manifest:
    """Contents of a shard folder. Without times and absolute paths, so that the same build gives the same bytes."""

    format: int
    name: str
    classes: tuple[str, ...]
    """Canonical names; labels are indices into it. Empty if the build ignored labels."""
    votes: str | None
    """How annotators' votes were turned into labels (FERPlus). Accuracies of different modes are not comparable."""
    size: int
    """Side of the square images, in pixels."""
    splits: dict[str, SplitInfo]
    photos: int
    """Number of input photos."""
    left_out: dict[str, int]
    """Reason -> number of photos."""
    left_out_file: str
    options: dict[str, Any]
    source: dict[str, Any]
    versions: dict[str, str]


def index_name(tar: str) -> str:
    """`train-00000.tar` -> `train-00000.index.json`."""
    return tar.removesuffix(".tar") + ".index.json"


def crc32_name(tar: str) -> str:
    """`train-00000.tar` -> `train-00000.crc32`."""
    return tar.removesuffix(".tar") + ".crc32"


def load_manifest(folder: Path | str | Store) -> Manifest:
    """Read and validate `manifest.json` of a shard folder or its URL. Raises ShardError, OSError."""
    store = as_store(folder)
    try:
        values = json.loads(store.read_metadata(MANIFEST))
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = "pass a folder made by `pfcluster build`"
        if isinstance(store, LocalStore) and (store.folder / BUILD_FOLDER).is_dir():
            hint = "its build is unfinished; run the same `pfcluster build` command again"
        raise ShardError(f"{store.name} holds no {MANIFEST}: {hint}") from error
    except StoreError as error:
        raise ShardError(str(error)) from error
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ShardError(f"{store.name} is too long for a folder's name; pass a folder of `pfcluster build`") from error
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{store.name}/{MANIFEST} cannot be read ({error}); {REBUILD}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        version = values.get("format") if isinstance(values, dict) else None
        version = version if isinstance(version, int) else None
        raise ShardError(
            f"{store.name}/{MANIFEST} has format {version!r}, this version reads format {FORMAT}; {REBUILD}"
        )
    try:
        return _manifest(values)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ShardError(f"{store.name}/{MANIFEST} has a missing or invalid field ({error!r}); {REBUILD}") from error


def as_store(folder: Path | str | Store, cache: str | Path | None = None) -> Store:
    """Open the store of a folder or URL; a store is returned unchanged. Raises ShardError."""
    try:
        return open_store(folder, cache) if isinstance(folder, str | Path) else folder
    except StoreError as error:
        raise ShardError(str(error)) from error


def _manifest(values: Mapping[str, Any]) -> Manifest:
    """Raises ValueError, TypeError, KeyError or AttributeError if a field is invalid."""
    classes = values["classes"]
    if not isinstance(classes, list) or not are_strings(*classes) or len(set(classes)) != len(classes):
        raise ValueError("classes must be a list of distinct names")
    splits = {name: _split_info(split, classes) for name, split in values["splits"].items()}
    files = [shard.file for split in splits.values() for shard in split.shards]
    if len(set(files)) != len(files):
        raise ValueError("a shard is listed twice")
    manifest = Manifest(**{**values, "classes": tuple(classes), "splits": splits})
    if not is_count(manifest.size) or not 1 <= manifest.size <= MAX_SIZE:
        raise ValueError(f"size must lie in 1..{MAX_SIZE} pixels")
    if not are_strings(manifest.name, manifest.left_out_file, manifest.votes or ""):
        raise ValueError("name, votes and left_out_file must be strings")
    if not is_count(manifest.photos) or not _are_counts(manifest.left_out):
        raise ValueError("photos and left_out must be counts")
    if not all(isinstance(value, dict) for value in (manifest.options, manifest.source, manifest.versions)):
        raise ValueError("options, source and versions must be objects")
    if not is_count(manifest.source.get("known_identities")):
        raise ValueError("source.known_identities must be a count")
    if manifest.photos != sum(split.samples for split in splits.values()) + sum(manifest.left_out.values()):
        raise ValueError("photos must be the number of samples plus that of photos left out")
    return manifest


def _split_info(values: Mapping[str, Any], classes: Sequence[str]) -> SplitInfo:
    split = SplitInfo(**{**values, "shards": tuple(_shard_file(shard) for shard in values["shards"])})
    if sum(shard.samples for shard in split.shards) != split.samples:
        raise ValueError("the samples of the shards do not add up to those of the split")
    if not is_count(split.samples) or not is_count(split.identities):
        raise ValueError("samples and identities of a split must be counts")
    if not _are_counts(split.per_class) or set(split.per_class) != set(classes):
        raise ValueError("per_class must have the number of samples of each class")
    return split


def _shard_file(values: Mapping[str, Any]) -> ShardFile:
    shard = ShardFile(**values)
    if not re.fullmatch(r"[\w-][\w.-]*\.tar", shard.file):
        raise ValueError("the file of a shard lies outside its folder, or is not a tar")
    if not is_count(shard.samples) or not is_count(shard.bytes) or shard.bytes == 0:
        raise ValueError("samples and bytes of a shard must be counts, and bytes must not be 0")
    checksums = (shard.sha256, shard.index_sha256, shard.crc32_sha256)
    if not all(re.fullmatch("[0-9a-f]{64}", checksum) for checksum in checksums):
        raise ValueError("a checksum is not a SHA-256")
    return shard


def is_count(value: object) -> bool:
    """Whether a JSON value is a non-negative integer below 2^63; false for true and 1.0."""
    return type(value) is int and 0 <= value < 2**63


def _are_counts(values: object) -> bool:
    return isinstance(values, dict) and all(map(is_count, values.values()))


def are_strings(*values: object) -> bool:
    """Whether all JSON values are strings."""
    return all(isinstance(value, str) for value in values)


def require_files(folder: Path, manifest: Manifest) -> None:
    """Raises ShardError that names the files of the manifest's shards that are missing or damaged: tars of another size
    (they are not read), and indexes and checksums of samples with another SHA-256.
    """
    wrong = []
    for shard in (shard for split in manifest.splits.values() for shard in split.shards):
        wrong += _problem(folder, shard.file, shard.bytes, None)
        wrong += _problem(folder, shard.index_file, None, shard.index_sha256)
        wrong += _problem(folder, shard.crc32_file, CRC32_BYTES * shard.samples, shard.crc32_sha256)
    if wrong:
        more = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ShardError(
            f"{folder} is damaged: {', '.join(wrong[:SHOWN])}{more}; copy these files there again, or delete the folder"
            " and build it again"
        )


def _problem(folder: Path, name: str, size: int | None, checksum: str | None) -> list[str]:
    """What is wrong with a file, if anything, in a list. `size` in bytes; None: not compared."""
    try:
        actual = retry_transient((folder / name).stat).st_size
        if size is not None and actual != size:
            return [f"{name} has {actual} bytes instead of {size}"]
        if checksum is not None and retry_transient(partial(sha256, folder / name)) != checksum:
            return [f"{name} ({actual} bytes) has changed since it was built"]
    except (FileNotFoundError, NotADirectoryError):
        return [f"{name} is missing"]
    except OSError as error:
        return [describe(error)]
    return []


def check_shard(folder: Path, shard: ShardFile) -> None:
    """Compare a shard's files with the manifest's checksums. Raises ShardError if they differ, OSError."""
    files = ((shard.file, shard.sha256), (shard.index_file, shard.index_sha256), (shard.crc32_file, shard.crc32_sha256))
    for name, expected in files:
        path = folder / name
        try:
            actual = retry_transient(partial(sha256, path))
        except FileNotFoundError as error:
            raise ShardError(f"{path} is missing: copy it there again, or {REBUILD}") from error
        require_checksum(str(path), actual, expected)


def require_checksum(where: str, actual: str, expected: str) -> None:
    """Raises ShardError if two checksums differ."""
    if actual != expected:
        raise ShardError(
            f"{where} has changed since it was built: its SHA-256 is {actual[:12]}..., the manifest says"
            f" {expected[:12]}...; {REBUILD}"
        )
