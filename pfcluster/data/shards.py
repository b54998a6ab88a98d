"""The format of a shard folder, and its reader. Nothing here needs webdataset, and nothing is ever unpickled.

    <split>-00000.tar           plain WebDataset: <key>.jpg and <key>.json a sample
    <split>-00000.index.json    key, offset and size of each JPEG, label, identity
    manifest.json               classes, counts, checksums, options, what was left out: written last
    left_out.csv                every photo that is in no shard, with its reason

Legend: `n` samples of a split, `b` samples asked for, `h` `w` pixels (both the manifest's `size`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfcluster.data.jpeg import decode_jpeg_into
from pfcluster.data.store import LocalStore, Store, StoreError, open_store
from pfcluster.files import sha256

FORMAT = 2
MANIFEST = "manifest.json"
BUILD_FOLDER = ".build"
"""Within a shard folder while its build is under way."""
UNLABELLED = -1
"""Label of every sample of a folder that was built without labels."""
LARGEST_SIZE = 1024
"""Pixels; no build makes larger images."""
REBUILD = "delete the folder and build it again with shards/build.py"


class ShardError(ValueError):
    """A shard folder that cannot be used: says which file, what is wrong, and what to do."""


class BadSampleError(ShardError):
    """One sample that cannot be used; the others may be well."""


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
    store = _store(folder)
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


def _store(folder: Path | str | Store, cache: str | Path | None = None) -> Store:
    """A store is one already. Raises ShardError."""
    try:
        return open_store(folder, cache) if isinstance(folder, str | Path) else folder
    except StoreError as error:
        raise ShardError(str(error)) from error


def _manifest(values: Mapping[str, Any]) -> Manifest:
    """Raises ValueError, TypeError, KeyError, AttributeError where a field is not what it should be."""
    classes = values["classes"]
    if not isinstance(classes, list) or not _are_texts(*classes) or len(set(classes)) != len(classes):
        raise ValueError("the classes are no list of different names")
    splits = {name: _split_info(split, classes) for name, split in values["splits"].items()}
    files = [shard.file for split in splits.values() for shard in split.shards]
    if len(set(files)) != len(files):
        raise ValueError("a shard is named twice")
    manifest = Manifest(**{**values, "classes": tuple(classes), "splits": splits})
    if not _is_count(manifest.size) or not 1 <= manifest.size <= LARGEST_SIZE:
        raise ValueError(f"the images' size must lie in 1..{LARGEST_SIZE} pixels")
    if not _are_texts(manifest.name, manifest.left_out_file, manifest.votes or ""):
        raise ValueError("the name, the votes or left_out_file is no text")
    if not _is_count(manifest.photos) or not _are_counts(manifest.left_out):
        raise ValueError("the photos or left_out are no counts")
    if not all(isinstance(held, dict) for held in (manifest.options, manifest.source, manifest.versions)):
        raise ValueError("the options, the source or the versions are no fields of their own")
    if not _is_count(manifest.source.get("known_identities")):
        raise ValueError("the source's known_identities are no count")
    if manifest.photos != sum(split.samples for split in splits.values()) + sum(manifest.left_out.values()):
        raise ValueError("the photos are not as many as the samples and those left out")
    return manifest


def _split_info(values: Mapping[str, Any], classes: Sequence[str]) -> SplitInfo:
    split = SplitInfo(**{**values, "shards": tuple(_shard_file(shard) for shard in values["shards"])})
    if sum(shard.samples for shard in split.shards) != split.samples:
        raise ValueError("the shards' samples do not add up")
    if not _is_count(split.samples) or not _is_count(split.identities):
        raise ValueError("a split's samples or identities are no count")
    if not _are_counts(split.per_class) or set(split.per_class) != set(classes):
        raise ValueError("per_class does not count the samples of each class")
    return split


def _shard_file(values: Mapping[str, Any]) -> ShardFile:
    shard = ShardFile(**values)
    if not re.fullmatch(r"[\w-][\w.-]*\.tar", shard.file):
        raise ValueError("a shard's file lies outside its folder, or is no tar")
    if not _is_count(shard.samples) or not _is_count(shard.bytes) or shard.bytes == 0:
        raise ValueError("a shard's samples or bytes are no count")
    if not all(re.fullmatch("[0-9a-f]{64}", checksum) for checksum in (shard.sha256, shard.index_sha256)):
        raise ValueError("a checksum is no SHA-256")
    return shard


def _is_count(value: object) -> bool:
    """Whether a value of JSON is a whole number that fits into 63 bits; true and 1.0 are none."""
    return type(value) is int and 0 <= value < 2**63


def _are_counts(values: object) -> bool:
    return isinstance(values, dict) and all(map(_is_count, values.values()))


def _are_texts(*values: object) -> bool:
    return all(isinstance(value, str) for value in values)


def check_shard(folder: Path, shard: ShardFile) -> None:
    """Compare a tar and its index with the manifest's checksums. Raises ShardError."""
    for name, wanted in ((shard.file, shard.sha256), (shard.index_file, shard.index_sha256)):
        path = folder / name
        try:
            found = sha256(path)
        except OSError as error:
            raise ShardError(f"{path} cannot be read ({error.strerror or error}); {REBUILD}") from error
        _require_same(str(path), found, wanted)


