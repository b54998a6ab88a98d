"""Parsing of SLURM's output, handling of failures, and site files. The output is that of SLURM 22.05."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pfcluster.cli.main import main
from pfcluster.cli.submit import job_name
from pfcluster.config import ConfigError, RunConfig
from pfcluster.launch import attempts, status
from pfcluster.launch.attempts import Attempt, Failure
from pfcluster.launch.job_record import JobRecord, write_job
from pfcluster.launch.options import Cluster, ClusterOptions, resolve_cluster
from pfcluster.launch.plan import Plan, Stage, TrainRun
from pfcluster.launch.plan_record import PLAN_FILE
from pfcluster.launch.ray.connect import RayCluster
from pfcluster.launch.ray.run import workers_of
from pfcluster.launch.ray.train import Workers
from pfcluster.launch.slurm import client, diagnosis, resubmit
from pfcluster.launch.slurm.client import JobInfo, SlurmError
from pfcluster.launch.slurm.job_state import slurm_task
from pfcluster.launch.slurm.script import script_of, scripts_folder
from pfcluster.launch.slurm.site import Site, load_site
from pfcluster.runs import redaction
from pfcluster.runs.folder import write_config
from pfcluster.sweep.slurm import SlurmExecutor
from tests.tiny import config

CLUSTER = Cluster("slurm", "a test", Site(), nodes=1, per_node=1, processes=1, retries=2, wait=False)
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
    job = client.parse_job(line)
    assert (job.job, job.nodes) == ("30_1", "n[1-2]")
    assert client.signal_cause(job, 0) == cause


def test_signal_to_a_forgotten_job_is_a_cancellation():
    assert client.signal_cause(None, 0) == "cancelled"


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("1:30:00", 90), ("2-00:00:00", 2880), ("1-12", 2160), ("90:30", 91), ("UNLIMITED", None)],
)
def test_minutes_parses_time_limits(text, minutes):
    assert client.minutes(text) == minutes


@pytest.mark.parametrize("text", ["soon", "1h", "", "0:10", "-5"])
def test_minutes_refuses_invalid_time_limits(text):
    with pytest.raises(SlurmError, match="--time must be"):
        client.minutes(text)


def failed(number: int, **changes: object) -> Attempt:
    base = Attempt(number, "7", number - 1, 1, "n1", "t", outcome="failed", kind="killed", error="Killed")
    return replace(base, **changes)  # type: ignore[arg-type]


def test_retries_count_failures_but_not_preemptions():
    history = [failed(1, outcome="preempted", kind=None, checkpoint_step=5), failed(2, step=9), failed(3, step=9)]
    assert attempts.reason_to_give_up(history, 2) is None
    assert attempts.reason_to_give_up([*history, failed(4)], 2) == "it failed 3 times (--retries 2)"
    assert attempts.reason_to_give_up([*history, failed(4, submission=2)], 2) is None, (
        "a new submission has its own retries"
    )


@pytest.mark.parametrize("kind", ["user", "training", "disk"])
def test_failures_that_repeat_are_not_retried(kind):
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


def _one_per_folder(stage: dict[str, object]) -> dict[str, object]:
    folders = stage["folders"]
    assert isinstance(folders, list)
    return {"labels": folders, "outputs": [None] * len(folders)}


def write_plan_file(folder: Path, stages: dict[str, dict[str, object]]) -> None:
    base = {"after": [], "always_run": False, "labels": [], "folders": [], "outputs": [], "trains": True}
    record = {"name": "x", "command": "c", "launcher": "slurm", "started": "t", "host": "h", "pid": 0}
    record["stages"] = {name: base | _one_per_folder(stage) | stage for name, stage in stages.items()}
    (folder / PLAN_FILE).write_text(json.dumps(record))


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


def test_site_file_has_settings_of_single_runs(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text(
        'partition = "gpu"\ngpus_per_node = 8\nsetup = ["module load cuda"]\nmem = 64000\n'
        '[environment]\nNCCL_DEBUG = "WARN"\nOMP_PROC_BIND = 1\n[run.mae]\nnodes = 4\ntime = "3-00:00:00"\n'
    )
    site = load_site(path)
    assert (site.partition, site.mem, site.setup) == ("gpu", "64000", ("module load cuda",))
    assert site.environment == {"NCCL_DEBUG": "WARN", "OMP_PROC_BIND": "1"}
    assert (site.for_run("mae").nodes, site.for_run("judge").nodes) == (4, None)
    given = site.with_options({"nodes": 2, "time": None})
    assert (given.for_run("mae").nodes, given.for_run("mae").time, given.for_run("judge").nodes) == (2, "3-00:00:00", 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('partiton = "gpu"', "unknown setting partiton; did you mean partition?"),
        ("gpus_per_node = 0", "gpus_per_node must be at least 1, got 0"),
        ('gpus_per_node = "8"', "gpus_per_node must be int, got '8'"),
        ('setup = "module load x"', "setup must be a list of strings"),
        ('time = "a while"', "--time must be"),
        ('[environment]\nHF_TOKEN = "abc"', r'HF_TOKEN looks like a secret.*secrets = \["HF_TOKEN"\]'),
        ('[sbatch]\njob-name = "x"', "job-name is set by the launcher itself"),
        ("[run.mae]\nnode = 4", r"\[run.mae\]: unknown setting node; did you mean nodes\?"),
        ("partition =", "is not TOML"),
    ],
)
def test_invalid_site_file_is_refused_with_a_hint(tmp_path, text, words):
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_site(path)


def test_not_every_token_is_a_secret(tmp_path):
    path = tmp_path / "site.toml"
    path.write_text('[environment]\nTOKENIZERS_PARALLELISM = "false"\n')
    assert load_site(path).environment == {"TOKENIZERS_PARALLELISM": "false"}


def test_defaults_without_a_site_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PFCLUSTER_SITE", raising=False)
    assert load_site(None) == Site()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_site(tmp_path / "none.toml")


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


def test_commands_that_differ_have_names_that_differ():
    names = [
        job_name("evaluate", words)
        for words in (["runs/a"], ["runs/a", "--split", "test"], ["runs/a", "--split", "validation"], ["runs/b"])
    ]
    assert (names[0], names[3]) == ("evaluate-runs-a", "evaluate-runs-b")
    assert all(name.startswith("evaluate-runs-a-") for name in names[1:3])
    assert len(set(names)) == 4
    assert job_name("report", ["--baseline", "scratch", "runs/study"]).startswith("report-")
    assert job_name("doctor", []) == "doctor"
    assert job_name("report", [""]) == "report"
    assert job_name("build", ["--input", "rafdb", "--output", "data/rafdb", "--size", "112"]) == "build-data-rafdb"


def test_a_time_limit_before_the_signal_is_refused(tmp_path):
    plan = Plan("p", tmp_path, (Stage("scratch", (TrainRun(config("finetune"), tmp_path / "run"),)),), "")
    cluster = replace(CLUSTER, slurm_answers=False)
    with pytest.raises(ConfigError, match=r"scratch: jobs of 2 minutes would be told to stop 120 s before their end"):
        script_of(plan, plan.stages[0], replace(cluster, site=Site(time="2")))
    assert "--time=3" in script_of(plan, plan.stages[0], replace(cluster, site=Site(time="3")))


def test_settings_of_a_slurm_site_do_not_describe_other_machines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pfcluster.toml").write_text("nodes = 4\ngpus_per_node = 8\ncpus_per_task = 12\n")
    cluster = resolve_cluster(ClusterOptions(executor="ray", processes=2))
    assert (cluster.nodes, cluster.per_node, cluster.site.cpus_per_task) == (1, 2, None)
    assert workers_of(cluster, RayCluster(1, 8, (0,), True)) == Workers(2, 1.0, 0.0, 1)
    with pytest.raises(ConfigError, match=r"none.toml cannot be read"):
        resolve_cluster(ClusterOptions(executor="ray", site=Path("none.toml")))
    given = resolve_cluster(ClusterOptions(executor="ray", gpus_per_node=2, cpus_per_task=3))
    assert workers_of(given, RayCluster(1, 8, (2,), True)) == Workers(2, 3.0, 1.0, 1)


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
    monkeypatch.setattr(client, "job_states", no_slurm)
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


@pytest.mark.parametrize("available", [False, True])
def test_dry_run_prints_scripts_without_slurm(tmp_path, monkeypatch, capsys, available):
    """On a machine without sbatch the limits of the partition are not checked; elsewhere they are those of SLURM."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    if available:
        monkeypatch.setattr(client, "available", lambda: (True, "a cluster answers"))
        monkeypatch.setattr(client, "partition", lambda name: {"PartitionName": "gpu", "MaxTime": "30"})
    words = ["pretrain", "--preset", "demo", "--nodes", "4", "--time", "90", "--executor", "slurm", "--dry-run"]
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "#SBATCH --nodes=4" in output
    assert f"#SBATCH --time={30 if available else 90}" in output
    assert "pfcluster.launch.slurm.epilogue" in output
    assert ("SLURM cannot be queried here" in output) is not available
    assert list(tmp_path.iterdir()) == []


