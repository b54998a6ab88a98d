"""Faults injected into jobs on a real SLURM, most of two nodes: the final weights equal those of an uninterrupted run,
and the cause is recorded in one sentence.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pfcluster.launch.worker import work as train
from pfcluster.runs.folder import REQUESTED_CONFIG_FILE, step_folder
from pfcluster.runs.metrics_file import iter_metrics
from tests.cluster.slurm import Slurm, running
from tests.cluster.work import LONG, TINY, Work
from tests.commands import command
from tests.tiny import final_weights

RUN = "runs/scratch/seed-0"
FINETUNE = ["finetune", "--preset", "demo", *TINY, *LONG]


@pytest.fixture(scope="session")
def uninterrupted(cluster: Slurm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Final weights of a run without faults, in two processes of this machine."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = command(*FINETUNE, "--executor", "local", "--processes", "2", folder=folder)
    assert done.returncode == 0, done.stderr
    return final_weights(folder / RUN)


def assert_same(expected: dict[str, torch.Tensor], folder: Path) -> None:
    weights = final_weights(folder)
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(value, weights[name]), name


def test_a_run_survives_a_fault_after_another(work, uninterrupted, monkeypatch):
    """One run: a rank is killed, the job preempted (SIGTERM, requeued by SLURM), the run cancelled and its newest
    checkpoint truncated. Another: preempted (ended by SLURM, requeued by the job itself), requeued by the user.
    """
    names = ("requeued", "cancelled")
    one, other = (f"{name}/scratch/seed-0" for name in names)
    arguments = [[*FINETUNE, "--nodes", "2", "--partition", name, "--output", name] for name in names]
    arguments[1] += ["--tracker", "tensorboard", "mlflow"]
    work.launch(*arguments[0])
    assert_restarted_on_other_nodes_after_a_kill(work, one)

    work.launch(*arguments[1])
    work.hold_attempt(one, 2)
    work.hold_attempt(other, 1)
    blocker = work.occupy()
    for run in (one, other):
        work.wait_for(lambda run=run: work.outcomes(run)[-1:] == ["preempted"], f"preemption of {run}")
    work.cluster.run("scancel", blocker)

    work.hold_attempt(one, 3)
    assert "cancelled: scratch seed 0" in work.launch("cancel", "requeued/scratch")
    assert work.wait_for_end(one).outcome == "cancelled"
    assert "cancelled" in work.launch("status", "requeued/scratch")
    assert work.attempts(one)[-1].next is None
    newest = step_folder(work.folder / one / "checkpoints", work.attempts(one)[-1].checkpoint_step)
    file = next(newest.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    work.launch(*arguments[0])

    work.hold_attempt(other, 2)
    work.cluster.run("scontrol", "requeue", work.job(other))
    for run, outcomes in (
        (one, ["failed", "preempted", "cancelled", "finished"]),
        (other, ["preempted", "preempted", "finished"]),
    ):
        assert work.wait_for_end(run).outcome == "finished"
        assert work.outcomes(run) == outcomes
        stopped = [attempt for attempt in work.attempts(run) if attempt.outcome in ("preempted", "cancelled")]
        for attempt in stopped:
            assert attempt.checkpoint_step == attempt.step, "the checkpoint holds every step that was trained"
        assert_same(uninterrupted, work.folder / run)
    warnings = (work.folder / one / "warnings.log").read_text()
    assert f"skipped a damaged checkpoint: {file} is damaged" in warnings
    first, second, last = work.attempts(other)
    assert first.job == second.job == last.job
    assert second.next == "requeued by SLURM"
    status = work.launch("status", "cancelled/scratch")
    assert "finished" in status
    assert "failed" not in status
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer clients read no file store otherwise
    assert_one_tracker_run(work.folder / other)
    work.note("kill -9 of a rank, preempted by requeueing, `cancel`, the newest checkpoint cut short", one)
    work.note("preempted by cancelling, `scontrol requeue`", other)


def assert_one_tracker_run(folder: Path) -> None:
    """All attempts are one run of mlflow, which has each logged step once."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=(folder / "trackers/mlflow").as_uri())
    experiment = client.get_experiment_by_name("pfcluster")
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.status == "FINISHED"
    for split, metric in (("train", "loss"), ("validation", "accuracy")):
        sent = [point.step for point in client.get_metric_history(tracked.info.run_id, f"{split}/{metric}")]
        assert sent == sorted({line["step"] for line in iter_metrics(folder, split)})
        assert sent


