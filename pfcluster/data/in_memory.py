"""Splits that are decoded once and kept in host memory or on the training device.

Legend: n samples of the split, b images, h w pixels.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pfcluster.config.json_files import try_read_object
from pfcluster.data.types import DataError, RawBatch, Split
from pfcluster.runs.atomic_files import fsync, write_atomically, write_via_temporary
from pfcluster.runs.locks import exclusive_lock
from pfcluster.runs.os_errors import describe

CHUNK = 256
"""Samples decoded per task of a thread."""
RESERVE = 0.9
"""Largest fraction of the free memory or disk space that a split may take."""


@dataclass(frozen=True)
class InMemorySplit:
    """A split with all its images decoded."""

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
    split: Split, folder: Path, fingerprint: str, workers: int, damaged: dict[str, str] | None = None
) -> InMemorySplit:
    """Decode a split into a file in `folder`, which all processes of the machine map and later runs reuse.

    The page cache keeps the file in memory as far as there is room. `fingerprint` identifies the split's contents.
    `damaged`: the split's damaged samples, which are kept beside the file, and read again where the file is reused.
    Raises DataError if the disk is too small or the folder cannot be used.
    """
    shape = _shape(split)
    pixels, labels = folder / f"{fingerprint[:32]}.u8", folder / f"{fingerprint[:32]}.labels.npy"
    names = folder / f"{fingerprint[:32]}.damaged.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(folder / f"{fingerprint[:32]}.lock"):
            if not (labels.exists() and pixels.exists() and pixels.stat().st_size == int(np.prod(shape))):
                _decode_into(split, shape, pixels, labels, workers, lambda: _write_damaged(names, damaged))
            if damaged is not None:
                damaged |= try_read_object(names) or {}
        mapped = np.memmap(pixels, dtype=np.uint8, mode="c", shape=(shape[0], *shape[2:], 3))
        targets = torch.from_numpy(np.load(labels, allow_pickle=False))
    except OSError as error:
        reason = f"{describe(error)}, or set data.cache_mode to stream"
        raise DataError(f"data.cache {folder} cannot be used: {reason}") from error
    return InMemorySplit(split, torch.from_numpy(mapped).permute(0, 3, 1, 2), targets)


def _write_damaged(names: Path, damaged: dict[str, str] | None) -> None:
    if damaged is not None:
        write_atomically(names, json.dumps(damaged) + "\n")


def _decode_into(
    split: Split,
    shape: tuple[int, int, int, int],
    pixels: Path,
    labels: Path,
    workers: int,
    before_commit: Callable[[], None],
) -> None:
    """`before_commit` is called once all samples are decoded, before the file of pixels has its name."""
    needed, free = int(np.prod(shape)), shutil.disk_usage(pixels.parent).free
    if needed > RESERVE * free:
        raise DataError(
            f"data.cache_mode is host, and {shape[0]} images of {shape[2]} px take {needed / 1e9:.1f} GB of"
            f" {free / 1e9:.1f} GB free in {pixels.parent}; set data.cache to another folder or"
            " data.cache_mode to stream"
        )
    targets = np.empty(shape[0], dtype=np.int64)
    staging = pixels.with_suffix(".part")
    try:
        with open(staging, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, needed)  # else a full disk ends the process with SIGBUS
        mapped = np.memmap(staging, dtype=np.uint8, mode="r+", shape=(shape[0], *shape[2:], 3))

        def load(chunk: Tensor) -> None:
            batch = split.batch(chunk)
            mapped[chunk.numpy()] = batch.images.permute(0, 2, 3, 1).numpy()
            targets[chunk.numpy()] = batch.labels.numpy()

        _each_chunk(shape[0], load, workers)
        mapped.flush()
        fsync(staging)
        write_via_temporary(labels, lambda file: np.save(file, targets, allow_pickle=False))
        before_commit()
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
