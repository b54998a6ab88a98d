"""What SLURM's words are taken to mean, what a failure leads to, and what a site may say. The text is SLURM 22.05's."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pfcluster.config import ConfigError, RunConfig
from pfcluster.launch import attempts, redaction
from pfcluster.launch.attempts import Attempt, Failure, Submitted
from pfcluster.launch.plan import Command, Plan, Stage, TrainRun
from pfcluster.launch.slurm import client, epilogue
from pfcluster.launch.slurm.client import JobInfo, SlurmError
from pfcluster.launch.slurm.site import Site, load_site

SHOWN = (
    "JobId=31 ArrayJobId=30 ArrayTaskId=1 JobName=x UserId=root(0) JobState={state} Reason=None Dependency=(null)"
    " Requeue=1 Restarts={restarts} BatchFlag=1 Reboot=0 RunTime=00:00:03 EndTime=2026-11-25T13:30:44"
    " PreemptEligibleTime=2026-11-25T13:29:40 PreemptTime={preempted} ReqNodeList=(null) ExcNodeList=n4"
    " NodeList=n[1-2] BatchHost=n1"
)


@pytest.mark.parametrize(
    ("state", "restarts", "preempted", "meaning"),
    [
        ("COMPLETING", 0, "None", "cancelled"),  # scancel
        ("COMPLETING", 1, "None", "requeued"),  # PreemptMode=REQUEUE, scontrol requeue
        ("COMPLETING", 0, "2026-11-25T13:29:20", "preempted"),  # PreemptMode=CANCEL
        ("RUNNING", 0, "2026-11-25T13:29:44", "warned"),  # GraceTime
        ("SIGNALING", 0, "2026-11-25T13:29:44", "warned"),
        ("RUNNING", 0, "None", "warned"),  # time limit
        ("PENDING", 1, "None", "requeued"),
        ("CANCELLED", 0, "None", "cancelled"),
    ],
)
def test_a_signal_means_what_the_job_s_record_says(state, restarts, preempted, meaning):
    seen = client.parse_job(SHOWN.format(state=state, restarts=restarts, preempted=preempted))
    assert (seen.job, seen.nodes) == ("30_1", "n[1-2]")
    assert client.signal_cause(seen, 0) == meaning


def test_a_job_that_slurm_has_forgotten_is_not_put_back():
    assert client.signal_cause(None, 0) == "cancelled"


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("1:30:00", 90), ("2-00:00:00", 2880), ("1-12", 2160), ("90:30", 91), ("UNLIMITED", None)],
)
def test_times_are_read_as_slurm_writes_them(text, minutes):
    assert client.minutes(text) == minutes


@pytest.mark.parametrize("text", ["soon", "1h", "", "0:10", "-5"])
def test_other_times_are_refused(text):
    with pytest.raises(SlurmError, match="--time must be"):
        client.minutes(text)


def failed(number: int, **changes: object) -> Attempt:
    base = Attempt(number, "7", number - 1, 1, "n1", "t", outcome="failed", kind="killed", error="Killed")
    return replace(base, **changes)  # type: ignore[arg-type]


def test_the_budget_counts_failures_and_not_preemptions():
    story = [failed(1, outcome="preempted", kind=None, checkpoint_step=5), failed(2, step=9), failed(3, step=9)]
    assert attempts.reason_to_give_up(story, 2) is None
    assert attempts.reason_to_give_up([*story, failed(4)], 2) == "it failed 3 times (--retries 2)"
    assert attempts.reason_to_give_up([*story, failed(4, submission=2)], 2) is None, "another submission, another budget"


@pytest.mark.parametrize("kind", ["user", "training", "disk"])
def test_what_would_only_repeat_itself_is_not_retried(kind):
    assert attempts.reason_to_give_up([failed(1, kind=kind, step=100)], 5) == "another attempt would fail in the same way"


def test_a_bug_is_retried_only_where_it_struck_after_progress_and_once():
    assert "before it trained a step" in attempts.reason_to_give_up([failed(1, kind="bug")], 5)
    later = failed(1, kind="bug", step=10, checkpoint_step=5)
    assert attempts.reason_to_give_up([later], 5) is None
    again = failed(2, kind="bug", from_step=5, step=10, checkpoint_step=5)
    assert attempts.reason_to_give_up([later, again], 5) == "it failed twice in the same way"
    assert attempts.reason_to_give_up([later, replace(again, checkpoint_step=8)], 5) is None
    assert attempts.reason_to_give_up([failed(1, kind="device")], 5) is None


def test_three_attempts_that_vanish_without_progress_are_enough():
    silent = [failed(number, outcome="lost", kind=None, from_step=5, checkpoint_step=5) for number in (1, 2, 3)]
    assert attempts.lost_repeatedly(silent)
    assert not attempts.lost_repeatedly(silent[1:])
    assert not attempts.lost_repeatedly([*silent[:2], replace(silent[2], checkpoint_step=6)])


def test_an_attempt_that_never_told_its_end_is_closed_by_the_next(tmp_path):
    attempts.submit(tmp_path, Submitted("7", 1))
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
    attempts.submit(folder, Submitted("7", 1, script=str(scripts)))


def test_the_rank_that_died_first_is_found_in_this_attempt_s_words_only(tmp_path):
    write_batch_log(
        tmp_path,
        f"{epilogue.MARK} 7, restart 0\nsrun: error: n4: task 3: Killed\n{epilogue.MARK} 7, restart 1\n"
        "srun: error: n2: task 1: Out Of Memory\nsrun: error: n1: task 0: Killed\n",
    )
    found = epilogue.explain(tmp_path, failed(1), "7", 137)
    assert (found["kind"], found["node"]) == ("bug", "n2"), "more memory is on no other node"
    assert "rank 1 on n2: Out Of Memory" in found["error"]


def test_what_a_rank_told_says_more_than_srun(tmp_path):
    write_batch_log(tmp_path, f"{epilogue.MARK} 7\nsrun: error: n2: task 1: Exited with exit code 2\n")
    attempts.write_failure(tmp_path, 1, Failure(1, "n2", "lost rank", "rank 0 is gone"))
    attempts.write_failure(tmp_path, 1, Failure(0, "n1", "user", "no such shard"))
    assert epilogue.explain(tmp_path, failed(1), "7", 2) == {"kind": "user", "error": "no such shard", "node": "n1"}


def test_groups_that_wait_are_found_also_behind_each_other(tmp_path):
    groups = {
        "mae": {"after": [], "folders": ["/m"]},
        "pf-vit": {"after": ["mae", "judge"], "folders": ["/p0", "/p1"]},
        "report": {"after": ["pf-vit"], "folders": ["/r"]},
        "table": {"after": ["pf-vit"], "folders": ["/t"], "anyway": True},
        "scratch": {"after": [], "folders": ["/s"]},
    }
    (tmp_path / "pipeline.json").write_text(json.dumps({"groups": groups}))
    known = Submitted("7", pipeline=str(tmp_path), group="mae")
    assert epilogue.waiting_folders(known) == [Path("/p0"), Path("/p1")]
    assert epilogue.waiting_folders(known, deep=True) == [Path("/p0"), Path("/p1"), Path("/r")]
    assert epilogue.waiting_folders(replace(known, group="pf-vit")) == [Path("/r"), Path("/t")]


def test_waves_follow_what_waits_for_what(tmp_path):
    def group(name: str, *after: str) -> Stage:
        return Stage(name, (TrainRun(RunConfig(name=name), tmp_path / name),), after)

    groups = (group("mae"), group("judge"), group("pf-vit", "mae", "judge"), group("scratch"), group("end", "pf-vit"))
    waves = [[each.name for each in wave] for wave in Plan("p", tmp_path, groups, "c").waves()]
    assert waves == [["mae", "judge", "scratch"], ["pf-vit"], ["end"]]


def test_a_command_is_done_while_what_it_made_is_newer_than_what_it_read(tmp_path):
    made, read = tmp_path / "made", tmp_path / "read"
    call = Command("c", tmp_path, (), produces=made, reads=(read,))
    assert not call.finished()
    for number, path in enumerate((read, made)):
        path.touch()
        os.utime(path, (number, number))
    assert call.finished()
    os.utime(read, (9, 9))
    assert not call.finished()
    assert not Command("c", tmp_path, ()).finished()


def test_a_site_file_is_read_and_single_runs_differ(tmp_path):
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
def test_a_wrong_site_file_is_named_with_what_would_do(tmp_path, text, words):
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_site(path)


def test_without_a_site_file_there_is_a_plain_site(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PFCLUSTER_SITE", raising=False)
    assert load_site(None) == Site()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_site(tmp_path / "none.toml")


def test_secrets_do_not_reach_what_is_printed(monkeypatch, capsys):
    monkeypatch.setenv("MY_TOKEN", "abcd1234")
    monkeypatch.setenv(redaction.VARIABLE, "MY_TOKEN,ABSENT")
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    redaction.redact_output()
    print("GET https://host/?key=abcd1234&x")
    print("warning abcd1234", file=sys.stderr)
    said = capsys.readouterr()
    assert said.out == "GET https://host/?key=<MY_TOKEN>&x\n"
    assert said.err == "warning <MY_TOKEN>\n"


def test_hopeless_and_alive():
    assert JobInfo("1", "PENDING", "DependencyNeverSatisfied").hopeless
    assert JobInfo("1", "COMPLETING").alive
    assert not JobInfo("1", "NODE_FAIL").alive


def test_without_a_queue_status_tells_what_the_folders_know(tmp_path):
    from pfcluster.launch import status

    stories = {
        "a": [failed(1, outcome="finished")],
        "b": [failed(1, kind="user", error="no such shard", next="given up: it would fail again")],
        "c": [failed(1, outcome="running")],
        "d": [],
    }
    for name, story in stories.items():
        attempts.submit(tmp_path / name, Submitted("7", 1))
        for attempt in story:
            attempts.write(tmp_path / name, attempt)
    group = {"after": [], "folders": [str(tmp_path / name) for name in stories], "labels": list(stories), "runs": True}
    record = {"name": "x", "command": "c", "submitted": "t", "groups": {"g": group}}
    (tmp_path / "pipeline.json").write_text(json.dumps(record))
    found = [status._line("g", name, tmp_path / name, None, True) for name in stories]
    assert [line.state for line in found] == ["finished", "failed", "lost", "not run"]
    assert found[1].error == "no such shard"
    assert "SLURM has forgotten it; the same command goes on" in found[2].why
    assert status._line("g", "c", tmp_path / "c", None, False).state == "unknown"
    assert status.find("x", tmp_path) == tmp_path
    with pytest.raises(ValueError, match="nothing was submitted as y; there is"):
        status.find("y", tmp_path)
