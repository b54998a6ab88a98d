"""Splits that are decoded once and kept in host memory or on the training device.

In host memory they are a file that later runs reuse. It holds no sample that was damaged when it was decoded, and a
CRC-32 of each other one; what is missing or differs is read from the split itself.

Legend: n samples of the split, b images, h w pixels.
"""

from __future__ import annotations

import os
import shutil
import threading
import warnings
import zlib
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfcluster.data.types import DataError, RawBatch, Split
from pfcluster.system.atomic_files import fsync, write_via_temporary
from pfcluster.system.locks import exclusive_lock
from pfcluster.system.os_errors import TRANSIENT, describe

CHUNK = 256
"""Samples decoded per task of a thread."""
RESERVE = 0.9
"""Largest fraction of the free memory or disk space that a split may take."""
NOT_STORED = -1
"""In place of the CRC-32 of a sample that could not be read when the file was decoded."""


@dataclass(frozen=True)
class InMemorySplit:
    """A split with all its images decoded into device memory."""

    split: Split
    images: Tensor
    """uint8 n 3 h w."""
    targets: Tensor
    """Labels of `images`: long (n,), on the CPU. They differ from `split.labels()` where a sample was replaced."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.split.classes

    def __len__(self) -> int:
        return len(self.split)

    def labels(self) -> Tensor:
        return self.split.labels()

    def batch(self, indices: Tensor) -> RawBatch:
        return RawBatch(self.images[indices.to(self.images.device)], self.targets[indices])

    def keys(self, indices: Tensor) -> list[str]:
        return self.split.keys(indices)


class FileSplit:
    """A split whose images are in a file that is memory-mapped. Thread-safe.

    A sample is compared with its CRC-32 when this process first reads it: the check takes half as long as reading it.
    """

    def __init__(self, split: Split, path: Path, pixels: NDArray[np.uint8], checksums: NDArray[np.int64]) -> None:
        """`pixels`: n h w 3, the content of the file `path`; `checksums`: int64 (n,), CRC-32 or NOT_STORED."""
        self.split = split
        self.classes = split.classes
        self._path, self._inode = path, path.stat().st_ino
        self._pixels, self._checksums = torch.from_numpy(pixels), checksums
        self._checked = np.zeros(len(checksums), dtype=bool)
        self._reported = threading.Event()

    def __len__(self) -> int:
        return len(self.split)

    def labels(self) -> Tensor:
        return self.split.labels()

    def batch(self, indices: Tensor) -> RawBatch:
        pixels, labels = self._pixels[indices], self.labels()[indices]
        wrong = self._wrong(indices.numpy(), pixels.numpy())
        if wrong:
            rows = torch.tensor(wrong)
            batch = self.split.batch(indices[rows])
            pixels[rows], labels[rows] = batch.images.permute(0, 2, 3, 1), batch.labels
        return RawBatch(pixels.permute(0, 3, 1, 2), labels)

    def keys(self, indices: Tensor) -> list[str]:
        return self.split.keys(indices)

    def _wrong(self, indices: NDArray[np.int64], pixels: NDArray[np.uint8]) -> list[int]:
        """Rows of `pixels` (b h w 3) that are not the samples at `indices`: not stored, or damaged since."""
        unchecked = np.flatnonzero(~self._checked[indices])
        intact = np.array([zlib.crc32(pixels[row]) == self._checksums[indices[row]] for row in unchecked], dtype=bool)
        self._checked[indices[unchecked[intact]]] = True
        wrong = unchecked[~intact]
        if (self._checksums[indices[wrong]] != NOT_STORED).any():
            self._report_damage()
        return wrong.tolist()

    def _report_damage(self) -> None:
        """Warn once, and delete the file, unless another process has replaced it; those that map it keep it."""
        if self._reported.is_set():
            return
        self._reported.set()
        with suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        warnings.warn(
            f"{self._path} has changed since it was decoded; its damaged samples are decoded again, and the next run"
            " writes a new file. If this happens again, check the disk, or set data.cache to a folder on another one",
            stacklevel=2,
        )


def decoded_bytes(split: Split) -> int:
    """Bytes of a split's decoded images."""
    return int(np.prod(_shape(split)))


