"""Records of SLURM jobs for tests: failed attempts, plans, a cluster that is never asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from pfcluster.launch.attempts import Attempt
from pfcluster.launch.options import Cluster
from pfcluster.launch.plan_record import PLAN_FILE
from pfcluster.launch.site import Site

CLUSTER = Cluster("slurm", "a test", Site(), nodes=1, per_node=1, processes=1, retries=2, wait=False)


def failed(number: int, **changes: object) -> Attempt:
    base = Attempt(number, "7", number - 1, 1, "n1", "t", outcome="failed", kind="killed", error="Killed")
    return replace(base, **changes)  # type: ignore[arg-type]


def _one_per_folder(stage: dict[str, object]) -> dict[str, object]:
    folders = stage["folders"]
    assert isinstance(folders, list)
    return {"labels": folders, "outputs": [None] * len(folders)}


def write_plan_file(folder: Path, stages: dict[str, dict[str, object]]) -> None:
    base = {"after": [], "always_run": False, "labels": [], "folders": [], "outputs": [], "trains": True}
    record = {"name": "x", "command": "c", "launcher": "slurm", "started": "t", "host": "h", "pid": 0}
    record["stages"] = {name: base | _one_per_folder(stage) | stage for name, stage in stages.items()}
    (folder / PLAN_FILE).write_text(json.dumps(record))