def _require_same(where: str, found: str, wanted: str) -> None:
    """Raises ShardError where two checksums differ."""
    if found != wanted:
        raise ShardError(
            f"{where} has changed since it was built: its SHA-256 is {found[:12]}..., the manifest says"
            f" {wanted[:12]}...; {REBUILD}"
        )


class ShardSplit:
    """One split of a shard folder: samples by number, tars memory-mapped. Threads may share it; pickling reopens it."""

    def __init__(
        self, folder: Path | str, split: str, *, verify: bool = False, cache: str | Path | None = None
    ) -> None:
        """Open a split of a folder or URL. Indexes are checked by their checksums, local tars by their sizes, with
        `verify` by their checksums too; remote ones are fetched into `cache` when a sample of theirs is asked for, and
        checked as they arrive. Raises ShardError.
        """
        self.folder = folder
        self.split = split
        self._cache = cache
        self._store = _store(folder, cache)
        manifest = load_manifest(self._store)
        if split not in manifest.splits:
            raise ShardError(f"{self._store.name} has no split {split!r}, only {', '.join(manifest.splits)}")
        self.classes = manifest.classes
        self.size = manifest.size
        self.name = manifest.name
        self.votes = manifest.votes
        self._files = manifest.splits[split].shards
        if verify and isinstance(self._store, LocalStore):
            for shard in self._files:
                check_shard(self._store.folder, shard)
        self._tars: list[mmap.mmap | None] = [None] * len(self._files)
        self._mapping = threading.Lock()
        if self._store.is_local:
            for number in range(len(self._files)):
                self._tar(number)
        rows = [(number, row) for number, shard in enumerate(self._files) for row in _load_index(self._store, shard)]
        self._read_rows(rows)

    @property
    def is_local(self) -> bool:
        """Whether all tars lie on this machine."""
        return self._store.is_local

    def fingerprint(self) -> str:
        """Changes with any byte of the split's tars."""
        return hashlib.sha256("".join(shard.sha256 for shard in self._files).encode()).hexdigest()

    def _tar(self, number: int) -> mmap.mmap:
        """The mapped tar; a remote one is fetched first."""
        mapped = self._tars[number]
        if mapped is None:
            with self._mapping:
                mapped = self._tars[number] or _map_tar(self._store, self._files[number])
                self._tars[number] = mapped
        return mapped

    def _read_rows(self, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        numbers = {name: number for number, name in enumerate(self.classes)}
        try:
            self._keys = [row["key"] for _, row in rows]
            self._identities = [row["identity"] for _, row in rows]
            labels = [numbers[row["label"]] if numbers else UNLABELLED for _, row in rows]
            self._labels = torch.tensor(labels, dtype=torch.long)
            spans = [(shard, row["offset"], row["size"]) for shard, row in rows]
            if not _are_texts(*self._keys, *self._identities):
                raise TypeError("a key or an identity is no text")
            if not all(_is_count(place) for span in spans for place in span):
                raise TypeError("an offset or a size is no count")
        except (KeyError, TypeError) as error:
            raise ShardError(f"an index of {self.folder}/{self.split} is garbled ({error!r}); {REBUILD}") from error
        for shard, offset, size in spans:
            if offset + size > self._files[shard].bytes:
                raise ShardError(f"{self._files[shard].index_file} points outside its tar; {REBUILD}")
        self._spans = np.array(spans, dtype=np.int64).reshape(-1, 3)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(ShardSplit, self.folder, self.split, cache=self._cache), ()

    def __len__(self) -> int:
        return len(self._keys)

    def labels(self) -> Tensor:
        """Every sample's label, as its place in `classes`, or UNLABELLED: long (n,)."""
        return self._labels

    def identities(self) -> list[str]:
        """Every sample's person, or source group where the person is unknown."""
        return list(self._identities)

    def key(self, index: int) -> str:
        """The sample's name in its tar."""
        return self._keys[index]

    def jpeg(self, index: int) -> bytes:
        """The sample's JPEG file."""
        return bytes(self._view(index))

    def image(self, index: int) -> np.ndarray:
        """The sample's pixels: uint8 h w 3, RGB; grey becomes three equal channels. Raises BadSampleError."""
        pixels = np.empty((self.size, self.size, 3), dtype=np.uint8)
        self._decode(index, pixels)
        return pixels

    def images(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Pixels of several samples: uint8 b 3 h w, a view of b h w 3. Raises BadSampleError."""
        numbers = [int(index) for index in indices]
        batch = np.empty((len(numbers), self.size, self.size, 3), dtype=np.uint8)
        for row, index in enumerate(numbers):
            self._decode(index, batch[row])
        return torch.from_numpy(batch).permute(0, 3, 1, 2)

    def _decode(self, index: int, pixels: np.ndarray) -> None:
        """Fill `pixels`, uint8 size size 3."""
        try:
            decode_jpeg_into(self._view(index), pixels)
        except ValueError as error:
            raise BadSampleError(f"{self._place(index)} does not decode ({error}); {REBUILD}") from error

    def _view(self, index: int) -> memoryview:
        shard, offset, size = self._spans[index].tolist()
        return memoryview(self._tar(shard))[offset : offset + size]

    def _place(self, index: int) -> str:
        return f"sample {self._keys[index]} in {self._store.name}/{self._files[self._spans[index, 0]].file}"


def _map_tar(store: Store, shard: ShardFile) -> mmap.mmap:
    """Map a tar whose size is the manifest's. Raises ShardError."""
    where = f"{store.name}/{shard.file}"
    try:
        with open(store.path(shard.file, shard.sha256), "rb") as file:
            found = file.seek(0, 2)
            if found != shard.bytes:
                state = "cut off" if found < shard.bytes else "too long"
                raise ShardError(f"{where} is {state}: {found} bytes, the manifest says {shard.bytes}; {REBUILD}")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, StoreError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ShardError(f"{where} cannot be read ({reason}); {REBUILD}") from error


def _load_index(store: Store, shard: ShardFile) -> list[dict[str, Any]]:
    where = f"{store.name}/{shard.index_file}"
    try:
        listing = store.listing(shard.index_file, shard.index_sha256)
    except (OSError, StoreError) as error:
        raise ShardError(f"{where} cannot be read ({error}); {REBUILD}") from error
    _require_same(where, hashlib.sha256(listing).hexdigest(), shard.index_sha256)
    try:
        rows = json.loads(listing)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{where} cannot be read ({error}); {REBUILD}") from error
    if not isinstance(rows, list) or len(rows) != shard.samples:
        raise ShardError(f"{where} does not list the {shard.samples} samples of the manifest; {REBUILD}")
    return rows
