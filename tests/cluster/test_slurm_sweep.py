"""Sweeps on a real SLURM: the same trials and scores as with any executor, each trial a job."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import torch

from pfcluster.launch import attempts
from pfcluster.launch.job_record import read_job
from pfcluster.runs.folder import newest_checkpoint_step
from pfcluster.sweep.slurm import RETRY_SECONDS
from pfcluster.sweep.trials import read_trials, result_of
from tests.cluster.work import TINY as LAUNCH_TINY
from tests.cluster.work import Work
from tests.commands import command
from tests.sweeps import SWEEP, TINY, outcome, reference, step_of, wait_for
from tests.tiny import LAUNCH, final_weights


def test_outcome_is_that_of_any_executor(work: Work, tmp_path):
    """Trials that can run in parallel are one array. Stopped trials end by themselves; nothing is left in the queue."""
    expected = reference(tmp_path / "reference", TINY)
    output = work.launch("sweep", *TINY, "--executor", "slurm", "--output", "sweep", "--cpus-per-task", "1")
    assert outcome(work.folder / "sweep") == expected
    record = json.loads((work.folder / "sweep/plan.json").read_text())
    assert "trial-001 seed 0" in record["stages"]["runs"]["labels"]
    first = [json.loads((work.folder / f"sweep/trials/00{n}/seed-0/job.json").read_text())["job"] for n in range(4)]
    assert len({job.split("_")[0] for job in first}) == 1, "four trials that can run in parallel are one array"
    assert output.count("stopped at step") == sum(trial[3] is not None for trial in expected["trials"])


def test_each_run_is_submitted_once_also_while_the_controller_is_away(work: Work):
    """Four trials, two at a time, in a folder whose name SLURM would expand. One diverges and is not trained again when
    later ones start. The controller is killed with two jobs running, so that the next ones cannot be submitted.
    """
    options = ["--space", "optim.lr=choice:1e-3,1e30,2e-3", "--search", "grid", "--scheduler", "none"]
    options += ["--confirm", "0", "--max-parallel", "2", "--executor", "slurm", "--cpus-per-task", "1"]
    folder = work.folder / "50%x"
    arguments = [*SWEEP, *TINY, *options, "--output", folder.name]
    with open(work.folder / "log", "wb") as log:
        driver = subprocess.Popen(
            arguments, cwd=work.folder, env=work.cluster.environment, stdout=log, stderr=subprocess.STDOUT
        )
    output = work.folder / "log"
    try:
        work.wait_for(lambda: step_of(folder / "trials/000/seed-0") > 0, "a step of the first trial")
        work.cluster.kill("slurmctld")
        work.wait_for(lambda: "SLURM does not answer" in output.read_text(), "a submission that fails")
        time.sleep(2 * RETRY_SECONDS)
        assert driver.poll() is None, output.read_text()
        work.cluster.start("slurmctld")
        assert driver.wait(900) == 0, output.read_text()
    finally:
        driver.kill()
    assert outcome(folder)["failed"] == [None, None, "training", None]
    for number in range(4):
        run = folder / f"trials/{number:03d}/seed-0"
        assert read_job(run).submission == 1
        assert [attempt.outcome for attempt in attempts.read(run)] == ["failed" if number == 2 else "finished"]
        log_file = Path(read_job(run).scripts) / f"{read_job(run).job}_0_log.out"
        assert log_file.is_file(), "SLURM wrote it where the path says"


def test_a_cancelled_sweep_has_no_failed_trials_and_continues(work: Work):
    """`cancel` ends the driver first: one that sees a cancelled job takes its trial for a failed one."""
    options = ["--trials", "2", "--confirm", "0", "--scheduler", "none", "--epochs", "60", "--executor", "slurm"]
    arguments = [*SWEEP, *TINY, *options, "--cpus-per-task", "1", "--output", "sweep"]
    with open(work.folder / "log", "wb") as log:
        driver = subprocess.Popen(
            arguments, cwd=work.folder, env=work.cluster.environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        work.wait_for_step("sweep/trials/000/seed-0", 20)
        output = work.launch("cancel", "sweep")
        assert driver.wait(300) == 130, (work.folder / "log").read_text()
    finally:
        driver.kill()
    assert "trial-000 seed 0" in output
    work.wait_for_end("sweep/trials/000/seed-0")
    kept = newest_checkpoint_step(work.folder / "sweep/trials/000/seed-0")
    assert kept >= 20
    work.launch("sweep", *TINY, *options, "--cpus-per-task", "1", "--output", "sweep")
    assert outcome(work.folder / "sweep")["failed"] == [None, None]
    assert attempts.read(work.folder / "sweep/trials/000/seed-0")[-1].from_step == kept
    assert [line.split()[3] for line in work.launch("status", "sweep").splitlines() if "trial-00" in line] == [
        "finished",
        "finished",
    ], "the second driver has kept what the first one recorded"


def test_trial_may_have_several_nodes(work: Work):
    """Two nodes per trial, two trials in parallel on four nodes."""
    options = ["--trials", "2", "--scheduler", "none", "--confirm", "0", "--epochs", "2", "--nodes", "2"]
    work.launch("sweep", *TINY, *options, "--executor", "slurm", "--output", "wide")
    assert len(read_trials(work.folder / "wide")) == 2
    for number in range(2):
        result = result_of(work.folder / f"wide/trials/{number:03d}/seed-0")
        assert (result["status"], result["processes"]) == ("finished", 2)


def test_run_moves_between_executors(work: Work, tmp_path):
    """Started on this machine and interrupted, continued on SLURM and cancelled, on Ray and interrupted, finished on
    this machine: the weights are those of an uninterrupted run.
    """
    options = ["finetune", "--preset", "demo", *LAUNCH_TINY, "--processes", "2", "--epochs", "60"]
    here = [*options, "--executor", "local", "--output"]
    assert command(*here, tmp_path, folder=work.folder).returncode == 0
    run = work.folder / "moved/scratch/seed-0"
    local = subprocess.Popen([*LAUNCH, *here, "moved"], cwd=work.folder)
    wait_for(lambda: step_of(run) >= 15, "step 15", local)
    local.terminate()
    assert local.wait(300) == 130

    stopped = newest_checkpoint_step(run)
    work.launch(*options, "--executor", "slurm", "--output", "moved")
    work.wait_for_step("moved/scratch/seed-0", stopped + 20)
    output = work.launch(*options, "--executor", "local", "--output", "moved", code=2)
    assert f"belongs to SLURM: job {work.job('moved/scratch/seed-0')} is running; cancel it first" in output
    work.launch("cancel", "moved/scratch")
    work.wait_for_end("moved/scratch/seed-0")

    kept = newest_checkpoint_step(run)
    assert kept >= stopped + 20
    ray = subprocess.Popen([*LAUNCH, *options, "--executor", "ray", "--output", "moved"], cwd=work.folder)
    wait_for(lambda: step_of(run) >= kept + 20, "twenty steps under Ray")
    ray.terminate()
    assert ray.wait(300) == 130
    under_ray = attempts.read(run)[-1]
    assert (under_ray.job, under_ray.outcome, under_ray.from_step) == ("ray", "stopped", kept)
    assert under_ray.checkpoint_step == under_ray.step, "a run that is asked to stop loses no step"

    assert command(*here, "moved", folder=work.folder).returncode == 0
    one, other = final_weights(run), final_weights(tmp_path / "scratch/seed-0")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
