"""Whole runs: every layout (backend and number of ranks) gives the weights of one process, and resumes from other
layouts' checkpoints.
"""

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
from pfcluster.training.gan_diagnostics import DISCRETE_METRICS
from pfcluster.training.parity import zero_key_biases
from tests.distributed.ranks import launch
from tests.tiny import MACHINE_METRICS, config, final_weights

pytestmark = pytest.mark.slow

Layout = tuple[str, int]
LAYOUTS: tuple[Layout, ...] = (("ddp", 1), ("fsdp2", 2), ("zero1", 2), ("zero2", 4), ("zero3", 2), ("ddp", 4))
SAME = LAYOUTS[:5]
"""Layouts that resume a checkpoint of their own."""
RESUMES = (
    *((layout, layout) for layout in SAME),
    (("ddp", 1), ("fsdp2", 2)),
    (("fsdp2", 2), ("zero3", 2)),
    (("zero1", 2), ("zero2", 4)),
    (("zero2", 4), ("ddp", 1)),
)
TOLERANCE = 1e-6
"""Relative, over all weights together, after twelve steps in fp32."""
DISCRETE = DISCRETE_METRICS | {"train_accuracy", "accuracy", "mean_class_accuracy", "macro_f1"}
ONE_IMAGE = 0.1
"""Change of these fractions, of 16 training or 32 validation images, if rounding changes the class of one image."""


def config_of(layout: Layout) -> RunConfig:
    """PF-MAG with all kinds of state: two optimizers, the loss balancer, a moving average, accumulation."""
    base = config("pf_mag")
    engine = replace(base.engine, backend=layout[0], grad_accumulation_steps=2)  # type: ignore[arg-type]
    return replace(base, engine=engine, optim=replace(base.optim, ema=0.8))


def write_request(folder: Path, values: RunConfig) -> Path:
    folder.mkdir(parents=True)
    (folder / REQUESTED_CONFIG_FILE).write_text(to_json(values))
    return folder


def run(folders: Iterable[Path], ranks: int) -> None:
    launch("run_worker.py", [str(folder) for folder in folders], ranks)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[Layout, Path]:
    """A run of each layout without interruption."""
    root = tmp_path_factory.mktemp("uninterrupted")
    folders = {layout: write_request(root / f"{layout[0]}-{layout[1]}", config_of(layout)) for layout in LAYOUTS}
    for ranks in (1, 2, 4):
        run([folder for layout, folder in folders.items() if layout[1] == ranks], ranks)
    return folders


@pytest.fixture(scope="module")
def resumed(uninterrupted, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Layout, Layout], Path]:
    """The checkpoint of step 9 of a layout, resumed by another layout."""
    root = tmp_path_factory.mktemp("resumed")
    folders = {}
    for source, target in RESUMES:
        folder = write_request(root / f"{source[0]}{source[1]}-{target[0]}{target[1]}", config_of(target))
        checkpoint = step_folder(uninterrupted[source] / "checkpoints", 9)
        shutil.copytree(checkpoint, step_folder(folder / "checkpoints", 9))
        folders[source, target] = folder
    for ranks in (1, 2, 4):
        run([folder for (_, target), folder in folders.items() if target[1] == ranks], ranks)
    return folders


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and their moving average in the last checkpoint, without optimizer state."""
    tensors = {name: value for name, value in final_weights(folder).items() if "_optimizer/" not in name}
    assert any(name.startswith("model_ema/") for name in tensors)
    return zero_key_biases(tensors)


def distance(folder: Path, reference: Path) -> float:
    """Norm of the difference of all weights over the norm of the reference's."""
    actual, expected = weights(folder), weights(reference)
    assert actual.keys() == expected.keys()
    difference = torch.stack([(actual[name] - expected[name]).double().norm() for name in expected]).norm()
    return (difference / torch.stack([value.double().norm() for value in expected.values()]).norm()).item()


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=str)
def test_layout_gives_weights_of_one_process(uninterrupted, layout):
    assert distance(uninterrupted[layout], uninterrupted["ddp", 1]) < TOLERANCE
    assert json.loads((uninterrupted[layout] / "result.json").read_text())["engine"]["backend"] == layout[0]