def assert_restarted_on_other_nodes_after_a_kill(work: Work, run: str) -> None:
    """Kill a rank of the first attempt; the second runs without the rank's node."""
    work.wait_for_step(run, 50)
    nodes = work.nodes_of(run)
    (victim,) = work.ranks_on(nodes[1], work.job(run))
    os.kill(victim, signal.SIGKILL)
    work.wait_for(lambda: len(work.attempts(run)) == 2, "the second attempt")
    failed, second = work.attempts(run)
    assert (failed.outcome, failed.kind, failed.node) == ("failed", "killed", nodes[1])
    assert f"on {nodes[1]}: Killed" in failed.error
    assert failed.excluded == nodes[1]
    assert nodes[1] not in work.cluster.run("scontrol", "show", "hostnames", second.nodes).split()
    work.wait_for(lambda: work.attempts(run)[1].from_step is not None, "resuming")
    assert work.attempts(run)[1].from_step >= 20, (
        "saves are 20 steps apart; that of step 40 may still have been under way"
    )
    assert "1 (1 failed)" in work.launch("status", run.rpartition("/")[0])


def test_runs_longer_than_the_time_limit_continue_in_further_jobs(work):
    """`short` ends jobs after a minute; the signal comes 20 seconds before."""
    output = work.launch(
        *FINETUNE, "--nodes", "2", "--epochs", "5000", "--partition", "short", "--time", "2:00:00", "--retries", "0"
    )
    assert "partition short allows 1 minutes of the 120: longer runs continue in further jobs" in output
    work.wait_for(lambda: work.outcomes(RUN)[:1] == ["time limit"], "the limit")
    first = work.attempts(RUN)[0]
    assert first.signal == "SIGUSR2"
    assert first.checkpoint_step == first.step > 0
    work.wait_for(
        lambda: len(work.attempts(RUN)) > 1 and work.attempts(RUN)[1].from_step == first.step, "the next link"
    )
    work.wait_for_step(RUN, first.step + 5)
    work.cluster.run("scancel", work.job(RUN))
    last = work.wait_for_end(RUN)
    assert (last.outcome, last.next) == ("cancelled", None)
    assert last.checkpoint_step == last.step
    work.note("the partition's limit of a minute, then plain `scancel`", RUN)


def test_lost_node_and_restarted_controller_cost_at_most_one_attempt(work, uninterrupted):
    work.launch(*FINETUNE, "--nodes", "2")
    work.wait_for_step(RUN, 20)
    nodes = work.nodes_of(RUN)
    work.cluster.kill("slurmctld")
    work.hold_at_step(RUN, 50)
    work.cluster.start("slurmctld")
    work.cluster.wait_until_up()
    work.cluster.kill(nodes[1])
    try:
        work.wait_for(lambda: work.outcomes(RUN)[-1:] == ["finished"], "the end")
        assert_same(uninterrupted, work.folder / RUN)
        work.note("slurmctld killed and started again, then slurmd killed with all on its node", RUN)
        attempts = work.attempts(RUN)
        assert len(attempts) == 2
        assert attempts[0].outcome in ("failed", "preempted", "lost")
        assert nodes[1] not in work.cluster.run("scontrol", "show", "hostnames", attempts[1].nodes).split()
    finally:
        work.cluster.start(nodes[1])
        work.cluster.wait_until_up()


