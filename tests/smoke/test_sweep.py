"""Sweeps on the command line, on this machine: found in, and found by, what goes wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from pfcluster.sweep.trials import read_failed
from tests.sweeps import LONG, SWEEP, begin, outcome, reference, step_of, wait_for, went_on
from tests.tiny import OPTIONS, ROOT


def worker_of(folder: Path) -> int:
    """Process that trains in a folder."""
    found = subprocess.run(["pgrep", "-f", f"pfcluster.launch.worker .*{folder}"], capture_output=True, text=True)
    return int(found.stdout.split()[0])


def test_a_killed_trial_and_a_killed_driver_change_nothing(tmp_path):
    """A worker is killed, and tried again; then the driver; the same command ends as if nothing had happened."""
    expected = reference(tmp_path / "reference", LONG)
    folder = tmp_path / "sweep"
    first = folder / "trials/000/seed-0"
    driver = begin(folder, *LONG, "--executor", "local", "--at-once", "2")
    wait_for(lambda: step_of(first) >= 7, "step 7", driver)
    os.kill(worker_of(first), signal.SIGKILL)
    wait_for(lambda: went_on(first), "going on from a checkpoint", driver)
    driver.kill()
    driver.wait()
    again = begin(folder, *LONG, "--executor", "local", "--at-once", "2")
    said, _ = again.communicate(timeout=400)
    assert again.returncode == 0, said
    assert outcome(folder) == expected
    assert re.search(r"trial-00\d: accuracy 0\.\d+, stopped at step", said)


def test_what_a_trial_failed_of_is_told_and_the_sweep_goes_on(tmp_path):
    """One trial diverges, one wants more memory than there is; the others are searched."""
    space = ["--space", "optim.lr=choice:1e-3,1e30", "--space", "model.width=choice:32,4000000000"]
    options = ["--role", "scratch", "--search", "grid", "--confirm", "0", "--scheduler", "none", "--executor", "local"]
    done = subprocess.run(
        [*SWEEP, *OPTIONS, *space, *options, "--output", str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = [None, None, "memory", "training", "memory"]
    found = [read_failed(tmp_path / f"trials/{number:03d}/seed-0") for number in range(5)]
    assert [one and one.kind for one in found] == kinds
    assert "trial-002: failed (memory)" in done.stdout
    assert "trial-003: failed (training): step" in done.stdout
    assert (tmp_path / "report/report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--space", "weights"], "no such space; there are loss_weights, learning_rates"),
        (["--space", "pf_mag.weight_ort=loguniform:1e-3,1"], "no field pf_mag.weight_ort"),
        (["--space", "optim.lr=loguniform:0,1"], "loguniform needs positive ends"),
        (["--at-once", "0"], "--at-once must be at least 1"),
        (["--gpus-per-trial", "0.5"], "there are 0 GPUs"),
        (["--batch-size", "0"], "batch_size must be at least 1"),
        (["--data.shards", "/nowhere"], "/nowhere"),
        (["--evaluate.selection-split", "test"], "validation"),
        (["--space", "mask_ratio", "--space", "loss_weights"], "say which with --role"),
    ],
)
def test_a_wrong_call_ends_at_once_with_one_sentence(tmp_path, arguments, said):
    done = subprocess.run(
        [*SWEEP, *arguments, "--executor", "local", "--output", str(tmp_path / "sweep")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "sweep").exists()