def test_paths_with_percent_signs_reach_slurm_as_a_link_without(tmp_path):
    """SLURM expands `%x` in --output, for arrays twice; submitit replaces `%j` in all of its paths."""
    folder = tmp_path / "50% lr=1%x" / "%j"
    tasks = tuple(TrainRun(config("finetune"), folder / name) for name in "ab")
    stage = Stage("scratch%A", tasks)
    plan = Plan("p", folder, (stage,), "")
    assert not list(tmp_path.iterdir())
    script = script_of(plan, stage, replace(CLUSTER, slurm_answers=False))
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"
    (folder / "slurm").mkdir(parents=True)
    scripts = scripts_folder(plan, stage, create=True)
    scripts.mkdir()
    assert list((folder / "slurm").iterdir()) == [folder / "slurm/scratch_A"]
    assert scripts_folder(plan, stage, create=True) == scripts
    assert scripts.parent.parent == tmp_path
    assert "%" not in str(scripts)
    for line in script.splitlines():
        if "--output" in line or "submitit.core._submit" in line:
            assert str(scripts) in line
            assert str(folder) not in line
    plain = Plan("p", tmp_path, (stage,), "")
    assert scripts_folder(plain, stage, create=True) == tmp_path / "slurm/scratch_A"


def test_submission_without_slurm_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["pretrain", "--preset", "demo", "--executor", "slurm"]) == 2
    assert "--executor slurm: no sbatch on the PATH; run on this machine" in capsys.readouterr().err


def test_epilogue_imports_the_standard_library_only():
    """It runs outside of the container that has torch and the other packages."""
    code = (
        "import sys; before = set(sys.modules); import pfcluster.launch.slurm.epilogue;"
        "print({name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'pfcluster'}"