def forbid_requeueing(work: Work) -> None:
    site = work.folder / "pfcluster.toml"
    site.write_text("requeue = false\n" + site.read_text())


STUBBORN = """
import signal, sys, time
from pathlib import Path
signals = []
signal.signal(signal.SIGTERM, lambda *_: signals.append(1))
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
started = Path("started")
first = not started.exists()
started.touch()
while first and len(signals) < int(sys.argv[1]):
    time.sleep(0.1)
sys.exit(3 if first else 0)
"""
SUBMISSION = """
import sys
from pathlib import Path
from pfcluster.launch.plan import Command, Plan, Stage
from pfcluster.launch.site import load_site
from pfcluster.launch.slurm.submit import submit
task = Command("stubborn", Path("runs/x/stubborn"), (sys.argv[1],), module="stubborn")
stage = Stage("stubborn", (task,), single_process=True)
submit(Plan("x", Path("runs/x"), (stage,), "x"), load_site(None), processes=1, retries=0)
"""


def submit_stubborn(work: Work, partition: str, n_signals: int) -> str:
    """Submit a command that at first ignores signals up to the n-th; returns its folder."""
    site = work.folder / "pfcluster.toml"
    site.write_text(f'partition = "{partition}"\n' + site.read_text())
    (work.folder / "stubborn.py").write_text(STUBBORN)
    environment = work.cluster.environment | {"PYTHONPATH": f"{work.folder}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", SUBMISSION, str(n_signals)]
    subprocess.run(command, cwd=work.folder, env=environment, check=True)
    return "runs/x/stubborn"


def test_a_job_that_is_killed_when_it_is_preempted_is_requeued_by_rank_0(work):
    task = submit_stubborn(work, "cancelled", 99)
    work.wait_for(lambda: (work.folder / "started").exists(), "the start")
    blocker = work.occupy()
    log = work.folder / task / "logs/rank-0.log"
    work.wait_for(lambda: "preempted without a requeue by SLURM: requeued" in log.read_text(), "the requeue")
    work.cluster.run("scancel", blocker)
    assert work.wait_for_end(task).outcome == "finished"
    assert len(work.attempts(task)) == 2


def test_a_job_that_has_not_stopped_by_its_time_limit_continues_in_one_new_job(work):
    forbid_requeueing(work)
    task = submit_stubborn(work, "short", 2)  # the first is that of the task, the second SLURM's at the time limit
    job = work.job(task)
    assert work.wait_for_end(task).outcome == "finished"
    follower = work.job(task)
    assert int(follower) == int(job) + 1
    first, second = work.attempts(task)
    assert (first.outcome, first.next) == ("time limit", f"submitted again as {follower}")
    assert second.job == follower
    log = (work.folder / task / "logs/rank-0.log").read_text()
    assert f"no step ended in time: submitted again as {follower}" in log


def test_runs_continue_in_new_jobs_where_requeueing_is_forbidden(work):
    forbid_requeueing(work)
    work.launch(*FINETUNE, "--partition", "graceful")
    work.hold_at_step(RUN, 30)
    first = work.job(RUN)
    blocker = work.occupy()
    work.wait_for(lambda: work.outcomes(RUN) == ["preempted"], "preemption")
    work.cluster.run("scancel", blocker)
    assert work.wait_for_end(RUN).outcome == "finished"
    assert work.job(RUN) != first
    assert work.attempts(RUN)[0].next == f"submitted again as {work.job(RUN)}"
    assert train(work.folder / RUN / REQUESTED_CONFIG_FILE, work.folder / "here", None, 1).code == 0
    assert_same(final_weights(work.folder / "here"), work.folder / RUN)
    work.note("preempted with grace time, requeueing forbidden", RUN)


