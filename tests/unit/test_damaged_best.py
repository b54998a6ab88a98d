"""A damaged best checkpoint: what is evaluated, shown and loaded in its place is named as what it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pfcluster.checkpoint import store
from pfcluster.config import CheckpointConfig, EvaluateConfig
from pfcluster.inference.run_figures import run_figures
from pfcluster.runs.folder import CHECKPOINT_FILE, CHECKPOINTS_DIR, WARNINGS_FILE, step_folder
from pfcluster.runs.run_inputs import read_inputs
from pfcluster.system.atomic_files import sha256
from pfcluster.training import run, selection
from tests import tiny


def flip_a_bit(folder: Path, step: int) -> None:
    """Damage the checkpoint of a step, or restore it."""
    (shard,) = step_folder(folder / CHECKPOINTS_DIR, step).glob("*.safetensors")
    data = bytearray(shard.read_bytes())
    data[-9] ^= 1
    shard.write_bytes(data)


@pytest.fixture
def damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of 12 steps with its best checkpoint, that of step 6, damaged; not yet measured on test."""
    monkeypatch.setattr(selection, "is_better", lambda score, best: False)
    folder = tmp_path / "seed-0"
    result = run(tiny.config("finetune", **SETTINGS), folder)
    assert (result["best"]["step"], result["evaluated_step"]) == (6, 6)
    flip_a_bit(folder, 6)
    return folder


SETTINGS = {
    "checkpoint": CheckpointConfig(every_steps=6, keep=9),
    "evaluate": EvaluateConfig(every_epochs=1.0, final_split="validation"),
}


def test_the_figures_are_those_of_the_checkpoint_that_was_evaluated(damaged: Path) -> None:
    config = tiny.config("finetune", **SETTINGS)
    result = run(replace(config, evaluate=replace(config.evaluate, final_split="test")), damaged)
    assert (result["best"]["step"], result["evaluated_step"]) == (6, 12)
    classes = tuple(result["dataset"]["classes"])
    assert run_figures(damaged, result, classes, 12).figures is not None
    flip_a_bit(damaged, 6)
    assert store.load(damaged).step == 6
    shown = run_figures(damaged, result, classes, 6)
    assert shown.figures is None
    assert "checkpoint of step 12" in str(shown.no_figures)


def test_a_run_that_starts_from_it_records_the_checkpoint_that_it_loads(damaged: Path, tmp_path: Path) -> None:
    config = tiny.config("finetune", max_steps=1)
    run(replace(config, model=replace(config.model, init=str(damaged))), tmp_path / "later")
    recorded = read_inputs(tmp_path / "later")
    assert recorded is not None
    assert recorded.weights["model.init"] == sha256(step_folder(damaged / CHECKPOINTS_DIR, 12) / CHECKPOINT_FILE)
    warnings = (tmp_path / "later" / WARNINGS_FILE).read_text()
    assert "model.init: " in warnings
    assert "the checkpoint of step 12 is used instead" in warnings
