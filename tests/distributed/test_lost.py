"""A rank that is killed, hangs or fails ends the run on all ranks and is named; resuming gives identical weights."""

from __future__ import annotations

import pickle
import random
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pfcluster.config.io import to_json
from pfcluster.runs.folder import REQUESTED_CONFIG_FILE, is_finished, read_result
from tests.distributed.ranks import start
from tests.tiny import config, final_weights

pytestmark = pytest.mark.slow

RANKS = 2
DEADLINE = 300
"""Seconds after which processes that should have exited are killed."""


def prepare(folder: Path, backend: str, timeout: float = 60.0) -> Path:
    base = config("pf_mag")
    engine = replace(base.engine, backend=backend, timeout=timeout)
    folder.mkdir()
    (folder / REQUESTED_CONFIG_FILE).write_text(to_json(replace(base, engine=engine)))
    return folder


def run(folder: Path, *, victim: int = 0, how: str = "SIGKILL", step: int = 0) -> list[tuple[int, str]]:
    """Exit code and output of every rank. A suspended victim (SIGSTOP) is killed once the others have exited."""
    arguments = [str(victim), how, str(step), str(folder / REQUESTED_CONFIG_FILE), str(folder)]
    processes = start("lost_worker.py", arguments, RANKS)
    output: dict[int, str] = {}
    try:
        for rank in sorted(range(RANKS), key=lambda rank: rank == victim and step > 0):
            if rank == victim and how == "SIGSTOP":
                processes[rank].send_signal(signal.SIGKILL)
            output[rank] = processes[rank].communicate(timeout=DEADLINE)[0]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
        raise
    return [(processes[rank].returncode, output[rank]) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """Final weights, averages and optimizer state of runs without interruption, by backend."""
    weights = {}
    for backend in ("fsdp2", "zero2"):
        folder = prepare(tmp_path_factory.mktemp("uninterrupted") / backend, backend)
        assert [code for code, _ in run(folder)] == [0, 0]
        weights[backend] = final_weights(folder)
    return weights


@pytest.mark.parametrize(
    ("backend", "how", "victim", "message"),
    [
        ("zero2", "SIGKILL", 0, "rank 0 is gone"),
        ("zero2", "SIGSTOP", 1, "no heartbeat"),
        ("fsdp2", "raise", 1, "ended with PermissionError: the tar cannot be opened any more"),
    ],
)
def test_a_lost_rank_is_named_and_the_run_resumes(tmp_path, uninterrupted, backend, how, victim, message):
    folder = prepare(tmp_path / "run", backend, 16.0 if how == "SIGSTOP" else 60.0)
    step = random.Random(f"{backend}{how}").randint(4, 9)
    code, output = run(folder, victim=victim, how=how, step=step)[1 - victim]
    assert code == 1
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"rank {victim}" in errors[0]
    assert message in errors[0]
    assert "run the same command again" in errors[0]
    assert read_result(folder) is None
    recorded = pickle.loads((folder / f"flight_recorder/gloo-rank-{1 - victim}.pickle").read_bytes())
    assert any("all_reduce" in str(entry["profiling_name"]) for entry in recorded["entries"])

    assert [code for code, _ in run(folder)] == [0, 0]
    assert is_finished(folder)
    resumed, expected = final_weights(folder), uninterrupted[backend]
    different = [name for name, value in expected.items() if not torch.equal(resumed[name], value)]
    assert (len(resumed), different) == (len(expected), [])
