"""Sweeps on a real SLURM: the trials and scores of any executor, each trial a job."""

from __future__ import annotations

import json

from pfcluster.sweep.trials import read_trials, result_of
from tests.cluster.work import Work
from tests.sweeps import SWEEP, TINY, outcome, reference


def test_the_trials_and_scores_are_those_of_any_executor(work: Work, tmp_path):
    """What can run at once is one array; trials that ASHA stops end by themselves, and nothing is left in the queue."""
    expected = reference(tmp_path / "reference", TINY)
    said = work.launch(*TINY, "--executor", "slurm", "--output", "sweep", "--cpus-per-task", "1", launcher=SWEEP)
    assert outcome(work.folder / "sweep") == expected
    record = json.loads((work.folder / "sweep/pipeline.json").read_text())
    assert "trial-001 seed 0" in record["groups"]["runs"]["labels"]
    first = [json.loads((work.folder / f"sweep/trials/00{n}/seed-0/job.json").read_text())["job"] for n in range(4)]
    assert len({job.split("_")[0] for job in first}) == 1, "four trials that can run at once are one array"
    assert "stopped at step" in said


def test_a_trial_may_have_several_nodes(work: Work):
    """Two nodes a trial, two trials at once on the four."""
    options = ["--trials", "2", "--scheduler", "none", "--confirm", "0", "--epochs", "2", "--nodes", "2"]
    work.launch(*TINY, *options, "--executor", "slurm", "--output", "wide", launcher=SWEEP)
    assert len(read_trials(work.folder / "wide")) == 2
    for number in range(2):
        result = result_of(work.folder / f"wide/trials/{number:03d}/seed-0")
        assert (result["status"], result["processes"]) == ("finished", 2)
