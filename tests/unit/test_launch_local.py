"""What the launcher shows of running jobs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pfcluster.config import RunConfig
from pfcluster.launch.errors import LaunchError
from pfcluster.launch.local import run_plan
from pfcluster.launch.plan import Command, Plan, Stage, TrainRun
from pfcluster.launch.processes import RunProcesses
from pfcluster.runs.atomic_files import write_atomically
from tests.tiny import config


def lines(steps: range, **more: float) -> str:
    return "".join(json.dumps({"split": "train", "step": step, "epoch": 0.0, **more}) + "\n" for step in steps)


def test_metrics_are_followed_also_where_a_run_that_goes_on_replaces_their_file(tmp_path: Path) -> None:
    running = RunProcesses(TrainRun(RunConfig(), tmp_path), [], [])
    path = tmp_path / "metrics.jsonl"
    write_atomically(path, lines(range(1, 5), loss=1.0))
    running.read_metrics()
    assert (running.step, running.values["loss"]) == (4, 1.0)
    write_atomically(path, lines(range(1, 3), loss=1.0))
    with open(path, "a") as file:
        file.write(lines(range(3, 9), loss=0.123456789) + '{"split": "tr')
    running.read_metrics()
    assert (running.step, running.values["loss"]) == (8, 0.123456789)


def plan(folder: Path, *, continue_on_failure: bool) -> Plan:
    """One command that fails, two that wait for it, one of them anyway, and one beside it."""

    def call(name: str, code: str) -> Command:
        return Command(
            name, folder / name, ("-n1", "-r1", f"open({str(folder / name)!r}, 'w'); {code}"), module="timeit"
        )

    def group(name: str, code: str = "pass", **options: object) -> Stage:
        return Stage(name, (call(name, code),), **options)  # type: ignore[arg-type]

    groups = (
        group("broken", "raise ValueError"),
        group("beside"),
        group("behind", after=("broken",)),
        group("further", after=("behind",)),
        group("table", after=("further", "beside"), always_run=True),
    )
    return Plan("plan", folder, groups, "the command", continue_on_failure=continue_on_failure)


def started(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_tolerant_plan_runs_what_no_failure_stands_before_and_then_tells_all(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"(?s)1 of the plan.s tasks failed.*broken.*behind, further") as raised:
        run_plan(plan(tmp_path, continue_on_failure=True), processes=1, at_once=1)
    assert raised.value.code == 1
    assert started(tmp_path) == {"broken", "beside", "table"}


def test_another_plan_ends_at_the_first_failure(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="broken ended with 1"):
        run_plan(plan(tmp_path, continue_on_failure=False), processes=1, at_once=1)
    assert started(tmp_path) == {"broken"}


def test_runs_that_fail_do_not_end_the_runs_beside_them(tmp_path: Path) -> None:
    good = config("finetune", max_steps=1)
    bad = replace(good, name="bad", data=replace(good.data, shards=str(tmp_path / "nowhere")))
    jobs = [TrainRun(each, tmp_path / each.name, study="faces") for each in (bad, good)]
    groups = tuple(Stage(job.config.name, (job,)) for job in jobs)
    with pytest.raises(LaunchError, match=r"(?s)1 of the plan.*faces bad seed 0: .*nowhere"):
        run_plan(Plan("plan", tmp_path, groups, "", continue_on_failure=True), processes=1, at_once=1)
    assert jobs[1].finished()
