"""The format of a shard folder, and its reader. Nothing here needs webdataset, and nothing is ever unpickled.

    <split>-00000.tar           plain WebDataset: <key>.jpg and <key>.json a sample
    <split>-00000.index.json    key, offset and size of each JPEG, label, identity
    manifest.json               classes, counts, checksums, options, what was left out: written last
    left_out.csv                every photo that is in no shard, with its reason

Legend: `n` samples of a split, `b` samples asked for, `h` `w` pixels (both the manifest's `size`).
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfcluster.data.jpeg import decode_jpeg
from pfcluster.files import sha256

FORMAT = 1
MANIFEST = "manifest.json"
BUILD_FOLDER = ".build"
"""Within a shard folder while its build is under way."""
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
    """Canonical names; a label's number is its place here."""
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


def load_manifest(folder: Path | str) -> Manifest:
    """Read `manifest.json` of a shard folder. Raises ShardError."""
    path = Path(folder) / MANIFEST
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        hint = "give a folder made by shards/build.py"
        if (path.parent / BUILD_FOLDER).is_dir():
            hint = "its build has not finished; run the same shards/build.py command again"
        raise ShardError(f"{path.parent} holds no {MANIFEST}: {hint}") from error
    except (OSError, ValueError) as error:
        raise ShardError(f"{path} cannot be read ({error}); {REBUILD}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else None
        raise ShardError(f"{path} has format {found!r}, this version reads format {FORMAT}; {REBUILD}")
    try:
        return _manifest(values)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ShardError(f"{path} lacks or garbles a field ({error!r}); {REBUILD}") from error


def _manifest(values: Mapping[str, Any]) -> Manifest:
    splits = {}
    for name, split in values["splits"].items():
        shards = tuple(ShardFile(**shard) for shard in split["shards"])
        if any(Path(shard.file).name != shard.file for shard in shards):
            raise ValueError("a shard's file lies outside its folder")
        splits[name] = SplitInfo(**{**split, "shards": shards})
    return Manifest(**{**values, "classes": tuple(values["classes"]), "splits": splits})


def check_shard(folder: Path, shard: ShardFile) -> None:
    """Compare a tar and its index with the manifest's checksums. Raises ShardError."""
    for name, wanted in ((shard.file, shard.sha256), (shard.index_file, shard.index_sha256)):
        path = folder / name
        try:
            found = sha256(path)
        except OSError as error:
            raise ShardError(f"{path} cannot be read ({error.strerror or error}); {REBUILD}") from error
        if found != wanted:
            raise ShardError(
                f"{path} has changed since it was built: its SHA-256 is {found[:12]}..., the manifest says"
                f" {wanted[:12]}...; {REBUILD}"
            )


class ShardSplit:
    """One split of a shard folder: samples by number, tars memory-mapped. Threads may share it; pickling reopens it."""

    def __init__(self, folder: Path | str, split: str, *, verify: bool = False) -> None:
        """Open a split. Sizes of all tars are checked, with `verify` their checksums too. Raises ShardError."""
        self.folder = Path(folder)
        self.split = split
        manifest = load_manifest(self.folder)
        if split not in manifest.splits:
            raise ShardError(f"{self.folder} has no split {split!r}, only {', '.join(manifest.splits)}")
        self.classes = manifest.classes
        self.size = manifest.size
        self.name = manifest.name
        self._files = manifest.splits[split].shards
        if verify:
            for shard in self._files:
                check_shard(self.folder, shard)
        self._tars = [_map_tar(self.folder, shard) for shard in self._files]
        rows = [(number, row) for number, shard in enumerate(self._files) for row in _load_index(self.folder, shard)]
        self._read_rows(rows)

    def _read_rows(self, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
        numbers = {name: number for number, name in enumerate(self.classes)}
        try:
            self._keys = [str(row["key"]) for _, row in rows]
            self._identities = [str(row["identity"]) for _, row in rows]
            self._labels = torch.tensor([numbers[row["label"]] for _, row in rows], dtype=torch.long)
            spans = [(shard, int(row["offset"]), int(row["size"])) for shard, row in rows]
        except (KeyError, TypeError, ValueError) as error:
            raise ShardError(f"an index of {self.folder}/{self.split} is garbled ({error!r}); {REBUILD}") from error
        self._spans = np.array(spans, dtype=np.int64).reshape(-1, 3)
        for shard, offset, size in spans:
            if offset < 0 or size < 0 or offset + size > self._files[shard].bytes:
                raise ShardError(f"{self._files[shard].index_file} points outside its tar; {REBUILD}")

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardSplit, (self.folder, self.split)

    def __len__(self) -> int:
        return len(self._keys)

    def labels(self) -> Tensor:
        """Every sample's label, as its place in `classes`: long (n,)."""
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
        try:
            pixels = decode_jpeg(self._view(index))
        except ValueError as error:
            raise BadSampleError(f"{self._place(index)} does not decode ({error}); {REBUILD}") from error
        if pixels.shape != (self.size, self.size, 3):
            height, width = pixels.shape[:2]
            raise BadSampleError(f"{self._place(index)} is {width}x{height} px, not {self.size}x{self.size}; {REBUILD}")
        return pixels

    def images(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Pixels of several samples: uint8 b 3 h w. Raises BadSampleError."""
        numbers = [int(index) for index in indices]
        batch = np.empty((len(numbers), self.size, self.size, 3), dtype=np.uint8)
        for row, index in enumerate(numbers):
            batch[row] = self.image(index)
        return torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous()

    def _view(self, index: int) -> memoryview:
        shard, offset, size = self._spans[index].tolist()
        return memoryview(self._tars[shard])[offset : offset + size]

    def _place(self, index: int) -> str:
        return f"sample {self._keys[index]} in {self.folder / self._files[self._spans[index, 0]].file}"


def _map_tar(folder: Path, shard: ShardFile) -> mmap.mmap:
    """Map a tar whose size is the manifest's. Raises ShardError."""
    path = folder / shard.file
    try:
        with open(path, "rb") as file:
            found = file.seek(0, 2)
            if found != shard.bytes:
                state = "cut off" if found < shard.bytes else "too long"
                raise ShardError(f"{path} is {state}: {found} bytes, the manifest says {shard.bytes}; {REBUILD}")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ShardError(f"{path} cannot be read ({error.strerror or error}); {REBUILD}") from error


def _load_index(folder: Path, shard: ShardFile) -> list[dict[str, Any]]:
    path = folder / shard.index_file
    try:
        rows = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ShardError(f"{path} cannot be read ({error}); {REBUILD}") from error
    if not isinstance(rows, list) or len(rows) != shard.samples:
        raise ShardError(f"{path} does not list the {shard.samples} samples of the manifest; {REBUILD}")
    return rows
