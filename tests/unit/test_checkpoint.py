"""Checkpoints are whole or not there, and damage is found."""

from __future__ import annotations

import json

import pytest
import torch

from pfcluster import checkpoint
from pfcluster.checkpoint import CheckpointError

TENSORS = {"model": {"weight": torch.arange(6.0).view(2, 3)}, "model_optimizer": {"weight/exp_avg": torch.ones(2, 3)}}


def test_what_is_saved_comes_back(tmp_path):
    checkpoint.save(tmp_path, 7, TENSORS, {"best": None, "note": [1, 2]})
    found, problems = checkpoint.load_latest(tmp_path)
    assert (found.step, found.state, problems) == (7, {"best": None, "note": [1, 2]}, [])
    assert torch.equal(found.tensors["model"]["weight"], TENSORS["model"]["weight"])
    assert not list(tmp_path.glob(".*"))


def test_no_checkpoint_is_no_error(tmp_path):
    assert checkpoint.load_latest(tmp_path / "absent") == (None, [])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_a_damaged_newest_checkpoint_is_passed_over_and_named(tmp_path):
    checkpoint.save(tmp_path, 1, TENSORS, {})
    flip_a_byte(checkpoint.save(tmp_path, 2, TENSORS, {}) / "model.safetensors")
    found, problems = checkpoint.load_latest(tmp_path)
    assert found.step == 1
    assert "step-00000002/model.safetensors is damaged" in problems[0]


def test_where_all_are_damaged_nobody_starts_over_silently(tmp_path):
    (checkpoint.save(tmp_path, 1, TENSORS, {}) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        checkpoint.load_latest(tmp_path)


def test_a_folder_without_its_record_does_not_count(tmp_path):
    (checkpoint.save(tmp_path, 3, TENSORS, {}) / "state.json").unlink()
    assert checkpoint.steps(tmp_path) == []


def test_another_format_is_refused(tmp_path):
    path = checkpoint.save(tmp_path, 3, TENSORS, {})
    record = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.load(path)


def test_retention_keeps_the_newest_and_the_best(tmp_path):
    for step in range(1, 7):
        checkpoint.save(tmp_path, step, TENSORS, {})
    (tmp_path / ".step-00000009.1.tmp").mkdir()
    checkpoint.retain(tmp_path, keep=2, best=3)
    assert checkpoint.steps(tmp_path) == [3, 5, 6]
    assert not list(tmp_path.glob(".*"))


def test_a_run_stands_for_its_best_checkpoint_or_its_newest(tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoint.save(folder, 1, TENSORS, {})
    newest = checkpoint.save(folder, 2, TENSORS, {"best": None})
    assert checkpoint.find(tmp_path) == newest
    checkpoint.save(folder, 3, TENSORS, {"best": {"step": 1, "score": 0.5}})
    assert checkpoint.find(tmp_path) == checkpoint.step_folder(folder, 1)
    assert checkpoint.find(newest) == newest
    with pytest.raises(CheckpointError, match="neither a run"):
        checkpoint.find(tmp_path / "nothing")