@pytest.mark.parametrize("layout", LAYOUTS[1:], ids=str)
def test_layout_logs_metrics_of_one_process(uninterrupted, layout):
    for actual, expected in zip(metrics(uninterrupted[layout]), metrics(uninterrupted["ddp", 1]), strict=True):
        assert actual.keys() == expected.keys()
        for name in expected.keys() - {*MACHINE_METRICS, "split"}:
            absolute = ONE_IMAGE if name in DISCRETE else 1e-6
            assert actual[name] == pytest.approx(expected[name], rel=1e-5, abs=absolute), (name, expected["step"])


@pytest.mark.parametrize("layout", SAME, ids=str)
def test_resume_is_exact_on_the_same_layout(resumed, uninterrupted, layout):
    actual, expected = final_weights(resumed[layout, layout]), final_weights(uninterrupted[layout])
    different = [name for name, value in expected.items() if not torch.equal(actual[name], value)]
    assert (len(actual), different) == (len(expected), [])


@pytest.mark.parametrize(("source", "target"), RESUMES, ids=lambda layout: f"{layout[0]}-{layout[1]}")
def test_resume_on_another_layout(resumed, uninterrupted, source, target):
    """The weights are those of an uninterrupted run; so are the losses, because steps use the same samples."""
    folder, reference = resumed[source, target], uninterrupted["ddp", 1]
    assert distance(folder, reference) < TOLERANCE
    later = [line for line in metrics(reference) if line["step"] > 9]
    for actual, expected in zip(metrics(folder), later, strict=True):
        assert (actual["step"], actual["split"]) == (expected["step"], expected["split"])
        for name in actual.keys() & {"loss", "disc_loss"}:
            assert actual[name] == pytest.approx(expected[name], rel=1e-5)


def test_ranks_evaluate_poker_faces_as_one_process(uninterrupted):
    single, several = (
        json.loads((uninterrupted[key] / "result.json").read_text()) for key in (("ddp", 1), ("zero2", 4))
    )
    assert several["processes"] == 4
    assert several["poker"]["n"] == single["poker"]["n"] == 16
    for row, cells in single["poker"]["rows"].items():
        for name, value in cells.items():
            assert several["poker"]["rows"][row][name] == (None if value is None else pytest.approx(value, rel=1e-2)), (
                row,
                name,
            )
    assert several["test"]["n"] == 40


def test_ranks_gather_predictions_of_one_process(uninterrupted):
    single, several = (predictions.read(uninterrupted[key]) for key in (("ddp", 1), ("zero2", 4)))
    assert torch.equal(torch.from_numpy(several.labels), torch.from_numpy(single.labels))
    assert (several.classes, several.samples) == (single.classes, single.samples)
    assert several.logits == pytest.approx(single.logits, rel=1e-3, abs=1e-4)


def test_every_rank_writes_its_shard(uninterrupted):
    for layout in LAYOUTS:
        folder = step_folder(uninterrupted[layout] / "checkpoints", 12)
        sizes = [path.stat().st_size for path in sorted(folder.glob("*.safetensors"))]
        assert len(sizes) == layout[1]
        assert max(sizes) < 2.5 * sum(sizes) / len(sizes)


def test_ema_is_evaluated_and_consolidated(uninterrupted, tmp_path):
    folder = uninterrupted["zero3", 2]
    tensors = store.load(folder).tensors("model", "model_ema")
    assert not torch.equal(tensors["model"]["classifier.weight"], tensors["model_ema"]["classifier.weight"])
    store.consolidate(folder, tmp_path / "weights.safetensors")
    values = load_file(tmp_path / "weights.safetensors")
    assert all(torch.equal(values[name], value) for name, value in tensors["model_ema"].items())


def test_slowest_rank_is_in_the_result(uninterrupted):
    stragglers = json.loads((uninterrupted["fsdp2", 2] / "result.json").read_text())["stragglers"]
    assert stragglers["slowest_rank"] in (0, 1)
    assert stragglers["busy_ms"] >= stragglers["median_busy_ms"] > 0
    lines = (uninterrupted["fsdp2", 2] / "ranks.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["data"]) for line in lines] == [2] * 12
