"""A rank that is killed, stuck or fails ends the run on all ranks, by its name; the run goes on as if nothing was."""

from __future__ import annotations

import json
import random
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pfcluster.config.io import to_json
from pfcluster.runs.folder import REQUESTED_CONFIG_FILE
from tests.distributed.ranks import start
from tests.tiny import config, final_weights

RANKS = 2
DEADLINE = 300
"""Seconds that bound the waiting for processes that should end by themselves."""


def prepare(folder: Path, backend: str) -> Path:
    base = config("pf_mag")
    engine = replace(base.engine, backend=backend, timeout=16.0)
    folder.mkdir()
    (folder / REQUESTED_CONFIG_FILE).write_text(to_json(replace(base, engine=engine)))
    return folder


def run(folder: Path, *, victim: int = 0, how: str = "SIGKILL", step: int = 0) -> list[tuple[int, str]]:
    """Exit codes and last words of the ranks. A victim that was stopped is killed once the others have ended."""
    arguments = [str(victim), how, str(step), str(folder / REQUESTED_CONFIG_FILE), str(folder)]
    started = start("lost_worker.py", arguments, RANKS)
    said: dict[int, str] = {}
    try:
        for rank in sorted(range(RANKS), key=lambda rank: rank == victim and step > 0):
            if rank == victim and how == "SIGSTOP":
                started[rank].send_signal(signal.SIGKILL)
            said[rank] = started[rank].communicate(timeout=DEADLINE)[0]
    except subprocess.TimeoutExpired:
        for process in started:
            process.kill()
        raise
    return [(started[rank].returncode, said[rank]) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """Final weights, averages and moments by backend."""
    found = {}
    for backend in ("fsdp2", "zero2"):
        folder = prepare(tmp_path_factory.mktemp("unbroken") / backend, backend)
        assert [code for code, _ in run(folder)] == [0, 0]
        found[backend] = final_weights(folder)
    return found


@pytest.mark.parametrize(
    ("backend", "how", "victim", "words"),
    [
        ("fsdp2", "SIGKILL", 1, "no sign of life"),
        ("zero2", "SIGKILL", 0, "rank 0 is gone"),
        ("zero2", "SIGSTOP", 1, "no sign of life"),
        ("fsdp2", "raise", 1, "ended with PermissionError: the tar cannot be opened any more"),
    ],
)
def test_a_lost_rank_ends_the_run_by_its_name_and_nothing_is_lost(tmp_path, unbroken, backend, how, victim, words):
    folder = prepare(tmp_path / "run", backend)
    step = random.Random(f"{backend}{how}").randint(4, 9)
    code, said = run(folder, victim=victim, how=how, step=step)[1 - victim]
    assert code == 1
    told = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert f"rank {victim}" in told[0]
    assert words in told[0]
    assert "give the same command" in told[0]
    assert not (folder / "result.json").exists()

    assert [code for code, _ in run(folder)] == [0, 0]
    assert json.loads((folder / "result.json").read_text())["status"] == "finished"
    ours, theirs = final_weights(folder), unbroken[backend]
    different = [name for name, value in theirs.items() if not torch.equal(ours[name], value)]
    assert (len(ours), different) == (len(theirs), [])
