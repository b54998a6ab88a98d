"""Faults injected into jobs of two nodes on a real SLURM: the final weights equal those of an uninterrupted run, and
the cause is recorded in one sentence.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from pfcluster.runs.folder import step_folder
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


def test_preempted_jobs_are_requeued_with_a_checkpoint(work, uninterrupted):
    """SIGTERM, then SIGKILL: requeued by SLURM, or ended by SLURM and requeued by the job itself."""
    names = ("requeued", "cancelled")
    runs = [f"{name}/scratch/seed-0" for name in names]
    for name, run in zip(names, runs, strict=True):
        work.launch(*FINETUNE, "--nodes", "2", "--partition", name, "--output", name)
        work.hold_at_step(run, 30)
    blocker = work.occupy()
    for run in runs:
        work.wait_for(lambda run=run: work.outcomes(run) == ["preempted"], f"preemption of {run}")
    work.cluster.run("scancel", blocker)
    for run in runs:
        assert work.wait_for_end(run).outcome == "finished"
        first, last = work.attempts(run)
        assert first.job == last.job
        assert first.checkpoint_step == first.step > 30, "the checkpoint holds every step that was trained"
        assert_same(uninterrupted, work.folder / run)
        work.note(f"preempted by {'requeueing' if 'requeued' in run else 'cancelling'}", run)
    status = work.launch("status", "cancelled/scratch")
    assert "finished" in status
    assert "failed" not in status


def test_runs_longer_than_the_time_limit_continue_in_further_jobs(work):
    """`short` ends jobs after a minute; the signal comes 20 seconds before."""
    output = work.launch(
        *FINETUNE, "--epochs", "700", "--nodes", "2", "--partition", "short", "--time", "2:00:00", "--retries", "0"
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
    work.launch("cancel", "scratch")
    work.wait_for_end(RUN)
    work.note("the partition's limit of a minute, then `cancel`", RUN)


def test_cancelled_runs_do_not_restart_and_skip_a_damaged_checkpoint(work, uninterrupted):
    """Cancelled by `pfcluster cancel` and by scancel; then the newest checkpoint is truncated."""
    runs = [f"{name}/scratch/seed-0" for name in ("ours", "plain")]
    for name, run in zip(("ours", "plain"), runs, strict=True):
        work.launch(*FINETUNE, "--nodes", "2", "--output", name)
        work.hold_at_step(run, 50)
    assert "cancelled: scratch seed 0" in work.launch("cancel", "ours/scratch")
    work.cluster.run("scancel", work.job(runs[1]))
    for run in runs:
        assert work.wait_for_end(run).outcome == "cancelled"
        last = work.attempts(run)[-1]
        assert last.checkpoint_step == last.step >= 50
        assert last.next is None
    assert "cancelled" in work.launch("status", "ours/scratch")
    newest = step_folder(work.folder / runs[0] / "checkpoints", work.attempts(runs[0])[-1].checkpoint_step)
    file = next(newest.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    work.note("plain `scancel`", runs[1])
    work.launch(*FINETUNE, "--nodes", "2", "--output", "ours")
    assert work.wait_for_end(runs[0]).outcome == "finished"
    assert_same(uninterrupted, work.folder / runs[0])
    work.note("`cancel`, the newest checkpoint cut short, the same command again", runs[0])
    warnings = (work.folder / runs[0] / "warnings.log").read_text()
    assert f"skipped a damaged checkpoint: {file} is damaged" in warnings


def test_killed_rank_restarts_the_job_on_other_nodes(work, uninterrupted):
    work.launch(*FINETUNE, "--nodes", "2")
    work.wait_for_step(RUN, 50)
    nodes = work.nodes_of(RUN)
    (victim,) = work.ranks_on(nodes[1], work.job(RUN))
    os.kill(victim, signal.SIGKILL)
    assert work.wait_for_end(RUN).outcome == "finished"
    failed, last = work.attempts(RUN)
    assert (failed.outcome, failed.kind, failed.node) == ("failed", "killed", nodes[1])
    assert f"on {nodes[1]}: Killed" in failed.error
    assert failed.excluded == nodes[1]
    assert nodes[1] not in work.cluster.run("scontrol", "show", "hostnames", last.nodes).split()
    assert last.from_step >= 20, "saves are 20 steps apart; that of step 40 may still have been under way"
    assert_same(uninterrupted, work.folder / RUN)
    work.note("kill -9 of a rank", RUN)
    assert "1 (1 failed)" in work.launch("status", "scratch")


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


def test_running_job_can_be_requeued_by_the_user(work, uninterrupted):
    work.launch(*FINETUNE, "--nodes", "2")
    work.wait_for_step(RUN, 50)
    work.cluster.run("scontrol", "requeue", work.job(RUN))
    assert work.wait_for_end(RUN).outcome == "finished"
    first = work.attempts(RUN)[0]
    assert (first.outcome, first.next) == ("preempted", "requeued by SLURM")
    assert first.checkpoint_step == first.step
    assert_same(uninterrupted, work.folder / RUN)
    work.note("`scontrol requeue`", RUN)


def test_runs_continue_in_new_jobs_where_requeueing_is_forbidden(work, uninterrupted):
    with open(work.folder / "pfcluster.toml", "r+") as file:
        text = file.read()
        file.seek(0)
        file.write("requeue = false\n" + text)
    work.launch(*FINETUNE, "--nodes", "2", "--partition", "graceful")
    work.hold_at_step(RUN, 30)
    first = work.job(RUN)
    blocker = work.occupy()
    work.wait_for(lambda: work.outcomes(RUN) == ["preempted"], "preemption")
    work.cluster.run("scancel", blocker)
    assert work.wait_for_end(RUN).outcome == "finished"
    assert work.job(RUN) != first
    assert work.attempts(RUN)[0].next == f"submitted again as {work.job(RUN)}"
    assert_same(uninterrupted, work.folder / RUN)
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
