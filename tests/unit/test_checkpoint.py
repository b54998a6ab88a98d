"""Checkpoints are whole or not there, damage is found, and any layout reads what any other wrote."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pfcluster.checkpoint import dcp, store
from pfcluster.checkpoint.manager import CheckpointManager
from pfcluster.checkpoint.store import CheckpointError
from pfcluster.checkpoint.tensor_shards import TensorShard, unsharded
from pfcluster.distributed.process_group import World
from pfcluster.runs.folder import checkpoint_steps, step_folder
from tests.tiny import write_checkpoint

TENSORS = {
    "model": {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(5)},
    "model_optimizer": {"weight/exp_avg": torch.ones(2, 3), "weight/step": torch.tensor(3.0)},
}
SHARD = "shard-00001-model-00001-of-00001.safetensors"


def test_what_is_saved_comes_back(tmp_path):
    write_checkpoint(tmp_path, 7, TENSORS, {"best": None, "note": [1, 2]})
    found, problems = store.latest(tmp_path)
    assert (found.step, found.state, problems) == (7, {"best": None, "note": [1, 2]}, [])
    tensors = found.tensors()
    for group, values in TENSORS.items():
        for name, value in values.items():
            assert torch.equal(tensors[group][name], value), name
            assert tensors[group][name].dtype == value.dtype
    assert found.tensors("model").keys() == {"model"}
    assert not list(tmp_path.glob(".*"))


def test_no_checkpoint_is_no_error(tmp_path):
    assert store.latest(tmp_path / "absent") == (None, [])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_a_damaged_newest_checkpoint_is_passed_over_and_named(tmp_path):
    write_checkpoint(tmp_path, 1, TENSORS, {})
    flip_a_byte(write_checkpoint(tmp_path, 2, TENSORS, {}) / SHARD)
    found, problems = store.latest(tmp_path)
    assert found.step == 1
    assert f"step-00000002/{SHARD} is damaged" in problems[0]


def test_where_all_are_damaged_nobody_starts_over_silently(tmp_path):
    (write_checkpoint(tmp_path, 1, TENSORS, {}) / SHARD).unlink()
    with pytest.raises(CheckpointError, match=r"safetensors is missing"):
        store.latest(tmp_path)


def test_a_file_of_another_checkpoint_does_not_slip_in(tmp_path):
    path = write_checkpoint(tmp_path, 1, TENSORS, {})
    (path / SHARD.replace("00001-model", "00002-model")).write_bytes((path / SHARD).read_bytes())
    with pytest.raises(CheckpointError, match="does not belong there"):
        store.verify(path)


def test_a_folder_without_its_record_does_not_count(tmp_path):
    (write_checkpoint(tmp_path, 3, TENSORS, {}) / "state.json").unlink()
    assert checkpoint_steps(tmp_path) == []


@pytest.mark.parametrize(("change", "words"), [({"format": 99}, "format 99"), ({"shapes": None}, "is damaged")])
def test_another_format_is_refused(tmp_path, change, words):
    path = write_checkpoint(tmp_path, 3, TENSORS, {})
    record = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(record | change))
    with pytest.raises(CheckpointError, match=words):
        store.verify(path)


def test_retention_keeps_the_newest_and_the_best(tmp_path):
    for step in range(1, 7):
        write_checkpoint(tmp_path, step, {"model": {"weight": torch.ones(1)}}, {})
    store.retain(tmp_path, keep=2, best=3)
    assert checkpoint_steps(tmp_path) == [3, 5, 6]


def test_a_new_saver_sweeps_up_what_a_killed_one_left(tmp_path):
    (tmp_path / ".step-00000009.tmp").mkdir()
    write_checkpoint(tmp_path, 10, TENSORS, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]


def test_a_run_stands_for_its_best_checkpoint_or_its_newest(tmp_path):
    folder = tmp_path / "checkpoints"
    write_checkpoint(folder, 1, TENSORS, {})
    newest = write_checkpoint(folder, 2, TENSORS, {"best": None})
    assert store.find(tmp_path) == newest
    write_checkpoint(folder, 3, TENSORS, {"best": {"step": 1, "score": 0.5}})
    assert store.find(tmp_path) == step_folder(folder, 1)
    assert store.find(newest) == newest
    with pytest.raises(CheckpointError, match="neither a run"):
        store.find(tmp_path / "nothing")


def test_parts_of_any_layout_are_read_from_parts_of_any_other(tmp_path):
    """Three uneven parts of a 5 x 7 tensor written, two others read."""
    whole = torch.arange(35.0)
    for rank, (start, end) in enumerate([(0, 11), (11, 12), (12, 35)]):
        folder = tmp_path / str(rank)
        dcp.write({"model/weight": TensorShard(whole[start:end], start, (5, 7))}, folder, lambda: None, None)
        (folder / SHARD).rename(tmp_path / SHARD.replace("00001-model", f"{rank + 1:05}-model"))
    for start, end in [(0, 20), (20, 35)]:
        part = torch.zeros(end - start)
        dcp.read({"model/weight": TensorShard(part, start, (5, 7))}, tmp_path)
        assert torch.equal(part, whole[start:end])


@pytest.mark.parametrize(
    ("wanted", "words"),
    [({"model/bias": (3,)}, "has no model/bias"), ({"model/weight": (4,)}, "has 6 elements, 4 are wanted")],
)
def test_a_checkpoint_of_another_model_is_refused_by_its_tensor(tmp_path, wanted, words):
    write_checkpoint(tmp_path, 1, TENSORS, {})
    record, _ = store.latest(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        record.read_into({key: unsharded(torch.zeros(shape)) for key, shape in wanted.items()})


def test_a_checkpoint_is_a_copy_of_its_moment_and_counts_once_it_is_whole(tmp_path, monkeypatch):
    """The training goes on while it is written; until then there is none."""
    may_finish = threading.Event()
    commit = store.commit
    monkeypatch.setattr(store, "commit", lambda *given: (may_finish.wait(60), commit(*given)))
    saver = CheckpointManager(tmp_path, World(0, 1, torch.device("cpu")), keep=2, asynchronous=True, timeout=60)
    weight = torch.ones(4)
    saver.save(1, {"model/weight": unsharded(weight)}, {"model/weight": (4,)}, {}, None)
    weight.zero_()
    assert checkpoint_steps(tmp_path) == []
    may_finish.set()
    saver.wait()
    assert store.load(step_folder(tmp_path, 1)).tensors()["model"]["weight"].tolist() == [1, 1, 1, 1]


def test_a_write_that_fails_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(*given: object) -> None:
        raise OSError("the disk is gone")

    write_checkpoint(tmp_path, 1, TENSORS, {})
    monkeypatch.setattr(store, "commit", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        write_checkpoint(tmp_path, 2, TENSORS, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("averaged", [False, True])
def test_consolidate_writes_one_file_of_the_weights_that_are_evaluated(tmp_path, averaged):
    average = {"model_ema": {name: value + 1 for name, value in TENSORS["model"].items()}} if averaged else {}
    write_checkpoint(tmp_path / "checkpoints", 4, TENSORS | average, {})
    store.consolidate(tmp_path, tmp_path / "out" / "weights.safetensors")
    values = load_file(tmp_path / "out" / "weights.safetensors")
    assert values.keys() == {"weight", "count"}
    assert torch.equal(values["weight"], TENSORS["model"]["weight"] + averaged)
    store.consolidate(tmp_path, tmp_path / "all.safetensors", everything=True)
    assert "model_optimizer/weight/exp_avg" in load_file(tmp_path / "all.safetensors")
