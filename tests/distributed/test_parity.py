"""Several real processes (gloo) compute what one computes: weights, losses, gradient norms, scores."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pfcluster import checkpoint
from pfcluster.config import RunConfig
from pfcluster.config_json import to_json
from tests.tiny import ROOT, config, final_weights

CASES: dict[str, RunConfig] = {
    **{objective: config(objective) for objective in ("mae", "finetune", "pf_mag")},
    **{
        f"{objective}-accumulate": config(objective, engine=replace(config(objective).engine, accumulate=2))
        for objective in ("mae", "finetune", "pf_mag")
    },
}
RANKS = (1, 2, 4)
TOLERANCE = 1e-6
"""Relative, over all weights together, after twelve steps in fp32."""


def launch(folders: list[Path], ranks: int) -> None:
    """Run the configs in `ranks` processes. Raises AssertionError with what the ranks said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests/distributed/worker.py"), *map(str, folders)],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * ranks, "\n".join(said)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """Every case on every number of ranks."""
    root = tmp_path_factory.mktemp("parity")
    found = {}
    for ranks in RANKS:
        for name, case in CASES.items():
            folder = root / f"{name}-{ranks}"
            folder.mkdir()
            (folder / "wanted.json").write_text(to_json(case))
            found[name, ranks] = folder
        launch([found[name, ranks] for name in CASES], ranks)
    return found


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_key_biases(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The nets' weights, with the biases of attention's keys set to zero.

    Softmax cancels them: their gradient is zero but for rounding, which Adam, dividing it by its own size, turns into
    steps of any direction. They change nothing that a net computes.
    """
    kept = {}
    for name, value in weights.items():
        if name.split("/")[0] not in ("model", "critic"):
            continue
        if name.endswith("qkv.bias"):
            query, key, rest = value.chunk(3)
            value = torch.cat([query, torch.zeros_like(key), rest])
        elif name.endswith("key_value.bias"):
            key, rest = value.chunk(2)
            value = torch.cat([torch.zeros_like(key), rest])
        kept[name] = value
    return kept


def distance(folder: Path, reference: Path) -> float:
    """Norm of the difference of all weights over the norm of the reference's."""
    ours, theirs = (without_key_biases(final_weights(path)) for path in (folder, reference))
    assert ours.keys() == theirs.keys()
    difference = torch.stack([(ours[name] - theirs[name]).double().norm() for name in theirs]).norm()
    return (difference / torch.stack([value.double().norm() for value in theirs.values()]).norm()).item()


@pytest.mark.parametrize("ranks", RANKS[1:])
@pytest.mark.parametrize("case", CASES)
def test_ranks_train_the_weights_of_one_process(runs, case, ranks):
    assert distance(runs[case, ranks], runs[case, 1]) < TOLERANCE


@pytest.mark.parametrize("objective", ["mae", "finetune", "pf_mag"])
def test_accumulation_trains_the_weights_of_the_whole_batch(runs, objective):
    assert distance(runs[f"{objective}-accumulate", 1], runs[objective, 1]) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_ranks_log_the_losses_norms_and_scores_of_one_process(runs, case):
    alone = metrics(runs[case, 1])
    for ranks in RANKS[1:]:
        together = metrics(runs[case, ranks])
        assert len(together) == len(alone)
        for ours, theirs in zip(together, alone, strict=True):
            assert ours.keys() == theirs.keys()
            for name in theirs.keys() - {"images_per_second", "split"}:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6), (name, theirs["step"])


def test_ranks_measure_the_poker_faces_of_one_process(runs):
    alone, together = (json.loads((runs["pf_mag", ranks] / "result.json").read_text()) for ranks in (1, 4))
    assert together["processes"] == 4
    assert together["poker"]["n"] == alone["poker"]["n"] == 16
    for row, cells in alone["poker"]["rows"].items():
        for name, value in cells.items():
            assert together["poker"]["rows"][row][name] == (
                None if value is None else pytest.approx(value, rel=1e-2)
            ), (row, name)
    assert together["test"]["n"] == 40


def test_a_run_goes_on_with_another_number_of_ranks(runs, tmp_path):
    """The checkpoint of step 9, made by two ranks, finished by one and by four."""
    source = checkpoint.step_folder(runs["pf_mag", 2] / "checkpoints", 9)
    assert source.is_dir()
    for ranks in (1, 4):
        folder = tmp_path / str(ranks)
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "wanted.json").write_text(to_json(CASES["pf_mag"]))
        for path in source.iterdir():
            target = folder / "checkpoints" / source.name / path.name
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
        launch([folder], ranks)
        assert min(line["step"] for line in metrics(folder)) == 10
        assert distance(folder, runs["pf_mag", 1]) < TOLERANCE
