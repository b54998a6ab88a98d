"""Checkpoints: atomic writes, detection of damage, and reading under another layout of ranks."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
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
from pfcluster.system import os_errors
from pfcluster.training import run
from tests.syscalls import bound_by_permissions, where_refused
from tests.tiny import config, write_checkpoint

TENSORS = {
    "model": {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(5)},
    "model_optimizer": {"weight/exp_avg": torch.ones(2, 3), "weight/step": torch.tensor(3.0)},
}
SHARD = "shard-00001-model-00001-of-00001.safetensors"


def test_checkpoint_is_read_as_saved(tmp_path):
    write_checkpoint(tmp_path, 7, TENSORS, {"best": None, "note": [1, 2]})
    checkpoint, problems = store.latest(tmp_path)
    assert (checkpoint.step, checkpoint.state, problems) == (7, {"best": None, "note": [1, 2]}, [])
    tensors = checkpoint.tensors()
    for group, values in TENSORS.items():
        for name, value in values.items():
            assert torch.equal(tensors[group][name], value), name
            assert tensors[group][name].dtype == value.dtype
    assert checkpoint.tensors("model").keys() == {"model"}
    assert not list(tmp_path.glob(".*"))


def test_latest_is_none_without_checkpoints(tmp_path):
    assert store.latest(tmp_path / "absent") == (None, [])


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_latest_skips_a_damaged_checkpoint_and_names_it(tmp_path):
    write_checkpoint(tmp_path, 1, TENSORS, {})
    flip_last_byte(write_checkpoint(tmp_path, 2, TENSORS, {}) / SHARD)
    checkpoint, problems = store.latest(tmp_path)
    assert checkpoint.step == 1
    assert f"step-00000002/{SHARD} is damaged" in problems[0]


def test_a_resumed_run_keeps_its_own_checkpoints_and_not_damaged_newer_ones(tmp_path):
    """With checkpoint.keep 1 the only good one was removed: the damaged one has the larger number."""
    write_checkpoint(tmp_path, 400, TENSORS, {})
    for _ in range(2):  # the second time there is a renamed one already
        flip_last_byte(write_checkpoint(tmp_path, 500, TENSORS, {}) / SHARD)
        assert store.latest(tmp_path)[0].step == 400
        store.set_aside_newer(tmp_path, 400)
    write_checkpoint(tmp_path, 450, TENSORS, {})
    store.retain(tmp_path, keep=1, best=None)
    assert store.latest(tmp_path)[0].step == 450
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000450", "step-00000500.damaged"]


def test_latest_raises_if_all_checkpoints_are_damaged(tmp_path):
    (write_checkpoint(tmp_path, 1, TENSORS, {}) / SHARD).unlink()
    with pytest.raises(CheckpointError, match=r"all checkpoints .* are damaged: .*safetensors is missing"):
        store.latest(tmp_path)


def test_verify_refuses_an_extra_file(tmp_path):
    path = write_checkpoint(tmp_path, 1, TENSORS, {})
    (path / SHARD.replace("00001-model", "00002-model")).write_bytes((path / SHARD).read_bytes())
    with pytest.raises(CheckpointError, match="is not part of the checkpoint"):
        store.verify(path)


def test_a_folder_without_state_json_is_ignored(tmp_path):
    (write_checkpoint(tmp_path, 3, TENSORS, {}) / "state.json").unlink()
    assert checkpoint_steps(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "has format 99; this version reads format 4: train the run again, or use the version"),
        ({"format": 3}, "has format 3"),
        ({"shapes": None}, r"state\.json is damaged: wrong checksum"),
        ({"state": {"seconds": 2.0}}, r"state\.json is damaged: wrong checksum"),
        ({"sha256": None}, r"state\.json is damaged: wrong checksum"),
    ],
)
def test_verify_refuses_a_changed_state(tmp_path, change, message):
    path = write_checkpoint(tmp_path, 3, TENSORS, {"seconds": 1.0})
    record = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(record | change))
    with pytest.raises(CheckpointError, match=message):
        store.verify(path)


DAMAGES = {
    "empty": b"",
    "cut": b'{"format": 4, "st',
    "not UTF-8": b"\xff\xfe{}",
    "a list": b"[]",
    "nested": b"[" * 100_000,
    "zeros": bytes(500),
}


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_state_falls_back_to_the_older_checkpoint(tmp_path, content):
    folder = tmp_path / "checkpoints"
    write_checkpoint(folder, 1, TENSORS, {"best": None})
    (write_checkpoint(folder, 2, TENSORS, {"best": None}) / "state.json").write_bytes(content)
    checkpoint, problems = store.latest(folder)
    assert checkpoint.step == 1
    assert "step-00000002/state.json is damaged" in problems[0]
    warnings: list[str] = []
    assert store.load(tmp_path, warnings.append).step == 1
    assert "step-00000002/state.json is damaged" in warnings[0]


def test_no_change_of_a_single_byte_of_a_state_goes_unnoticed(tmp_path):
    path = write_checkpoint(tmp_path, 1, {"model": {"weight": torch.ones(1)}}, {"best": {"step": 1, "score": 0.5}})
    content = (path / "state.json").read_bytes()
    original = store.verify(path)
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1
        (path / "state.json").write_bytes(bytes(changed))
        try:
            assert store.verify(path) == original, position  # white space alone
        except CheckpointError:
            continue


def test_a_damaged_best_checkpoint_falls_back_to_the_newest_with_a_warning(tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        write_checkpoint(folder, step, TENSORS, {"best": {"step": 1, "score": 0.5}})
    flip_last_byte(step_folder(folder, 1) / SHARD)
    assert store.load(tmp_path).step == 3
    assert (
        f"step-00000001/{SHARD} is damaged: wrong checksum; the checkpoint of step 3 is used" in capsys.readouterr().err
    )
    flip_last_byte(step_folder(folder, 2) / SHARD)
    flip_last_byte(step_folder(folder, 3) / SHARD)
    with pytest.raises(CheckpointError, match=r"step-00000001/.*step-00000003/.*step-00000002/"):
        store.load(tmp_path)


def test_copies_beside_checkpoints_are_ignored_and_can_be_read(tmp_path):
    folder = tmp_path / "checkpoints"
    original = write_checkpoint(folder, 5, TENSORS, {"best": None})
    for name in ("step-00000005.bak", "step-00000009-copy", "step-7", "step-00000005 (1)"):
        shutil.copytree(original, folder / name)
    shutil.copytree(original, folder / "step-00000006")
    assert checkpoint_steps(folder) == [5, 6]
    checkpoint, problems = store.latest(folder)
    assert checkpoint.step == 5
    assert "is that of step 5" in problems[0]
    assert store.load(folder / "step-00000005.bak").step == 5
    store.retain(folder, keep=1, best=None)
    assert (folder / "step-00000005.bak").is_dir()


def test_a_checkpoint_that_cannot_be_opened_is_not_called_damaged(tmp_path):
    """EACCES is no damage: the run must not fall back to older weights."""
    write_checkpoint(tmp_path, 1, TENSORS, {})
    (write_checkpoint(tmp_path, 2, TENSORS, {}) / SHARD).chmod(0)
    tmp_path.chmod(0o755)
    code = (
        "import sys; from pathlib import Path; from pfcluster.checkpoint import store; store.latest(Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=bound_by_permissions,
    )
    assert "PermissionError: [Errno 13]" in done.stderr


def test_a_write_is_repeated_while_the_storage_fails(tmp_path, monkeypatch):
    """fsync fails with EIO in the kernel: no lie about a full disk, and nothing is left behind."""
    monkeypatch.setattr(os_errors, "DELAYS", (0.0, 0.0))
    with pytest.raises(OSError, match=r"cannot be written.*Input/output error") as raised:
        where_refused("fsync", errno.EIO, lambda: write_checkpoint(tmp_path, 1, TENSORS, {}))
    assert raised.value.errno == errno.EIO
    assert list(tmp_path.iterdir()) == []


def test_retain_keeps_the_newest_and_the_best(tmp_path):
    for step in range(1, 7):
        write_checkpoint(tmp_path, step, {"model": {"weight": torch.ones(1)}}, {})
    store.retain(tmp_path, keep=2, best=3)
    assert checkpoint_steps(tmp_path) == [3, 5, 6]


def test_manager_removes_incomplete_checkpoints(tmp_path):
    (tmp_path / ".step-00000009.tmp").mkdir()
    write_checkpoint(tmp_path, 10, TENSORS, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]


def test_find_selects_the_best_checkpoint_else_the_newest(tmp_path):
    folder = tmp_path / "checkpoints"
    write_checkpoint(folder, 1, TENSORS, {})
    newest = write_checkpoint(folder, 2, TENSORS, {"best": None})
    assert store.find(tmp_path) == newest
    write_checkpoint(folder, 3, TENSORS, {"best": {"step": 1, "score": 0.5}})
    assert store.find(tmp_path) == step_folder(folder, 1)
    assert store.find(newest) == newest
    with pytest.raises(CheckpointError, match="neither a run"):
        store.find(tmp_path / "nothing")


def test_shards_are_read_under_another_layout(tmp_path):
    """A 5 x 7 tensor written as three uneven shards, read as two others."""
    tensor = torch.arange(35.0)
    for rank, (start, end) in enumerate([(0, 11), (11, 12), (12, 35)]):
        folder = tmp_path / str(rank)
        dcp.write({"model/weight": TensorShard(tensor[start:end], start, (5, 7))}, folder, lambda names: None, None)
        (folder / SHARD).rename(tmp_path / SHARD.replace("00001-model", f"{rank + 1:05}-model"))
    for start, end in [(0, 20), (20, 35)]:
        values = torch.zeros(end - start)
        dcp.read({"model/weight": TensorShard(values, start, (5, 7))}, tmp_path)
        assert torch.equal(values, tensor[start:end])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [({"model/bias": (3,)}, "has no model/bias"), ({"model/weight": (4,)}, "has 6 elements, expected 4")],
)
def test_reading_into_another_model_names_the_tensor(tmp_path, shapes, message):
    write_checkpoint(tmp_path, 1, TENSORS, {})
    checkpoint, _ = store.latest(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read_into({key: unsharded(torch.zeros(shape)) for key, shape in shapes.items()})


def test_asynchronous_save_writes_a_copy_and_completes_later(tmp_path, monkeypatch):
    may_commit = threading.Event()
    commit = store.commit
    monkeypatch.setattr(store, "commit", lambda *args: (may_commit.wait(60), commit(*args)))
    manager = CheckpointManager(tmp_path, World(0, 1, torch.device("cpu")), keep=2, asynchronous=True, timeout=60)
    weight = torch.ones(4)
    manager.save(1, {"model/weight": unsharded(weight)}, {"model/weight": (4,)}, {}, None)
    weight.zero_()
    assert checkpoint_steps(tmp_path) == []
    may_commit.set()
    manager.wait()
    assert store.load(step_folder(tmp_path, 1)).tensors()["model"]["weight"].tolist() == [1, 1, 1, 1]


def test_a_checkpoint_is_complete_though_a_stale_listing_lacks_its_files(tmp_path, monkeypatch):
    """NFS caches a listing for half a minute, in which another machine's files are missing."""
    with monkeypatch.context() as patch:
        patch.setattr(Path, "glob", lambda path, pattern: iter(()))
        patch.setattr(Path, "iterdir", lambda path: iter(()))
        path = write_checkpoint(tmp_path, 1, TENSORS, {})
    assert list(json.loads((path / "state.json").read_text())["files"]) == [SHARD]
    assert store.latest(tmp_path)[0].step == 1


