"""Sweeps on the command line on this machine: crashes, failing trials, errors of the user."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from pfcluster.cli.train import INTERRUPTED
from pfcluster.sweep.trials import read_failed
from tests.commands import command
from tests.sweeps import LIMIT, LONG, begin, has_checkpoint, outcome, resumed, shared_reference, wait_for
from tests.tiny import OPTIONS


def worker_of(folder: Path) -> int:
    """Process that trains in a folder."""
    output = subprocess.run(["pgrep", "-f", f"pfcluster.launch.worker .*{folder}"], capture_output=True, text=True)
    return int(output.stdout.split()[0])


@pytest.mark.slow
def test_killed_worker_and_killed_driver_do_not_change_the_outcome(tmp_path, tmp_path_factory):
    """A worker is killed and retried, then the driver is killed; the same command ends with the same outcome."""
    expected = shared_reference(tmp_path_factory, LONG)
    folder = tmp_path / "sweep"
    first = folder / "trials/000/seed-0"
    driver = begin(folder, *LONG, "--executor", "local", "--max-parallel", "2")
    wait_for(lambda: has_checkpoint(first), "a checkpoint", driver)
    os.kill(worker_of(first), signal.SIGKILL)
    wait_for(lambda: resumed(first), "resuming from a checkpoint", driver)
    driver.kill()
    driver.wait()
    again = begin(folder, *LONG, "--executor", "local", "--max-parallel", "2")
    output, _ = again.communicate(timeout=LIMIT)
    assert again.returncode == 0, output
    assert outcome(folder) == expected
    assert re.search(r"trial-00\d: accuracy 0\.\d+, stopped at step", output)


def test_a_sweep_is_shown_and_cancelled_from_another_terminal(tmp_path):
    """Its runs are listed while it runs; after `cancel` the same command continues, and lists finished ones, too."""
    folder = tmp_path / "sweep"
    options = [*LONG, "--trials", "2", "--confirm", "0", "--executor", "local", "--max-parallel", "1"]
    driver = begin(folder, *options)
    wait_for(lambda: has_checkpoint(folder / "trials/000/seed-0"), "a checkpoint", driver)
    assert re.search(r"trial-000 seed 0\s.* running", command("status", folder).stdout)
    assert "cancelled: trial-000 seed 0" in command("cancel", folder).stdout
    output, _ = driver.communicate(timeout=LIMIT)
    assert driver.returncode == INTERRUPTED, output
    assert re.search(r"trial-000 seed 0\s.* stopped", command("status", folder).stdout)

    again = begin(folder, *options)
    output, _ = again.communicate(timeout=LIMIT)
    assert again.returncode == 0, output
    table = command("status", folder).stdout
    assert [len(re.findall(rf"trial-00{number} seed 0\s.* finished", table)) for number in range(2)] == [1, 1]


@pytest.mark.slow
def test_failed_trials_are_reported_and_the_sweep_continues(tmp_path):
    """One trial diverges, others need more memory than there is."""
    space = ["--space", "optim.lr=choice:1e-3,1e30", "--space", "model.width=choice:32,4000000000"]
    options = ["--role", "scratch", "--search", "grid", "--confirm", "0", "--scheduler", "none", "--executor", "local"]
    done = command("sweep", *OPTIONS, *space, *options, "--output", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = [None, None, "memory", "training", "memory"]
    failures = [read_failed(tmp_path / f"trials/{number:03d}/seed-0") for number in range(5)]
    assert [one and one.kind for one in failures] == kinds
    assert "trial-002: failed (memory)" in done.stdout
    assert "trial-003: failed (training): step" in done.stdout
    assert (tmp_path / "report/report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--space", "weights"], "no such space; there are loss_weights, learning_rates"),
        (["--space", "pf_mag.weight_ort=loguniform:1e-3,1"], "no field pf_mag.weight_ort"),
        (["--space", "optim.lr=loguniform:0,1"], "loguniform needs positive ends"),
        (["--max-parallel", "0"], "--max-parallel must be at least 1"),
        (["--gpus-per-trial", "0.5"], "there are 0 GPUs"),
        (["--batch-size", "0"], "batch_size must be at least 1"),
        (["--data.shards", "/nowhere"], "/nowhere"),
        (["--evaluate.selection-split", "test"], "validation"),
        (["--space", "mask_ratio", "--space", "loss_weights"], "say which with --role"),
    ],
)
def test_user_error_is_one_sentence(tmp_path, arguments, message):
    words = ["sweep", *arguments, "--executor", "local", "--output", tmp_path / "sweep"]
    done = command(*words, environment=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "sweep").exists()
