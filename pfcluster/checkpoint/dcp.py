"""Tensor shards on disk: safetensors files written and read with torch.distributed.checkpoint, one writer per rank.

A file holds ranges of flattened tensors, and the offset of each range in its header. Any number of ranks, under any
engine, reads the ranges that it needs. No pickle is involved.
"""

from __future__ import annotations

import os
import re
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
    """The files do not hold the requested tensors: names the tensor and the reason."""


class _SavePlanner(DefaultSavePlanner):
    """Writes shards; a shard that several ranks hold is written by one of them."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        self.state_dict, self.is_coordinator = state_dict, is_coordinator

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan([_write_item(key, shard) for key, shard in self.state_dict.items()])
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].values


class _LoadPlanner(DefaultLoadPlanner):
    """Fills shards from the ranges in the files, whatever their boundaries."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False) -> None:
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        stored = self.metadata.state_dict_metadata
        items = []
        for key, shard in self.state_dict.items():
            if key not in stored:
                raise DamageError(f"it has no {key}")
            tensor = stored[key]
            assert isinstance(tensor, TensorStorageMetadata)
            elements = sum(chunk.sizes.numel() for chunk in tensor.chunks)
            if tensor.size.numel() != shard.total or elements != shard.total:
                raise DamageError(f"its {key} has {elements} elements, expected {shard.total}")
            items += create_read_items_for_chunk_list(key, tensor, [_chunk(shard)])
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn].values


class _Writer(HuggingFaceStorageWriter):
    """Calls `commit` on the coordinator with the names of all files, after all ranks have written, and before `write`
    returns on any rank.

    The names are those that the ranks report: a listing of the folder may lack files of other machines for as long as
    NFS caches it.
    """

    def __init__(self, folder: Path, commit: Callable[[list[str]], None]) -> None:
        super().__init__(str(folder), save_distributed=True)
        self.commit = commit

    def finish(self, metadata: Metadata, results: Any) -> None:
        super().finish(metadata, results)
        self.commit(sorted({result.storage_data.relative_path for written in results for result in written}))


def write(
    tensor_shards: TensorShards, folder: Path, commit: Callable[[list[str]], None], group: ProcessGroup | None
) -> None:
    """Write the shards of all ranks of a group (None: of this process only) into `folder`, then call `commit` on the
    group's first rank with the names of the files. Raises the same OSError on all ranks if any of them cannot write.
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
        number = getattr(cause, "errno", None)
        if number is None:  # safetensors' own errors
            match = re.search(r"os error (\d+)", str(cause))
            number = int(match.group(1)) if match else None
        if number is None:
            raise OSError(f"cannot write {folder} (rank {rank}): {cause}") from error
        reason = f"the checkpoint cannot be written (rank {rank}): {os.strerror(number)}"
        raise OSError(number, reason, str(folder)) from error


def read(tensor_shards: TensorShards, folder: Path) -> None:
    """Fill the shards from the files in `folder`, on this rank only. Raises DamageError."""
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
    """Dtypes of the tensors in the files of `folder`, by name."""
    stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {key: value.properties.dtype for key, value in stored.items() if isinstance(value, TensorStorageMetadata)}


def _chunk(shard: TensorShard) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size([shard.offset]), torch.Size([len(shard.values)]))


def _write_item(key: str, shard: TensorShard) -> WriteItem:
    data = TensorWriteData(_chunk(shard), TensorProperties.create_from_tensor(shard.values), torch.Size([shard.total]))
    return WriteItem(MetadataIndex(key, torch.Size([shard.offset])), WriteItemType.SHARD, tensor_data=data)


def _cause(error: CheckpointException) -> tuple[int, BaseException]:
    """The first rank that failed, and its exception."""
    rank, (cause, _) = next(iter(error.failures.items()))
    return rank, cause