def load_on_device(split: Split, device: torch.device, workers: int) -> InMemorySplit:
    """Decode a whole split into device memory. Raises DataError if it does not fit."""
    shape, needed = _shape(split), decoded_bytes(split)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        if needed > RESERVE * free:
            raise DataError(
                f"data.cache_mode is device, and {shape[0]} images of {shape[2]} px take {needed / 1e9:.1f} GB of"
                f" {free / 1e9:.1f} GB free on {device}; set data.cache_mode to host or stream, or lower data.limit"
            )
    images = torch.empty(shape, dtype=torch.uint8, device=device)
    targets = torch.empty(shape[0], dtype=torch.long)

    def load(chunk: Tensor) -> None:
        batch = split.batch(chunk)
        images[chunk[0] : chunk[-1] + 1] = batch.images.to(device)
        targets[chunk] = batch.labels

    _each_chunk(shape[0], load, workers)
    return InMemorySplit(split, images, targets)


def load_in_host_memory(
    split: Split, folder: Path, fingerprint: str, workers: int, damaged: Collection[str] = ()
) -> FileSplit:
    """Decode a split into a file in `folder`, which all processes of the machine map and later runs reuse.

    The page cache keeps the file in memory as far as there is room. `fingerprint` identifies the split's contents.
    `damaged`: keys of the samples that the split has replaced by others so far; they are not stored. Raises DataError
    if the disk is too small or the folder cannot be used, OSError if storage or network fail.
    """
    shape = _shape(split)
    pixels, checksums = (folder / f"{fingerprint[:32]}{suffix}" for suffix in (".u8", ".crc32"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(folder / f"{fingerprint[:32]}.lock"):
            stored = _stored(split, shape, pixels, checksums)
            if stored is None:
                _decode_into(split, shape, pixels, checksums, workers, damaged)
                stored = _stored(split, shape, pixels, checksums)
        if stored is None:
            raise OSError(f"{pixels} was changed while it was written")
    except OSError as error:
        if error.errno in TRANSIENT:  # of the cache, or of the split that is decoded
            raise
        reason = f"{describe(error)}, or set data.cache_mode to stream"
        raise DataError(f"data.cache {folder} cannot be used: {reason}") from error
    return stored


def _stored(split: Split, shape: tuple[int, int, int, int], pixels: Path, checksums: Path) -> FileSplit | None:
    """The split in files that were decoded before; None if there are none, or not complete ones."""
    try:
        expected = np.fromfile(checksums, dtype=np.int64)
        if pixels.stat().st_size != int(np.prod(shape)) or len(expected) != shape[0]:
            return None
        mapped = np.memmap(pixels, dtype=np.uint8, mode="c", shape=(shape[0], *shape[2:], 3))
        return FileSplit(split, pixels, mapped, expected)
    except FileNotFoundError:
        return None


def _decode_into(
    split: Split,
    shape: tuple[int, int, int, int],
    pixels: Path,
    checksums: Path,
    workers: int,
    damaged: Collection[str],
) -> None:
    needed, free = int(np.prod(shape)), shutil.disk_usage(pixels.parent).free
    if needed > RESERVE * free:
        raise DataError(
            f"data.cache_mode is host, and {shape[0]} images of {shape[2]} px take {needed / 1e9:.1f} GB of"
            f" {free / 1e9:.1f} GB free in {pixels.parent}; set data.cache to another folder or"
            " data.cache_mode to stream"
        )
    expected = np.empty(shape[0], dtype=np.int64)
    staging = pixels.with_suffix(".part")
    try:
        with open(staging, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, needed)  # else a full disk ends the process with SIGBUS
        mapped = np.memmap(staging, dtype=np.uint8, mode="r+", shape=(shape[0], *shape[2:], 3))

        def load(chunk: Tensor) -> None:
            rows = np.ascontiguousarray(split.batch(chunk).images.permute(0, 2, 3, 1).numpy())
            mapped[chunk.numpy()] = rows
            expected[chunk.numpy()] = [zlib.crc32(row) for row in rows]

        _each_chunk(shape[0], load, workers)
        if damaged:
            lost = [number for number, key in enumerate(split.keys(torch.arange(shape[0]))) if key in damaged]
            expected[lost] = NOT_STORED
        mapped.flush()
        fsync(staging)
        write_via_temporary(checksums, lambda file: file.write(expected.data))
        staging.rename(pixels)
    finally:
        staging.unlink(missing_ok=True)


def _shape(split: Split) -> tuple[int, int, int, int]:
    """Shape of the decoded split: n 3 h w."""
    _, channels, height, width = split.batch(torch.tensor([0])).images.shape
    return len(split), channels, height, width


def _each_chunk(count: int, load: Callable[[Tensor], None], workers: int) -> None:
    """Call `load` with the indices of each chunk of `count` samples, in threads."""
    with ThreadPoolExecutor(max_workers=max(1, workers), thread_name_prefix="decoder") as pool:
        for _ in pool.map(load, torch.arange(count).split(CHUNK)):
            pass
