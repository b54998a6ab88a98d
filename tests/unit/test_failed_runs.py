"""Runs that end with an error: what they keep of what they have trained, and how they meet a storage that fails."""

from __future__ import annotations

import threading

import pytest

from pfcluster.checkpoint import dcp
from pfcluster.checkpoint.manager import CheckpointManager
from pfcluster.config import CheckpointConfig, EvaluateConfig
from pfcluster.data.types import DataError
from pfcluster.runs.folder import CHECKPOINTS_DIR, checkpoint_steps
from pfcluster.training import run
from pfcluster.training.finetune import FinetuneObjective
from tests import tiny

STEP = FinetuneObjective.step


def test_a_checkpoint_that_is_being_written_when_a_run_fails_is_kept(tmp_path, monkeypatch):
    run_has_failed = threading.Event()
    write, finish = dcp.write, CheckpointManager.finish

    def write_later(*args):
        assert run_has_failed.wait(60)
        write(*args)

    def finish_after_failure(manager):
        run_has_failed.set()
        finish(manager)

    def fail_at_step_8(objective, batches, step):
        if step == 8:
            raise DataError("61 of 6000 samples cannot be read")
        return STEP(objective, batches, step)

    monkeypatch.setattr(dcp, "write", write_later)
    monkeypatch.setattr(CheckpointManager, "finish", finish_after_failure)
    monkeypatch.setattr(FinetuneObjective, "step", fail_at_step_8)
    config = tiny.config(
        "finetune", checkpoint=CheckpointConfig(every_steps=7), evaluate=EvaluateConfig(every_epochs=2.0)
    )
    with pytest.raises(DataError, match="61 of 6000"):
        run(config, tmp_path)
    assert checkpoint_steps(tmp_path / CHECKPOINTS_DIR) == [7]


def test_a_failed_write_does_not_hide_the_error_that_ends_the_run(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("the disk is gone")

    def fail_at_step_8(objective, batches, step):
        if step == 8:
            raise DataError("61 of 6000 samples cannot be read")
        return STEP(objective, batches, step)

    monkeypatch.setattr(dcp, "write", fail)
    monkeypatch.setattr(FinetuneObjective, "step", fail_at_step_8)
    config = tiny.config(
        "finetune", checkpoint=CheckpointConfig(every_steps=7), evaluate=EvaluateConfig(every_epochs=2.0)
    )
    with pytest.raises(DataError, match="61 of 6000"):
        run(config, tmp_path)
    assert checkpoint_steps(tmp_path / CHECKPOINTS_DIR) == []
