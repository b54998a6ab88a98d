"""Damaged samples over two ranks: the result names those of both, and the limit is over both together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pfcluster.config.io import to_json
from pfcluster.data.build.pipeline import build
from pfcluster.data.shards import ShardSplit
from pfcluster.runs.folder import REQUESTED_CONFIG_FILE, read_damaged, read_result
from tests.distributed.ranks import start
from tests.photos import make_folder, options
from tests.unit.test_damaged_samples import damage, finetune

pytestmark = pytest.mark.slow
DAMAGED = 8
"""Of the 32 samples that four steps read."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 training samples in one shard, 9 of them damaged."""
    root = tmp_path_factory.mktemp("damaged")
    build(options(make_folder(root / "raw", per_class=16), root / "shards", val_share=0.25, samples_per_shard=64))
    assert len(ShardSplit(root / "shards", "train")) == 36
    (root / "shards" / "train-00000.tar").chmod(0o644)
    damage(root / "shards", list(range(0, 36, 4)))
    return root / "shards"


def run(shards: Path, folder: Path, share: float) -> tuple[list[int], str]:
    """An epoch of four steps of 8 samples on two ranks, each of which reads half of them; exit codes and output."""
    folder.mkdir()
    config = replace(finetune(shards, max_bad_share=share), batch_size=8, epochs=1)
    (folder / REQUESTED_CONFIG_FILE).write_text(to_json(config))
    ranks = start("run_worker.py", [str(folder)], 2)
    said = [process.communicate(timeout=600)[0] for process in ranks]
    return [process.returncode for process in ranks], "\n".join(said)


def test_the_result_names_the_samples_of_both_ranks(shards: Path, tmp_path: Path) -> None:
    codes, said = run(shards, tmp_path / "run", 0.5)
    assert codes == [0, 0], said
    result = read_result(tmp_path / "run")
    assert result is not None
    assert result["damaged_samples"]["train"]["count"] == DAMAGED
    assert len(read_damaged(tmp_path / "run")["train"]) == DAMAGED


def test_the_limit_is_over_both_ranks(shards: Path, tmp_path: Path) -> None:
    """Each rank meets fewer than the 7 samples that may be damaged."""
    codes, said = run(shards, tmp_path / "run", 0.21)
    assert 0 not in codes
    assert said.count("8 of 36 samples of the train split cannot be read") >= 2, said
