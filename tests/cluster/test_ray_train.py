"""Runs under a real Ray Train, on two Ray nodes of one core each: the weights of any executor, whatever is killed."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pfcluster.launch import attempts
from pfcluster.runs.folder import newest_checkpoint_step
from tests.cluster import ray_cluster
from tests.cluster.ray_cluster import Ray
from tests.sweeps import step_of, wait_for
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
    """A command on the cluster."""
    command = [*LAUNCH, *arguments, "--executor", "ray"]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, **pipe, text=True, cwd=ROOT, env=ray.environment)


def launch(ray: Ray, *arguments: str, code: int = 0) -> str:
    """A command on the cluster, to its end."""
    process = begin(ray, *arguments)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == code, said
    assert "Traceback" not in said, said
    return said


def local(folder: Path, *arguments: str) -> None:
    """The same on this machine."""
    subprocess.run([*LAUNCH, *arguments, "--executor", "local", "--output", str(folder)], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What two processes of this machine end with."""
    folder = tmp_path_factory.mktemp("unbroken")
    local(folder, *FINETUNE, "--processes", "2")
    return final_weights(folder / RUN)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def workers_of(folder: Path) -> list[int]:
    """Ray's workers that train in a folder: those that write its logs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            target = os.readlink(process / "fd/1")
        except OSError:
            continue
        if target.startswith(str(folder)) and "rank-" in target:
            found.append(int(process.name))
    return found


def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint(ray, unbroken, tmp_path):
    """The workers sit on two nodes; one is killed; Ray begins both again, and the weights are the unbroken run's."""
    process = begin(ray, *FINETUNE, "--nodes", "2", "--output", str(tmp_path))
    folder = tmp_path / RUN
    wait_for(lambda: step_of(folder) >= 25, "step 25", process)
    found = workers_of(folder)
    assert len(found) == 2
    os.kill(found[1], signal.SIGKILL)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    first, second = attempts.read(folder)
    assert (first.outcome, second.outcome) == ("lost", "finished")
    assert 20 <= second.from_step <= first.step
    assert same(final_weights(folder), unbroken)


def test_a_killed_driver_costs_the_steps_since_the_last_checkpoint(ray, unbroken, tmp_path):
    """The cluster ends the run with its driver; the same command goes on. Then it has nothing to do."""
    arguments = [*FINETUNE, "--processes", "2", "--output", str(tmp_path)]
    process, folder = begin(ray, *arguments), tmp_path / RUN
    wait_for(lambda: step_of(folder) >= 25, "step 25", process)
    process.kill()
    process.wait()
    wait_for(lambda: not workers_of(folder), "the workers' end")
    launch(ray, *arguments)
    assert attempts.read(folder)[-1].from_step >= 20
    assert same(final_weights(folder), unbroken)
    assert "finished already" in launch(ray, *arguments)


def test_a_run_moves_between_executors(ray, unbroken, tmp_path):
    """Begun on this machine and interrupted, taken over by Ray and interrupted, finished on this machine."""
    arguments, folder = [*FINETUNE, "--processes", "2"], tmp_path / RUN
    here = subprocess.Popen([*LAUNCH, *arguments, "--executor", "local", "--output", str(tmp_path)], cwd=ROOT)
    wait_for(lambda: step_of(folder) >= 15, "step 15")
    here.terminate()
    assert here.wait(300) == 130
    process = begin(ray, *arguments, "--output", str(tmp_path))
    stopped = newest_checkpoint_step(folder)
    wait_for(lambda: step_of(folder) >= stopped + 20, "twenty more steps", process)
    process.terminate()
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 130, said
    assert "the same command goes on" in said
    last = attempts.read(folder)[-1]
    assert (last.outcome, last.from_step) == ("stopped", stopped)
    assert last.checkpoint_step == last.step, "a run that is asked to stop loses no step"
    local(tmp_path, *arguments)
    assert same(final_weights(folder), unbroken)


@pytest.mark.parametrize("command", ["pretrain", "pf-mag"])
def test_every_objective_is_trained(ray, tmp_path, command):
    launch(ray, command, "--preset", "demo", *TINY, "--processes", "2", "--output", str(tmp_path))
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob("*/seed-0/result.json"))
    assert (result["status"], result["processes"], result["engine"]["backend"]) == ("finished", 2, "zero2")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--address", "127.0.0.1:1"], "--address 127.0.0.1:1: no connection"),
        (["--address", "head"], "write the head node's HOST:PORT"),
        (["--address", "ray://head:10001"], "run this command on a node of the cluster"),
        (["--processes", "3", "--batch-size", "18", "--cpus-per-task", "1"], "3 workers with 1 cores each"),
        (["--nodes", "4"], "--nodes 4: the Ray cluster: 2 nodes, 2 cores, 0 GPUs"),
        (["--processes", "3"], "batch_size must be a multiple of the processes"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(ray, tmp_path, arguments, said):
    told = launch(ray, *FINETUNE, *arguments, "--output", str(tmp_path), code=2)
    assert said in told
    assert not (tmp_path / RUN / "checkpoints").exists()


def test_what_would_only_repeat_itself_is_not_tried_again(ray, tmp_path):
    said = launch(ray, *FINETUNE, "--optim.lr", "1e30", "--output", str(tmp_path), code=1)
    assert "scratch seed 0 failed (training)" in said
    (only,) = attempts.read(tmp_path / RUN)
    assert (only.outcome, only.kind) == ("failed", "training")
