"""Sweeps on a real SLURM: the same trials and scores as with any executor, each trial a job."""

from __future__ import annotations

import json
import subprocess

import torch

from pfcluster.launch import attempts
from pfcluster.runs.folder import newest_checkpoint_step
from pfcluster.sweep.trials import read_trials, result_of
from tests.cluster.work import TINY as LAUNCH_TINY
from tests.cluster.work import Work
from tests.sweeps import SWEEP, TINY, outcome, reference, step_of, wait_for
from tests.tiny import LAUNCH, final_weights


def test_outcome_is_that_of_any_executor(work: Work, tmp_path):
    """Trials that can run in parallel are one array. Stopped trials end by themselves; nothing is left in the queue."""
    expected = reference(tmp_path / "reference", TINY)
    output = work.launch(*TINY, "--executor", "slurm", "--output", "sweep", "--cpus-per-task", "1", launcher=SWEEP)
    assert outcome(work.folder / "sweep") == expected
    record = json.loads((work.folder / "sweep/plan.json").read_text())
    assert "trial-001 seed 0" in record["stages"]["runs"]["labels"]
    first = [json.loads((work.folder / f"sweep/trials/00{n}/seed-0/job.json").read_text())["job"] for n in range(4)]
    assert len({job.split("_")[0] for job in first}) == 1, "four trials that can run in parallel are one array"
    assert output.count("stopped at step") == sum(trial[3] is not None for trial in expected["trials"])


def test_trial_may_have_several_nodes(work: Work):
    """Two nodes per trial, two trials in parallel on four nodes."""
    options = ["--trials", "2", "--scheduler", "none", "--confirm", "0", "--epochs", "2", "--nodes", "2"]
    work.launch(*TINY, *options, "--executor", "slurm", "--output", "wide", launcher=SWEEP)
    assert len(read_trials(work.folder / "wide")) == 2
    for number in range(2):
        result = result_of(work.folder / f"wide/trials/{number:03d}/seed-0")
        assert (result["status"], result["processes"]) == ("finished", 2)


def test_run_moves_between_slurm_and_ray(work: Work):
    """Started on SLURM and cancelled, continued on Ray and interrupted, finished on SLURM: the weights are those of an
    uninterrupted run on SLURM.
    """
    options = ["finetune", "--preset", "demo", *LAUNCH_TINY, "--processes", "2", "--epochs", "300"]
    work.launch(*options, "--executor", "slurm", "--output", "uninterrupted", "--wait")
    work.launch(*options, "--executor", "slurm", "--output", "moved")
    run = work.folder / "moved/scratch/seed-0"
    work.wait_for_step("moved/scratch/seed-0", 30)
    output = work.launch(*options, "--executor", "local", "--output", "moved", code=2)
    assert f"belongs to SLURM: job {work.job('moved/scratch/seed-0')} is running; cancel it first" in output
    work.launch("cancel", "moved/scratch")
    work.wait_for_end("moved/scratch/seed-0")
    kept = newest_checkpoint_step(run)
    assert kept >= 30
    ray = subprocess.Popen([*LAUNCH, *options, "--executor", "ray", "--output", "moved"], cwd=work.folder)
    wait_for(lambda: step_of(run) >= kept + 20, "twenty steps under Ray")
    ray.terminate()
    assert ray.wait(300) == 130
    under_ray = attempts.read(run)[-1]
    assert (under_ray.job, under_ray.outcome, under_ray.from_step) == ("ray", "stopped", kept)
    work.launch(*options, "--executor", "slurm", "--output", "moved", "--wait")
    after_ray = attempts.read(run)[under_ray.number]
    assert after_ray.from_step == under_ray.checkpoint_step
    one, other = final_weights(run), final_weights(work.folder / "uninterrupted/scratch/seed-0")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
