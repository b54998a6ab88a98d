"""A gradient that is not finite ends a run alike on any layout, though it is read a step late."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pfcluster.config import CheckpointConfig
from pfcluster.config.io import to_json
from tests import tiny
from tests.distributed.ranks import start

pytestmark = pytest.mark.slow


def test_ranks_stop_at_the_same_step_with_finite_weights(tmp_path: Path) -> None:
    base = tiny.config("finetune", checkpoint=CheckpointConfig(every_steps=100))
    failures = []
    for backend, ranks in (("ddp", 2), ("fsdp2", 2)):
        config = replace(
            base,
            optim=replace(base.optim, lr=1e30, warmup_steps=0, ema=0.5),
            engine=replace(base.engine, backend=backend, log_every=100),
        )
        folder = tmp_path / f"{backend}-{ranks}"
        (tmp_path / f"{folder.name}.json").write_text(to_json(config))
        arguments = ["0", "SIGKILL", "0", str(tmp_path / f"{folder.name}.json"), str(folder)]
        workers = start("lost_worker.py", arguments, ranks)
        said = [worker.communicate(timeout=300)[0] for worker in workers]
        assert [worker.returncode for worker in workers] == [1] * ranks, "\n".join(said)
        assert all("Nothing was trained on this batch" in each for each in said)
        failures.append(json.loads((folder / "failure.json").read_text()))
        assert all(value.isfinite().all() for value in tiny.final_weights(folder).values())
    assert all(failure["step"] == failures[0]["step"] for failure in failures)
    assert all(failure["checkpoint_step"] == failures[0]["step"] for failure in failures)
