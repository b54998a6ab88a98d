"""Damaged samples that a run has met, of all ranks and attempts: named in its folder and result, and limited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pfcluster.data.splits import ShardedSplit, damaged_record, damaged_warning, sharded
from pfcluster.data.types import Dataset
from pfcluster.distributed.process_group import World
from pfcluster.runs.folder import DAMAGED_FILE, read_damaged, write_damaged
from pfcluster.runs.progress import warn


class DamagedSamples:
    """Collects the damaged samples of a run's splits over all ranks, each of which reads different samples."""

    def __init__(self, dataset: Dataset, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world
        splits = [sharded(split) for split in (dataset.train, dataset.validation, dataset.test)]
        self.splits: dict[str, ShardedSplit] = {split.shards.split: split for split in splits if split is not None}
        self.known: dict[str, dict[str, str]] = world.from_main(lambda: read_damaged(folder))
        """Split -> key -> reason, of all ranks and attempts."""

    def collect(self) -> dict[str, Any]:
        """Gather the samples of all ranks: -> count, split's size and names by split, for result.json. A collective.

        Raises DataError if more than `data.max_bad_share` of a split's samples are damaged, over all ranks.
        """
        new = {
            name: {key: why for key, why in split.damaged.copy().items() if key not in self.known.get(name, {})}
            for name, split in self.splits.items()
        }
        if self.world.any(any(new.values())):
            self._add(self.world.gather(new))
        return {
            name: damaged_record(keys, len(self.splits[name]))
            for name, keys in self.known.items()
            if keys and name in self.splits
        }

    def _add(self, of_ranks: list[dict[str, dict[str, str]]]) -> None:
        """Record the new samples of all ranks, and warn of them by name."""
        for name, split in self.splits.items():
            before = self.known.setdefault(name, {})
            new = {key: why for one in of_ranks for key, why in sorted(one[name].items()) if key not in before}
            if new:
                before |= new
                self._warn(name, new)
                split.require_few(before)

    def _warn(self, split: str, new: dict[str, str]) -> None:
        if self.world.is_main:
            write_damaged(self.folder, self.known)
        message = damaged_warning(split, damaged_record(new, len(self.splits[split])))
        warn(self.folder, f"{message} ({DAMAGED_FILE}; {next(iter(new.values()))})", self.world.is_main)
