"""The states of SLURM tasks, and `pfcluster status` of plans, without a cluster."""

from __future__ import annotations

import math

import pytest

from pfcluster.cli.main import main
from pfcluster.config import RunConfig
from pfcluster.launch import attempts, slurm_client, status
from pfcluster.launch.job_record import JobRecord, write_job
from pfcluster.launch.plan import TrainRun
from pfcluster.launch.plan_record import PLAN_FILE
from pfcluster.launch.slurm.job_state import slurm_task
from pfcluster.launch.slurm_client import JobInfo, SlurmError
from pfcluster.runs.folder import write_config
from pfcluster.sweep.slurm import SlurmExecutor
from tests.slurm_records import CLUSTER, failed, write_plan_file
from tests.tiny import config


@pytest.mark.parametrize(("job", "of_task"), [("1230", "1230"), ("1230_3", "1233")])
def test_a_cancelled_task_is_cancelled_also_in_an_array(tmp_path, job, of_task):
    """A task of an array has a job id of its own, which its attempt records."""
    write_job(tmp_path, JobRecord(job, 1))
    cancelled = JobInfo(job, "CANCELLED")
    begun = attempts.begin(tmp_path, of_task, 0, "n1")
    attempts.end(tmp_path, begun, "cancelled")
    assert slurm_task("s", "run", tmp_path, cancelled, True).state == "cancelled"
    attempts.end(tmp_path, begun, "failed", kind="bug", error="boom", next="requeued")
    assert slurm_task("s", "run", tmp_path, cancelled, True).state == "cancelled", "while it was queued again"
    attempts.end(tmp_path, begun, "failed", kind="bug", error="boom", next=f"submitted again as {job}")
    assert slurm_task("s", "run", tmp_path, cancelled, True).state == "not run"
    write_job(tmp_path, JobRecord(job, 2))
    assert slurm_task("s", "run", tmp_path, cancelled, True).state == "not run", "another submission"


def test_hopeless_and_alive_states():
    assert JobInfo("1", "PENDING", "DependencyNeverSatisfied").hopeless
    assert JobInfo("1", "COMPLETING").alive
    assert not JobInfo("1", "NODE_FAIL").alive


def test_a_failed_attempt_that_is_followed_by_another_is_not_the_end_while_slurm_does_not_answer(tmp_path):
    write_job(tmp_path, JobRecord("7", 1))
    attempts.write(tmp_path, failed(1, next="requeued"))
    assert slurm_task("s", "run", tmp_path, None, False).state == "unknown"
    attempts.write(tmp_path, failed(1, next="given up: it failed twice in the same way"))
    assert slurm_task("s", "run", tmp_path, None, False).state == "failed"


@pytest.mark.parametrize(
    ("follows", "submission", "is_reported"),
    [
        ("given up: another attempt would fail in the same way", 1, True),
        (f"given up: neither requeued (no) nor submitted again (no); {attempts.CONTINUES}", 1, False),
        ("given up: another attempt would fail in the same way", 2, False),
        ("requeued", 1, False),
    ],
)
def test_a_run_that_was_given_up_while_no_driver_was_there_is_reported(tmp_path, follows, submission, is_reported):
    """Without asking SLURM, which is not there."""
    run = TrainRun(config("finetune"), tmp_path / "run")
    write_job(run.folder, JobRecord("7", submission))
    attempts.write(run.folder, failed(1, kind="training", error="not finite", next=follows))
    executor = SlurmExecutor(tmp_path, "sweep", CLUSTER, "", _next_try=math.inf)
    executor.start([run])
    ended = [(ended.folder, status.kind, status.error) for ended, status in executor.poll()]
    assert ended == ([(run.folder, "training", "not finite")] if is_reported else [])
    assert executor.poll() == []
    retrying = SlurmExecutor(tmp_path, "s", CLUSTER, "", retry_failed=True, _next_try=math.inf)
    retrying.start([run])
    assert retrying.poll() == []


def test_status_without_slurm_reads_the_folders(tmp_path, monkeypatch):
    def no_slurm(ids, **_):
        raise SlurmError("no squeue on this machine's PATH")

    histories = {
        "a": [failed(1, outcome="finished")],
        "b": [failed(1, kind="user", error="no such shard", next="given up: it would fail again")],
        "c": [failed(1, outcome="running")],
        "d": [],
    }
    for name, history in histories.items():
        write_job(tmp_path / name, JobRecord("7", 1))
        write_config(tmp_path / name, RunConfig())
        for attempt in history:
            attempts.write(tmp_path / name, attempt)
    folders = [str(tmp_path / name) for name in histories]
    write_plan_file(tmp_path, {"s": {"labels": list(histories), "folders": folders, "outputs": [None] * 4}})
    tasks = [slurm_task("s", name, tmp_path / name, None, True) for name in histories]
    assert [task.state for task in tasks] == ["finished", "failed", "lost", "not run"]
    assert tasks[1].error == "no such shard"
    assert "SLURM has forgotten it; the same command continues it" in tasks[2].reason
    monkeypatch.setattr(slurm_client, "job_states", no_slurm)
    plan = status.overview(tmp_path)
    assert "the states are those recorded in the folders" in plan.warning
    assert [task.state for task in plan.tasks] == ["finished", "failed", "unknown", "not started"]
    assert status.find_plan("x", tmp_path) == tmp_path
    with pytest.raises(ValueError, match="nothing was started as y; there is"):
        status.find_plan("y", tmp_path)


def test_one_damaged_plan_does_not_hide_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        write_plan_file(tmp_path / "runs" / name, {"s": {"folders": [f"/none/{name}"]}})
    for damaged, words in (
        (tmp_path / "runs/b" / PLAN_FILE, "runs/b holds no readable plan.json"),
        (tmp_path / "task/job.json", "job.json"),
    ):
        write_plan_file(tmp_path / "runs/b", {"s": {"folders": [str(tmp_path / "task")]}})
        damaged.parent.mkdir(exist_ok=True)
        damaged.write_text("{")
        assert main(["status"]) == 1
        shown = capsys.readouterr().out
        assert words in shown
        assert shown.count("/none") == 2
        assert main(["status", "b"]) == 2


def test_a_plan_is_found_by_the_folder_that_holds_it(tmp_path):
    """`--output study` puts the plan of one command into study/scratch: `status study` finds it."""
    stages = {"s": {"labels": [], "folders": [], "outputs": []}}
    study = tmp_path / "study"
    (study / "scratch").mkdir(parents=True)
    write_plan_file(study / "scratch", stages)
    assert status.find_plan(str(study)) == study / "scratch"
    (study / "mae-vit").mkdir()
    write_plan_file(study / "mae-vit", stages)
    with pytest.raises(ValueError, match=r"study holds several plans: .*name one of them"):
        status.find_plan(str(study))
