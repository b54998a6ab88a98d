"""What the launcher shows of running jobs."""

from __future__ import annotations

import json
from pathlib import Path

from pfcluster.config import RunConfig
from pfcluster.files import write_atomically
from pfcluster.launch.plan import Job
from pfcluster.launch.processes import Running


def lines(steps: range, **more: float) -> str:
    return "".join(json.dumps({"split": "train", "step": step, "epoch": 0.0, **more}) + "\n" for step in steps)


def test_metrics_are_followed_also_where_a_run_that_goes_on_replaces_their_file(tmp_path: Path) -> None:
    running = Running(Job(RunConfig(), tmp_path), [], [])
    path = tmp_path / "metrics.jsonl"
    write_atomically(path, lines(range(1, 5), loss=1.0))
    running.read_metrics()
    assert (running.step, running.values["loss"]) == (4, 1.0)
    write_atomically(path, lines(range(1, 3), loss=1.0))
    with open(path, "a") as file:
        file.write(lines(range(3, 9), loss=0.123456789) + '{"split": "tr')
    running.read_metrics()
    assert (running.step, running.values["loss"]) == (8, 0.123456789)
