"""Runs that end with an error: what they keep of what they have trained, and how they meet a storage that fails."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from pfcluster.checkpoint import dcp
from pfcluster.checkpoint.manager import CheckpointManager
from pfcluster.config import CheckpointConfig, EvaluateConfig
from pfcluster.config.io import to_json
from pfcluster.data.types import DataError
from pfcluster.launch.attempts import FINAL
from pfcluster.launch.worker import work
from pfcluster.runs.folder import CHECKPOINTS_DIR, checkpoint_steps
from pfcluster.system import os_errors
from pfcluster.training import run
from pfcluster.training.finetune import FinetuneObjective
from tests import tiny

STEP = FinetuneObjective.step


def fail_at_step_8(folder, monkeypatch):
    """A run that saves a checkpoint at step 7 and cannot read its data at step 8."""

    def step_until_8(objective, batches, step):
        if step == 8:
            raise DataError("61 of 6000 samples cannot be read")
        return STEP(objective, batches, step)

    monkeypatch.setattr(FinetuneObjective, "step", step_until_8)
    config = tiny.config(
        "finetune", checkpoint=CheckpointConfig(every_steps=7), evaluate=EvaluateConfig(every_epochs=2.0)
    )
    with pytest.raises(DataError, match="61 of 6000"):
        run(config, folder)


def test_a_checkpoint_that_is_being_written_when_a_run_fails_is_kept(tmp_path, monkeypatch):
    run_has_failed = threading.Event()
    write, finish = dcp.write, CheckpointManager.finish

    def write_later(*args):
        assert run_has_failed.wait(60)
        write(*args)

    def finish_after_failure(manager):
        run_has_failed.set()
        finish(manager)

    monkeypatch.setattr(dcp, "write", write_later)
    monkeypatch.setattr(CheckpointManager, "finish", finish_after_failure)
    fail_at_step_8(tmp_path, monkeypatch)
    assert checkpoint_steps(tmp_path / CHECKPOINTS_DIR) == [7]


def test_a_failed_write_does_not_hide_the_error_that_ends_the_run(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(dcp, "write", fail)
    fail_at_step_8(tmp_path, monkeypatch)
    assert checkpoint_steps(tmp_path / CHECKPOINTS_DIR) == []


@pytest.mark.parametrize("failures", [1, 9])
@pytest.mark.parametrize("name", ["config.json", "early_stop.json", "inputs.json"])
def test_a_small_file_that_the_storage_does_not_deliver_is_read_again(tmp_path, monkeypatch, name, failures):
    """As a file server that restarts does: the run goes on, or fails as one that its launcher starts again."""
    monkeypatch.setattr(os_errors, "DELAYS", (0.0, 0.0, 0.0))
    (tmp_path / "config.json").write_text(to_json(tiny.config("finetune", max_steps=4)))
    read, left = Path.read_bytes, [failures]

    def fail(path):
        if path.name == name and left[0] > 0:
            left[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    status = work(tmp_path / "config.json", tmp_path / "run", None, 1)
    assert status.kind == (None if failures == 1 else "storage"), status
    if failures > 1:
        assert name in status.error
        assert status.kind not in FINAL
