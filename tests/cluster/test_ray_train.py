"""Runs under a real Ray Train, on two nodes of one core each: weights equal those of this machine, after any fault."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pfcluster.launch import attempts
from tests.cluster import ray_cluster
from tests.cluster.ray_cluster import Ray
from tests.commands import command
from tests.sweeps import LIMIT, has_checkpoint, step_of, wait_for
from tests.tiny import LAUNCH, OPTIONS, ROOT, final_weights

TINY = [*OPTIONS, *shlex.split("--engine.timeout 90 --checkpoint.every-steps 10 --evaluate.every-epochs 10")]
FINETUNE = ["finetune", "--preset", "demo", *TINY, "--engine.backend", "ddp", "--epochs", "20"]
"""120 steps."""
RUN = "scratch/seed-0"


@pytest.fixture(scope="module")
def ray() -> Iterator[Ray]:
    with ray_cluster.running(nodes=2, cpus=1) as cluster:
        yield cluster


def begin(ray: Ray, *arguments: str) -> subprocess.Popen[str]:
    """Start a command on the cluster."""
    command = [*LAUNCH, *arguments, "--executor", "ray"]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, **pipe, text=True, cwd=ROOT, env=ray.environment)


def launch(ray: Ray, *arguments: str, code: int = 0) -> str:
    """Run a command on the cluster; returns its output."""
    process = begin(ray, *arguments)
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == code, output
    assert "Traceback" not in output, output
    return output


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Final weights of two processes of this machine."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = command(*FINETUNE, "--processes", "2", "--executor", "local", "--output", folder)
    assert done.returncode == 0, done.stderr
    return final_weights(folder / RUN)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether all tensors are bitwise equal."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def workers_of(folder: Path) -> list[int]:
    """Process ids of the Ray workers that write the logs of a folder."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            target = os.readlink(process / "fd/1")
        except OSError:
            continue
        if target.startswith(str(folder)) and "rank-" in target:
            pids.append(int(process.name))
    return pids


def test_killed_worker_restarts_from_the_last_checkpoint(ray, uninterrupted, tmp_path):
    """One of two workers on two nodes is killed; Ray starts both again, and the final weights are unaffected."""
    process = begin(ray, *FINETUNE, "--nodes", "2", "--output", str(tmp_path))
    folder = tmp_path / RUN
    wait_for(lambda: step_of(folder) >= 15 and has_checkpoint(folder), "a checkpoint and steps after it", process)
    pids = workers_of(folder)
    assert len(pids) == 2
    os.kill(pids[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, output
    first, second = attempts.read(folder)
    assert (first.outcome, second.outcome) == ("lost", "finished")
    assert 10 <= second.from_step <= first.step
    assert equal(final_weights(folder), uninterrupted)


def test_killed_driver_restarts_from_the_last_checkpoint(ray, uninterrupted, tmp_path):
    """The cluster ends the run with its driver; the same command continues it. A further one has nothing to do."""
    arguments = [*FINETUNE, "--processes", "2", "--output", str(tmp_path)]
    process, folder = begin(ray, *arguments), tmp_path / RUN
    wait_for(lambda: step_of(folder) >= 15 and has_checkpoint(folder), "a checkpoint and steps after it", process)
    process.kill()
    process.wait()
    wait_for(lambda: not workers_of(folder), "the workers' end")
    launch(ray, *arguments)
    assert attempts.read(folder)[-1].from_step >= 10
    assert equal(final_weights(folder), uninterrupted)
    assert "finished already" in launch(ray, *arguments)


def test_pf_mag_trains_on_ray_with_the_engine_that_auto_takes(ray, tmp_path):
    launch(ray, "pf-mag", "--preset", "small", *TINY, "--processes", "2", "--output", str(tmp_path))
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("*/seed-0/result.json"))
    assert (result["status"], result["processes"], result["engine"]["backend"]) == ("finished", 2, "zero2")


REFUSED = (
    (["--address", "127.0.0.1:1"], "--address 127.0.0.1:1: no connection"),
    (["--address", "head"], "write the head node's HOST:PORT"),
    (["--address", "ray://head:10001"], "run this command on a node of the cluster"),
    (["--processes", "3", "--batch-size", "18", "--cpus-per-task", "1"], "3 workers with 1 cores each"),
    (["--nodes", "4"], "--nodes 4: the Ray cluster: 2 nodes, 2 cores, 0 GPUs"),
    (["--processes", "3"], "batch_size must be a multiple of the processes"),
)
RUN_EACH = """
import json, sys
from tests.commands import command
done = [command(*words) for words in json.loads(sys.argv[1])]
print(json.dumps([[each.returncode, each.stdout + each.stderr] for each in done]))
"""
"""Runs commands one after another in one process, and prints the exit code and output of each."""


def test_impossible_requests_are_refused_before_training(ray, tmp_path):
    commands = [[*FINETUNE, *words, "--executor", "ray", "--output", str(tmp_path)] for words, _ in REFUSED]
    done = subprocess.run(
        [sys.executable, "-c", RUN_EACH, json.dumps(commands)],
        cwd=ROOT, env=ray.environment, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for (code, output), (_, message) in zip(json.loads(done.stdout.splitlines()[-1]), REFUSED, strict=True):
        assert code == 2, output
        assert message in output
        assert "Traceback" not in output
    assert not (tmp_path / RUN / "checkpoints").exists()


def test_runs_whose_failure_would_repeat_are_not_retried_on_ray(ray, tmp_path):
    output = launch(ray, *FINETUNE, "--optim.lr", "1e30", "--output", str(tmp_path), code=1)
    assert "scratch seed 0 failed (training)" in output
    (only,) = attempts.read(tmp_path / RUN)
    assert (only.outcome, only.kind) == ("failed", "training")
