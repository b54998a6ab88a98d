"""Parsing of SLURM's output, and what follows when a job ends. The output is that of SLURM 22.05."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pfcluster.config import RunConfig
from pfcluster.launch import attempts, slurm_client
from pfcluster.launch.attempts import Failure
from pfcluster.launch.job_record import JobRecord, write_job
from pfcluster.launch.plan import Plan, Stage, TrainRun
from pfcluster.launch.plan_record import PLAN_FILE
from pfcluster.launch.slurm import diagnosis, resubmit
from pfcluster.launch.slurm_client import SlurmError
from pfcluster.system import redaction
from tests.slurm_records import failed, write_plan_file

SCONTROL_LINE = (
    "JobId=31 ArrayJobId=30 ArrayTaskId=1 JobName=x UserId=root(0) JobState={state} Reason={reason} Dependency=(null)"
    " Requeue=1 Restarts={restarts} BatchFlag=1 Reboot=0 RunTime=00:00:03 EndTime=2026-11-25T13:30:44"
    " PreemptEligibleTime=2026-11-25T13:29:40 PreemptTime={preempted} ReqNodeList=(null) ExcNodeList=n4"
    " NodeList=n[1-2] BatchHost=n1"
)


@pytest.mark.parametrize(
    ("state", "reason", "restarts", "preempted", "cause"),
    [
        ("COMPLETING", "None", 0, "None", "cancelled"),  # scancel
        ("COMPLETING", "TimeLimit", 0, "None", "timed out"),
        ("TIMEOUT", "TimeLimit", 0, "None", "timed out"),
        ("COMPLETING", "TimeLimit", 1, "None", "requeued"),
        ("COMPLETING", "None", 1, "None", "requeued"),  # PreemptMode=REQUEUE, scontrol requeue
        ("COMPLETING", "None", 0, "2026-11-25T13:29:20", "preempted"),  # PreemptMode=CANCEL
        ("RUNNING", "None", 0, "2026-11-25T13:29:44", "warned"),  # GraceTime
        ("SIGNALING", "None", 0, "2026-11-25T13:29:44", "warned"),
        ("RUNNING", "None", 0, "None", "warned"),  # time limit
        ("PENDING", "None", 1, "None", "requeued"),
        ("CANCELLED", "None", 0, "None", "cancelled"),
    ],
)
def test_signal_cause_follows_the_job_record(state, reason, restarts, preempted, cause):
    line = SCONTROL_LINE.format(state=state, reason=reason, restarts=restarts, preempted=preempted)
    job = slurm_client.parse_job(line)
    assert (job.job, job.nodes) == ("30_1", "n[1-2]")
    assert slurm_client.signal_cause(job, 0) == cause


def test_signal_to_a_forgotten_job_is_a_cancellation():
    assert slurm_client.signal_cause(None, 0) == "cancelled"


def test_retries_count_failures_but_not_preemptions():
    history = [failed(1, outcome="preempted", kind=None, checkpoint_step=5), failed(2, step=9), failed(3, step=9)]
    assert attempts.reason_to_give_up(history, 2) is None
    assert attempts.reason_to_give_up([*history, failed(4)], 2) == "it failed 3 times (--retries 2)"
    assert attempts.reason_to_give_up([*history, failed(4, submission=2)], 2) is None, (
        "a new submission has its own retries"
    )


@pytest.mark.parametrize("kind", ["user", "training", "disk"])
def test_jobs_whose_failure_would_repeat_are_not_requeued(kind):
    assert (
        attempts.reason_to_give_up([failed(1, kind=kind, step=100)], 5) == "another attempt would fail in the same way"
    )


def test_bug_is_retried_once_and_only_after_progress():
    assert "before it trained a step" in attempts.reason_to_give_up([failed(1, kind="bug")], 5)
    later = failed(1, kind="bug", step=10, checkpoint_step=5)
    assert attempts.reason_to_give_up([later], 5) is None
    again = failed(2, kind="bug", from_step=5, step=10, checkpoint_step=5)
    assert attempts.reason_to_give_up([later, again], 5) == "it failed twice in the same way"
    assert attempts.reason_to_give_up([later, replace(again, checkpoint_step=8)], 5) is None
    assert attempts.reason_to_give_up([failed(1, kind="device")], 5) is None


def test_three_lost_attempts_without_progress_end_the_task():
    lost = [failed(number, outcome="lost", kind=None, from_step=5, checkpoint_step=5) for number in (1, 2, 3)]
    assert attempts.ended_repeatedly(lost)
    assert not attempts.ended_repeatedly(lost[1:])
    assert not attempts.ended_repeatedly([*lost[:2], replace(lost[2], checkpoint_step=6)])
    assert attempts.ended_repeatedly([*lost[:2], replace(lost[2], outcome="time limit")])
    assert not attempts.ended_repeatedly([*lost[:2], replace(lost[2], outcome="preempted")])


def test_next_attempt_closes_one_without_an_end(tmp_path):
    write_job(tmp_path, JobRecord("7", 1))
    attempts.begin(tmp_path, "7", 0, "n1")
    (tmp_path / "checkpoints/step-00000040").mkdir(parents=True)
    (tmp_path / "checkpoints/step-00000040/state.json").touch()
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"split": "train", "step": 47}) + '\n{"split": "tra')
    second = attempts.begin(tmp_path, "7", 1, "n2")
    first = attempts.read(tmp_path)[0]
    assert (first.outcome, first.step, first.checkpoint_step) == ("lost", 47, 40)
    assert (second.number, second.from_step) == (2, 40)


def write_batch_log(folder: Path, text: str) -> None:
    scripts = folder / "scripts"
    scripts.mkdir()
    (scripts / "7_0_log.out").write_text(text)
    write_job(folder, JobRecord("7", 1, scripts=str(scripts)))


def test_first_dead_rank_is_taken_from_the_output_of_this_attempt(tmp_path):
    mark = diagnosis.ATTEMPT_MARK
    write_batch_log(
        tmp_path,
        f"{mark} 7, restart 0\nsrun: error: n4: task 3: Killed\n{mark} 7, restart 1\n"
        "srun: error: n2: task 1: Out Of Memory\nsrun: error: n1: task 0: Killed\n",
    )
    failure = diagnosis.explain(tmp_path, failed(1), "7", 137)
    assert (failure["kind"], failure["node"]) == ("bug", "n2"), "no other node has more memory"
    assert "rank 1 on n2: Out Of Memory" in failure["error"]


def test_error_of_a_rank_takes_precedence_over_srun(tmp_path):
    write_batch_log(tmp_path, f"{diagnosis.ATTEMPT_MARK} 7\nsrun: error: n2: task 1: Exited with exit code 2\n")
    attempts.write_failure(tmp_path, 1, Failure(1, "n2", "lost rank", "rank 0 is gone"))
    attempts.write_failure(tmp_path, 1, Failure(0, "n1", "user", "no such shard"))
    assert diagnosis.explain(tmp_path, failed(1), "7", 2) == {"kind": "user", "error": "no such shard", "node": "n1"}


def test_waiting_folders_follow_stages_transitively(tmp_path):
    stages = {
        "mae": {"folders": ["/m"]},
        "pf-vit": {"after": ["mae", "judge"], "folders": ["/p0", "/p1"]},
        "report": {"after": ["pf-vit"], "folders": ["/r"]},
        "table": {"after": ["pf-vit"], "folders": ["/t"], "always_run": True},
        "scratch": {"folders": ["/s"]},
    }
    write_plan_file(tmp_path, stages)
    record = JobRecord("7", plan_folder=str(tmp_path), stage="mae")
    assert resubmit.waiting_folders(Path("/m"), record) == [Path("/p0"), Path("/p1")]
    assert resubmit.waiting_folders(Path("/m"), record, transitive=True) == [Path("/p0"), Path("/p1"), Path("/r")]
    assert resubmit.waiting_folders(Path("/p0"), replace(record, stage="pf-vit")) == [Path("/r"), Path("/t")]


def test_only_runs_of_the_same_seed_wait_for_a_run(tmp_path):
    stages = {
        "mae": {"folders": ["/m"]},
        "mae-vit": {"after": ["mae"], "folders": ["/v0", "/v1"]},
        "pf-vit": {"after": ["judge"], "same_seed": ["mae-vit"], "folders": ["/p0", "/p1"]},
        "report": {"after": ["mae-vit", "pf-vit"], "folders": ["/r"], "always_run": True},
    }
    write_plan_file(tmp_path, stages)
    record = JobRecord("7", plan_folder=str(tmp_path), stage="mae-vit")
    assert resubmit.waiting_folders(Path("/v1"), record) == [Path("/p1"), Path("/r")]
    assert resubmit.waiting_folders(Path("/v1"), record, transitive=True) == [Path("/p1")]
    everything = [Path(folder) for folder in ("/v0", "/v1", "/p0", "/p1")]
    assert resubmit.waiting_folders(Path("/m"), replace(record, stage="mae"), transitive=True) == everything


def test_a_task_of_two_plans_waits_for_the_tasks_of_both(tmp_path):
    """`study --seeds 0`, then `study --seeds 1` while the first is queued: the report waits for both."""
    plans = [{name: {"folders": [f"/{name}{seed}"]} for name in ("mae-vit", "pf-vit")} for seed in (1, 0)]
    for stages in plans:
        stages["pf-vit"]["same_seed"] = ["mae-vit"]
        stages["report"] = {"after": ["mae-vit", "pf-vit"], "folders": ["/r"]}
    write_plan_file(tmp_path, plans[1])
    earlier = json.loads((tmp_path / PLAN_FILE).read_text())
    write_plan_file(tmp_path, plans[0])
    newest = json.loads((tmp_path / PLAN_FILE).read_text())
    (tmp_path / PLAN_FILE).write_text(json.dumps(newest | {"also": [earlier]}))
    record = JobRecord("7", plan_folder=str(tmp_path), stage="mae-vit")
    assert resubmit.waiting_folders(Path("/mae-vit1"), record) == [Path("/pf-vit1"), Path("/r")]
    assert resubmit.waiting_folders(Path("/mae-vit0"), record, transitive=True) == [Path("/pf-vit0"), Path("/r")]


def test_waves_follow_the_order_of_stages(tmp_path):
    def stage(name: str, *after: str) -> Stage:
        return Stage(name, (TrainRun(RunConfig(name=name), tmp_path / name),), after)

    stages = (stage("mae"), stage("judge"), stage("pf-vit", "mae", "judge"), stage("scratch"), stage("end", "pf-vit"))
    waves = [[each.name for each in wave] for wave in Plan("p", tmp_path, stages, "c").waves()]
    assert waves == [["mae", "judge", "scratch"], ["pf-vit"], ["end"]]


def test_stage_that_waits_seed_by_seed_is_in_the_same_wave(tmp_path):
    def stage(name: str, *after: str, same_seed: tuple[str, ...] = ()) -> Stage:
        runs = tuple(TrainRun(RunConfig(name=name, seed=seed), tmp_path / f"{name}-{seed}") for seed in (3, 1))
        return Stage(name, runs, after, same_seed)

    first, second = stage("mae-vit"), stage("pf-vit", same_seed=("mae-vit",))
    plan = Plan("p", tmp_path, (first, second, stage("end", "pf-vit")), "c")
    assert [[each.name for each in wave] for wave in plan.waves()] == [["mae-vit", "pf-vit"], ["end"]]
    assert plan.same_seed_runs() == {tmp_path / f"pf-vit-{run.config.seed}": [run] for run in first.tasks}
    with pytest.raises(AssertionError, match="differ in their seeds"):
        Plan("p", tmp_path, (replace(first, tasks=first.tasks[:1]), second), "c")


def test_secrets_are_redacted_from_output(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    redaction.redact_output()
    print("GET https://user:abcd1234@host/")  # no secrets are named
    assert capsys.readouterr().out == "GET https://***@host/\n"
    monkeypatch.setenv("MY_TOKEN", "abcd1234")
    monkeypatch.setenv(redaction.VARIABLE, "MY_TOKEN,ABSENT")
    print("GET https://host/?key=abcd1234&x")
    print("warning abcd1234", file=sys.stderr)
    captured = capsys.readouterr()
    assert captured.out == "GET https://host/?key=<MY_TOKEN>&x\n"
    assert captured.err == "warning <MY_TOKEN>\n"


@pytest.mark.parametrize(("words", "redirection"), [("status --output none", "2>&-"), ("--version", ">&-")])
def test_a_closed_stream_ends_no_command(words, redirection):
    done = subprocess.run(f"{sys.executable} -m pfcluster {words} {redirection}", shell=True, check=False)
    assert done.returncode == (2 if "status" in words else 0)


def test_an_sbatch_that_does_not_answer_is_an_error_of_slurm(tmp_path, monkeypatch):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\nsleep 30\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(resubmit, "SBATCH_SECONDS", 0.1)
    write_job(tmp_path, JobRecord("7", 1, scripts=str(tmp_path)))
    with pytest.raises(SlurmError, match=r"sbatch did not answer in 0\.1 s"):
        resubmit.resubmit(tmp_path, None)


def test_epilogue_imports_the_standard_library_only():
    """It runs outside of the container that has torch and the other packages."""
    code = (
        "import sys; before = set(sys.modules); import pfcluster.launch.slurm.epilogue;"
        "print({name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'pfcluster'}"