def test_job_with_grace_time_is_preempted_by_its_own_signal_and_requeues_itself(tmp_path, uninterrupted):
    with running(tmp_path / "slurm", nodes=2, user_signal=True) as cluster:
        (tmp_path / "work").mkdir()
        work = Work(tmp_path / "work", cluster)
        work.launch(*FINETUNE, "--nodes", "2", "--partition", "graceful")
        work.wait_for_step(RUN, 30)
        blocker = work.occupy()
        work.wait_for(lambda: work.outcomes(RUN) == ["preempted"], "preemption")
        cluster.run("scancel", blocker)
        assert work.wait_for_end(RUN).outcome == "finished"
        first = work.attempts(RUN)[0]
        assert first.signal == "SIGUSR2"
        assert first.next.startswith("requeued")
        assert_same(uninterrupted, work.folder / RUN)
        work.note("preempted with grace time by the job's own signal (SIGUSR2)", RUN)


def test_full_disk_fails_once_and_keeps_earlier_checkpoints(work, uninterrupted):
    disk = work.folder / RUN / "checkpoints"
    disk.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=1200k", "none", str(disk)]
    mounted = subprocess.run(mount, check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        work.launch(*FINETUNE, "--nodes", "2")
        failed = work.wait_for_end(RUN)
        assert (failed.outcome, failed.kind) == ("failed", "disk")
        assert "No space left on device" in failed.error
        assert "given up" in failed.next
        assert len(work.attempts(RUN)) == 1
        assert "No space left on device" in work.launch("status", "scratch")
        kept = work.folder / "kept"
        shutil.copytree(disk, kept)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    shutil.rmtree(disk)
    shutil.move(kept, disk)
    work.launch(*FINETUNE, "--nodes", "2")
    assert work.wait_for_end(RUN).outcome == "finished"
    assert_same(uninterrupted, work.folder / RUN)
    work.note("checkpoints' disk full, mended, the same command again", RUN)


def test_non_finite_loss_fails_once_and_cancels_waiting_stages(work):
    work.launch(
        "study", "--preset", "demo", *TINY, "--optim.lr", "1e30", "--optim.warmup-steps", "0", "--seeds", "0",
    )  # fmt: skip
    failed = work.wait_for_end("runs/study/mae/seed-0")
    assert (failed.outcome, failed.kind) == ("failed", "training")
    assert "Nothing was trained on this batch" in failed.error
    assert "given up" in failed.next
    assert "mae-vit" in failed.next
    work.note("a loss that is not finite", "runs/study/mae/seed-0")
    for name in ("judge", "scratch"):
        work.wait_for_end(f"runs/study/{name}/seed-0")
    work.wait_for(lambda: not work.queue(), "an empty queue")
    status = " ".join(work.launch("status", "study").split())
    assert "mae seed 0 failed" in status
    assert "mae-vit seed 0 not run mae failed" in status
    assert "report not run" in status
    assert "Nothing was trained on this batch" in status


def test_shard_missing_at_the_start_of_a_job_is_named(work):
    from tests.photos import make_folder

    make_folder(work.folder / "photos", per_class=12)
    build = ["--input", "photos", "--output", "shards", "--align", "none", "--size", "32", "--workers", "1"]
    work.launch("build", *build)
    blocker = work.occupy()
    arguments = [*FINETUNE, "--epochs", "2", "--batch-size", "4", "--data.shards", "shards"]
    work.launch(*arguments)
    shard = min((work.folder / "shards").glob("train-*.tar"))
    shard.rename(work.folder / shard.name)
    work.cluster.run("scancel", blocker)
    failed = work.wait_for_end(RUN)
    assert (failed.outcome, failed.kind) == ("failed", "user")
    assert shard.name in failed.error
    assert len(work.attempts(RUN)) == 1
    assert shard.name in work.launch("status", "scratch")
    (work.folder / shard.name).rename(shard)
    work.launch(*arguments)
    assert work.wait_for_end(RUN).outcome == "finished"
    work.note("a shard gone before the job started, put back, the same command again", RUN)
