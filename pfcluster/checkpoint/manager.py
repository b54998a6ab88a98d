"""Writing checkpoints while the training goes on: a copy to the host, then a thread on every rank."""

from __future__ import annotations

import shutil
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as torch_dist
from torch.distributed import ProcessGroup

from pfcluster.checkpoint import dcp, store
from pfcluster.checkpoint.tensor_shards import TensorShard, TensorShards
from pfcluster.distributed.process_group import World
from pfcluster.runs.folder import checkpoint_steps, step_folder


class CheckpointManager:
    """Writes one checkpoint at a time, on all ranks together, and keeps the newest and the best.

    A write that failed is raised by the next `save` or by `wait`, as OSError.
    """

    def __init__(self, folder: Path, world: World, *, keep: int, asynchronous: bool, timeout: float) -> None:
        self.folder, self.world, self.keep, self.asynchronous = folder, world, keep, asynchronous
        self.stalls: list[float] = []
        """Seconds that the training waited for each checkpoint."""
        self.seconds: list[float] = []
        """Seconds from each copy to its final name."""
        self.group: ProcessGroup | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        if world.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            store.sweep(folder)
        if world.size > 1:  # the writing threads talk beside the training
            group = torch_dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
            assert isinstance(group, ProcessGroup)
            self.group = group
        world.barrier()

    def save(
        self,
        step: int,
        tensor_shards: TensorShards,
        shapes: dict[str, tuple[int, ...]],
        state: dict[str, Any],
        best: int | None,
    ) -> None:
        """Copy the pieces and write them, with `state` beside them, in the background or at once. A collective."""
        began = time.monotonic()
        self.wait()
        copies = {
            key: TensorShard(piece.values.to("cpu", copy=True), piece.offset, piece.shape)
            for key, piece in tensor_shards.items()
        }
        self._thread = threading.Thread(target=self._write, args=(step, copies, shapes, state, best), daemon=True)
        self._thread.start()
        if not self.asynchronous:
            self.wait()
        self.stalls.append(time.monotonic() - began)

    def wait(self) -> None:
        """Until what was begun is on the disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def summary(self) -> dict[str, Any]:
        """What result.json says of the checkpoints that this process wrote."""
        written = checkpoint_steps(self.folder)
        newest = step_folder(self.folder, written[-1]) if written else self.folder
        return {
            "written": len(self.stalls),
            "asynchronous": self.asynchronous,
            "stall_seconds": round(sum(self.stalls) / max(1, len(self.stalls)), 4),
            "write_seconds": round(sum(self.seconds) / max(1, len(self.seconds)), 4),
            "bytes": sum(path.stat().st_size for path in newest.glob("*.safetensors")),
        }

    def _write(
        self,
        step: int,
        tensor_shards: TensorShards,
        shapes: dict[str, tuple[int, ...]],
        state: dict[str, Any],
        best: int | None,
    ) -> None:
        def commit() -> None:
            store.commit(self.folder, step, shapes, state)
            store.retain(self.folder, self.keep, best)

        began = time.monotonic()
        try:
            dcp.write(tensor_shards, store.aside(self.folder, step), commit, self.group)
            self.seconds.append(time.monotonic() - began)
        except BaseException as error:  # raised where the training waits for it
            self._error = error
            if self.world.is_main:
                shutil.rmtree(store.aside(self.folder, step), ignore_errors=True)