def test_a_failed_write_raises_and_leaves_no_files(tmp_path, monkeypatch):
    def fail(*args: object) -> None:
        raise OSError("the disk is gone")

    write_checkpoint(tmp_path, 1, TENSORS, {})
    monkeypatch.setattr(store, "commit", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        write_checkpoint(tmp_path, 2, TENSORS, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("averaged", [False, True])
def test_consolidate_writes_the_evaluated_weights_to_one_file(tmp_path, averaged):
    average = {"model_ema": {name: value + 1 for name, value in TENSORS["model"].items()}} if averaged else {}
    write_checkpoint(tmp_path / "checkpoints", 4, TENSORS | average, {})
    store.consolidate(tmp_path, tmp_path / "out" / "weights.safetensors")
    values = load_file(tmp_path / "out" / "weights.safetensors")
    assert values.keys() == {"weight", "count"}
    assert torch.equal(values["weight"], TENSORS["model"]["weight"] + averaged)
    store.consolidate(tmp_path, tmp_path / "all.safetensors", everything=True)
    assert "model_optimizer/weight/exp_avg" in load_file(tmp_path / "all.safetensors")


def test_a_run_whose_best_checkpoint_is_damaged_finishes_with_a_warning(tmp_path):
    tiny = config("finetune", epochs=4)
    best = run(tiny, tmp_path, "a test")["best"]["step"]
    (tmp_path / "result.json").unlink()
    flip_last_byte(step_folder(tmp_path / "checkpoints", best) / SHARD)
    assert run(tiny, tmp_path, "a test")["status"] == "finished"
    assert f"step-{best:08d}/{SHARD} is damaged: wrong checksum" in (tmp_path / "warnings.log").read_text()


def test_a_full_disk_is_said_to_be_that_and_leaves_the_older_checkpoint(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        write_checkpoint(folder, 1, TENSORS, {})
        with pytest.raises(OSError, match="No space left on device") as raised:
            write_checkpoint(folder, 2, {"model": {"weight": torch.zeros(400_000)}}, {})
        assert os_errors.is_full(raised.value)
        assert [path.name for path in folder.iterdir()] == ["step-00000001"]
        assert store.latest(folder)[0].step == 1
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
