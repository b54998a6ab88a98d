"""Pieces on disk: torch.distributed.checkpoint writes and reads them, as safetensors, each rank its own.

A file holds flat parts of tensors, and in its header where each part begins; whatever layout of ranks comes next reads
the parts it wants. Nothing is pickled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dist_checkpoint
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from pfcluster.checkpoint.tensor_shards import TensorShard, TensorShards


class DamageError(ValueError):
    """What is on disk is not what is wanted: says which tensor and why."""


class _SavePlanner(DefaultSavePlanner):
    """Writes pieces; of those that several ranks hold alike, one rank's."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        self.state_dict, self.is_coordinator = state_dict, is_coordinator

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan([_write_item(key, piece) for key, piece in self.state_dict.items()])
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].values


class _LoadPlanner(DefaultLoadPlanner):
    """Fills pieces from whatever parts the files have."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False) -> None:
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        stored = self.metadata.state_dict_metadata
        items = []
        for key, piece in self.state_dict.items():
            if key not in stored:
                raise DamageError(f"it has no {key}")
            found = stored[key]
            assert isinstance(found, TensorStorageMetadata)
            held = sum(chunk.sizes.numel() for chunk in found.chunks)
            if found.size.numel() != piece.total or held != piece.total:
                raise DamageError(f"its {key} has {held} elements, {piece.total} are wanted")
            items += create_read_items_for_chunk_list(key, found, [_chunk(piece)])
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].values


class _Writer(HuggingFaceStorageWriter):
    """Calls `commit` on the coordinator once all ranks have written; their `write` returns after that."""

    def __init__(self, folder: Path, commit: Callable[[], None]) -> None:
        super().__init__(str(folder), save_distributed=True)
        self.commit = commit

    def finish(self, metadata: Metadata, results: Any) -> None:
        super().finish(metadata, results)
        self.commit()


def write(tensor_shards: TensorShards, folder: Path, commit: Callable[[], None], group: ProcessGroup | None) -> None:
    """Write the pieces of a group's ranks (None: of this process alone) into `folder`, then `commit` on the first.

    Raises OSError on all ranks where one of them cannot write.
    """
    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
    try:
        dist_checkpoint.save(
            dict(tensor_shards),
            storage_writer=_Writer(folder, commit),
            planner=_SavePlanner(),
            process_group=group,
            no_dist=group is None,
        )
    except CheckpointException as error:
        rank, cause = _cause(error)
        raise OSError(f"cannot write {folder} (rank {rank}): {cause}") from error


def read(tensor_shards: TensorShards, folder: Path) -> None:
    """Fill the pieces from the files in `folder`. Raises DamageError; each rank reads for itself."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
    try:
        dist_checkpoint.load(
            dict(tensor_shards),
            storage_reader=HuggingFaceStorageReader(str(folder)),
            planner=_LoadPlanner(),
            no_dist=True,
        )
    except CheckpointException as error:
        raise DamageError(f"{folder}: {_cause(error)[1]}") from error


def dtypes(folder: Path) -> dict[str, torch.dtype]:
    """The tensors that the files in `folder` hold, and their types."""
    stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {key: value.properties.dtype for key, value in stored.items() if isinstance(value, TensorStorageMetadata)}


def _chunk(piece: TensorShard) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size([piece.offset]), torch.Size([len(piece.values)]))


def _write_item(key: str, piece: TensorShard) -> WriteItem:
    data = TensorWriteData(_chunk(piece), TensorProperties.create_from_tensor(piece.values), torch.Size([piece.total]))
    return WriteItem(MetadataIndex(key, torch.Size([piece.offset])), WriteItemType.SHARD, tensor_data=data)


def _cause(error: CheckpointException) -> tuple[int, BaseException]:
    """The first rank that failed, and its own exception."""
    rank, (cause, _) = next(iter(error.failures.items()))
    return rank, cause
