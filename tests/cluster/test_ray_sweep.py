"""Sweeps under a real Ray Tune: the trials and scores of any executor, whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from pfcluster.sweep.trials import read_trials, result_of
from tests.sweeps import LONG, TINY, begin, outcome, reference, step_of, wait_for, went_on

RAY = ("--executor", "ray", "--max-parallel", "2")


def processes(pattern: str) -> list[int]:
    """Processes by their command line."""
    found = subprocess.run(["pgrep", "-f", pattern], capture_output=True, text=True, check=False)
    return [int(number) for number in found.stdout.split()]


def parent_of(process: int) -> int:
    """The process that started another."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_lost_ray_worker_and_a_killed_driver_change_nothing(tmp_path):
    """The actor of a trial is killed, and Ray Tune begins the trial again; then the driver is killed, with the Ray that
    it started; the same command ends with the trials and scores of a sweep in this process, and leaves nothing behind.
    """
    expected = reference(tmp_path / "reference", LONG)
    folder = tmp_path / "sweep"
    first = folder / "trials/000/seed-0"
    driver = begin(folder, *LONG, *RAY)
    wait_for(lambda: step_of(first) >= 7, "step 7", driver)
    os.kill(parent_of(processes(f"pfcluster.launch.worker .*{first}")[0]), signal.SIGKILL)
    wait_for(lambda: (result_of(first) or {}).get("status") == "finished", "the first trial's end", driver)
    assert went_on(first)
    finished = (first / "result.json").stat().st_mtime
    driver.kill()
    driver.wait()
    wait_for(lambda: not processes(f"pfcluster.launch.worker .*{folder}"), "the end of the driver's trials")
    again = begin(folder, *LONG, *RAY)
    said, _ = again.communicate(timeout=400)
    assert again.returncode == 0, said
    assert outcome(folder) == expected
    assert (first / "result.json").stat().st_mtime == finished
    assert "trial-000 (baseline)" not in said, "it was proposed before"
    assert not processes(f"pfcluster.launch.worker .*{folder}")


def test_a_trial_may_have_several_ray_train_workers(tmp_path):
    """Each trial has two workers; the score is the score of two processes anywhere."""
    options = [*TINY, "--trials", "2", "--scheduler", "none", "--confirm", "0", "--processes", "2", "--epochs", "2"]
    driver = begin(tmp_path, *options, "--executor", "ray", "--max-parallel", "1")
    said, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    assert len(read_trials(tmp_path)) == 2
    for number in range(2):
        result = result_of(tmp_path / f"trials/{number:03d}/seed-0")
        assert (result["status"], result["processes"]) == ("finished", 2)
        assert (tmp_path / f"trials/{number:03d}/seed-0/logs/rank-1.log").exists()
