"""Asynchronous checkpoints: a copy to host memory, then a writer thread on every rank."""

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
from pfcluster.system.os_errors import retry_transient


class CheckpointManager:
    """Writes one checkpoint at a time, on all ranks together, and keeps the newest `keep` and the best.

    A write that fails as storage does (EIO, ESTALE, ...) is repeated. The next `save` or `wait` raises the error of a
    failed write, as OSError.
    """

    def __init__(self, folder: Path, world: World, *, keep: int, asynchronous: bool, timeout: float) -> None:
        self.folder, self.world, self.keep, self.asynchronous = folder, world, keep, asynchronous
        self.stalls: list[float] = []
        """Seconds for which each checkpoint blocked the training."""
        self.seconds: list[float] = []
        """Seconds that each write took, from the copy to the final rename."""
        self.group: ProcessGroup | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        if world.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            store.remove_incomplete(folder)
        if world.size > 1:  # collectives of the writer threads, separate from those of the training
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
        """Copy the shards to host memory and write them with `state`, in the background or blocking. A collective.

        `shapes` are those of the full tensors; `best` is the step of the best checkpoint, which is kept.
        """
        began = time.monotonic()
        self.wait()
        copies = {
            key: TensorShard(shard.values.to("cpu", copy=True), shard.offset, shard.shape)
            for key, shard in tensor_shards.items()
        }
        self._thread = threading.Thread(target=self._write, args=(step, copies, shapes, state, best), daemon=True)
        self._thread.start()
        if not self.asynchronous:
            self.wait()
        self.stalls.append(time.monotonic() - began)

    def wait(self) -> None:
        """Wait for the pending write. Raises OSError if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def finish(self) -> None:
        """Wait for the pending write after another error. An error of the write itself is dropped."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._error = None

    def summary(self) -> dict[str, Any]:
        """Entry of result.json about the checkpoints that this process wrote."""
        steps = checkpoint_steps(self.folder)
        newest = step_folder(self.folder, steps[-1]) if steps else self.folder
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
        def commit(files: list[str]) -> None:
            store.commit(self.folder, step, files, shapes, state)
            store.retain(self.folder, self.keep, best)

        began = time.monotonic()
        try:
            staging = store.staging_dir(self.folder, step)
            retry_transient(lambda: dcp.write(tensor_shards, staging, commit, self.group))  # all ranks see one error
            self.seconds.append(time.monotonic() - began)
        except BaseException as error:  # raised by the next `save` or `wait`
            self._error = error
            if self.world.is_main:
                shutil.rmtree(store.staging_dir(self.folder, step), ignore_errors=True)
