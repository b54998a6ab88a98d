"""Whole runs: every layout trains one process's run, and goes on with any other layout's checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pfcluster.checkpoint import store
from pfcluster.config import RunConfig
from pfcluster.config.io import to_json
from pfcluster.evaluate import predictions
from pfcluster.runs.folder import REQUESTED_CONFIG_FILE, step_folder
from pfcluster.training.parity import zero_key_biases
from tests.distributed.ranks import launch
from tests.tiny import config, final_weights

Layout = tuple[str, int]
LAYOUTS: tuple[Layout, ...] = (("ddp", 1), ("fsdp2", 2), ("zero1", 2), ("zero2", 4), ("zero3", 2), ("ddp", 4))
TOLERANCE = 1e-6
"""Relative, over all weights together, after twelve steps in fp32."""


def wanted(layout: Layout) -> RunConfig:
    """PF-MAG with everything that must survive: two optimizers, the balance's memory, an average, accumulation."""
    base = config("pf_mag")
    engine = replace(base.engine, backend=layout[0], grad_accumulation_steps=2)  # type: ignore[arg-type]
    return replace(base, engine=engine, optim=replace(base.optim, ema=0.8))


def prepare(folder: Path, values: RunConfig) -> Path:
    folder.mkdir(parents=True)
    (folder / REQUESTED_CONFIG_FILE).write_text(to_json(values))
    return folder


def run(folders: Iterable[Path], ranks: int) -> None:
    launch("run_worker.py", [str(folder) for folder in folders], ranks)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[Layout, Path]:
    """A whole run of each layout."""
    root = tmp_path_factory.mktemp("unbroken")
    found = {layout: prepare(root / f"{layout[0]}-{layout[1]}", wanted(layout)) for layout in LAYOUTS}
    for ranks in (1, 2, 4):
        run([folder for layout, folder in found.items() if layout[1] == ranks], ranks)
    return found


@pytest.fixture(scope="module")
def resumed(unbroken, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Layout, Layout], Path]:
    """The checkpoint of step 9 of each layout, gone on with to the end by each layout."""
    root = tmp_path_factory.mktemp("resumed")
    found = {}
    for source in LAYOUTS:
        for target in LAYOUTS:
            folder = prepare(root / f"{source[0]}{source[1]}-{target[0]}{target[1]}", wanted(target))
            kept = step_folder(unbroken[source] / "checkpoints", 9)
            shutil.copytree(kept, step_folder(folder / "checkpoints", 9))
            found[source, target] = folder
    for ranks in (1, 2, 4):
        run([folder for (_, target), folder in found.items() if target[1] == ranks], ranks)
    return found


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and their average of the last checkpoint, without what the optimizers remember."""
    kept = {name: value for name, value in final_weights(folder).items() if "_optimizer/" not in name}
    assert any(name.startswith("model_ema/") for name in kept)
    return zero_key_biases(kept)


def distance(folder: Path, reference: Path) -> float:
    """Norm of the difference of all weights over the norm of the reference's."""
    ours, theirs = weights(folder), weights(reference)
    assert ours.keys() == theirs.keys()
    difference = torch.stack([(ours[name] - theirs[name]).double().norm() for name in theirs]).norm()
    return (difference / torch.stack([value.double().norm() for value in theirs.values()]).norm()).item()


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=str)
def test_every_layout_trains_the_run_of_one_process(unbroken, layout):
    assert distance(unbroken[layout], unbroken["ddp", 1]) < TOLERANCE
    assert json.loads((unbroken[layout] / "result.json").read_text())["engine"]["backend"] == layout[0]


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=str)
def test_every_layout_logs_the_losses_norms_and_scores_of_one_process(unbroken, layout):
    alone, together = metrics(unbroken["ddp", 1]), metrics(unbroken[layout])
    assert len(together) == len(alone)
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.keys() == theirs.keys()
        for name in theirs.keys() - {"images_per_second", "split"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6), (name, theirs["step"])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_run_goes_on_exactly_on_its_own_layout(resumed, unbroken, layout):
    ours, theirs = final_weights(resumed[layout, layout]), final_weights(unbroken[layout])
    different = [name for name, value in theirs.items() if not torch.equal(ours[name], value)]
    assert (len(ours), different) == (len(theirs), [])


@pytest.mark.parametrize("target", LAYOUTS, ids=lambda layout: f"to-{layout[0]}-{layout[1]}")
@pytest.mark.parametrize("source", LAYOUTS, ids=lambda layout: f"{layout[0]}-{layout[1]}")
def test_a_run_goes_on_on_any_layout(resumed, unbroken, source, target):
    """Same weights, and the same samples at the same steps: their losses are those of the unbroken run."""
    folder, reference = resumed[source, target], unbroken["ddp", 1]
    assert distance(folder, reference) < TOLERANCE
    rest = [line for line in metrics(reference) if line["step"] > 9]
    for ours, theirs in zip(metrics(folder), rest, strict=True):
        assert (ours["step"], ours["split"]) == (theirs["step"], theirs["split"])
        for name in ours.keys() & {"loss", "discriminator"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5)


def test_ranks_measure_the_poker_faces_of_one_process(unbroken):
    alone, together = (json.loads((unbroken[key] / "result.json").read_text()) for key in (("ddp", 1), ("zero2", 4)))
    assert together["processes"] == 4
    assert together["poker"]["n"] == alone["poker"]["n"] == 16
    for row, cells in alone["poker"]["rows"].items():
        for name, value in cells.items():
            assert together["poker"]["rows"][row][name] == (
                None if value is None else pytest.approx(value, rel=1e-2)
            ), (row, name)
    assert together["test"]["n"] == 40


def test_ranks_gather_the_predictions_of_one_process(unbroken):
    alone, together = (predictions.read(unbroken[key]) for key in (("ddp", 1), ("zero2", 4)))
    assert torch.equal(torch.from_numpy(together.labels), torch.from_numpy(alone.labels))
    assert (together.classes, together.samples) == (alone.classes, alone.samples)
    assert together.logits == pytest.approx(alone.logits, rel=1e-3, abs=1e-4)


def test_every_rank_writes_its_own_part(unbroken):
    for layout in LAYOUTS:
        folder = step_folder(unbroken[layout] / "checkpoints", 12)
        sizes = [path.stat().st_size for path in sorted(folder.glob("*.safetensors"))]
        assert len(sizes) == layout[1]
        assert max(sizes) < 2.5 * sum(sizes) / len(sizes)


def test_the_average_of_the_weights_is_what_is_evaluated_and_consolidated(unbroken, tmp_path):
    folder = unbroken["zero3", 2]
    found = store.load(folder).tensors("model", "model_ema")
    assert not torch.equal(found["model"]["classifier.weight"], found["model_ema"]["classifier.weight"])
    store.consolidate(folder, tmp_path / "weights.safetensors")
    values = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(values[name], value) for name, value in found["model_ema"].items())


def test_the_slowest_rank_is_in_the_summary(unbroken):
    stragglers = json.loads((unbroken["fsdp2", 2] / "result.json").read_text())["stragglers"]
    assert stragglers["slowest_rank"] in (0, 1)
    assert stragglers["busy_ms"] >= stragglers["median_busy_ms"] > 0
    lines = (unbroken["fsdp2", 2] / "ranks.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["data"]) for line in lines] == [2] * 12
