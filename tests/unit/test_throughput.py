"""FLOP/s, MFU, host wait and peak memory of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pfcluster.config.io import to_json
from pfcluster.distributed.process_group import World
from pfcluster.engine.peak import peak_tflops
from pfcluster.launch.worker import work
from pfcluster.profiling.training_cost import step_flops
from pfcluster.runs.folder import RESULT_FILE, read_result
from pfcluster.runs.metrics_file import read_metrics
from pfcluster.training import run, throughput
from pfcluster.training.step_checks import StepChecks
from pfcluster.training.throughput import Throughput
from tests import tiny

FIGURES = ("efficiency", "checkpoints", "stragglers")
"""Entries of result.json about the training."""


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA GH200 480GB", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("Tesla V100-SXM2-16GB", 125.0),
    ],
)
def test_peaks_of_data_sheets(name: str, tflops: float) -> None:
    peak = peak_tflops(name, None)
    assert peak == (tflops, f"data sheet of {name}, dense bf16")
    assert peak_tflops(name, 2.5) == (2.5, "engine.peak_tflops")


def test_an_unknown_device_has_no_peak() -> None:
    assert peak_tflops("A100000", None) is peak_tflops(None, None) is None


def test_figures_of_two_ranks_with_a_warm_up() -> None:
    config = tiny.config("pf_mag")  # three steps of warm-up, 16 images a step
    config = replace(config, engine=replace(config.engine, peak_tflops=1e-3))
    measured = Throughput(
        config, 8, World(0, 2, torch.device("cpu")), lambda _, classes, warmup: classes * (1e6 if warmup else 3e6)
    )
    measured.restart()
    for step in range(4):
        measured.add(step, 0.0)
    line = measured.flush()
    per_image = 8 * (3 * 1e6 + 3e6) / 4
    assert line["tflops_per_device"] == pytest.approx(line["images_per_second"] * per_image / 2 / 1e12)
    assert line["mfu"] == pytest.approx(line["tflops_per_device"] / 1e-3)
    assert line["host_wait"] == 0
    assert "peak_memory_gb" not in line
    assert measured.total_flops == 4 * 16 * per_image
    assert measured.summary()["peak_source"] == "engine.peak_tflops"


def test_evaluations_are_no_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 10.0, 60.0, 62.0, 62.0])  # twice from the beginning, a pause from 10 to 60, a flush at 62
    monkeypatch.setattr(throughput.time, "monotonic", lambda: next(clock))
    measured = Throughput(tiny.config("finetune"), 8, World(0, 1, torch.device("cpu")), None)
    measured.restart()
    measured.add(0, 3.0)
    with measured.paused():
        pass
    line = measured.flush()
    assert line["images_per_second"] == pytest.approx(16 / 12)
    assert line["host_wait"] == pytest.approx(3 / 12)
    assert measured.images_per_second() == round(16 / 12, 1)


def test_an_attempt_that_trains_no_step_keeps_the_figures_of_the_one_before(tmp_path: Path) -> None:
    config = tiny.config("finetune", max_steps=4)
    spared = replace(config, evaluate=replace(config.evaluate, final_split="validation"))
    first = run(spared, tmp_path, step_flops=step_flops)
    assert first["efficiency"]["tflops_per_device"] > 0
    assert first["checkpoints"]["written"] == 2
    second = run(config, tmp_path, step_flops=step_flops)
    assert "test" in second
    assert {name: second[name] for name in FIGURES} == {name: first[name] for name in FIGURES}
    (tmp_path / RESULT_FILE).unlink()
    assert {run(config, tmp_path)[name] for name in FIGURES} == {None}


def test_the_wait_for_queued_steps_before_an_evaluation_is_training_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused, require_finite, waits = Throughput.paused, StepChecks.require_finite, []
    depth = [0]

    @contextmanager
    def counted(measured: Throughput) -> Iterator[None]:
        depth[0] += 1
        with paused(measured):
            yield
        depth[0] -= 1

    def wait(checks: StepChecks) -> None:
        waits.append(depth[0])
        require_finite(checks)

    monkeypatch.setattr(Throughput, "paused", counted)
    monkeypatch.setattr(StepChecks, "require_finite", wait)
    run(tiny.config("finetune", max_steps=6), tmp_path)
    assert set(waits) == {0}


def test_what_is_unknown_is_null() -> None:
    measured = Throughput(tiny.config("mae"), 0, World(0, 1, torch.device("cpu")), None)
    measured.add(0, 0.0)
    assert set(measured.flush()) == {"images_per_second", "host_wait"}
    summary = measured.summary()
    assert [summary[name] for name in ("tflops_per_device", "mfu", "peak_memory_gb", "peak_tflops")] == [None] * 4
    assert summary["peak_source"] == "unknown"


def test_a_worker_records_what_its_run_achieves(tmp_path: Path) -> None:
    config = tiny.config("mae")
    config = replace(config, max_steps=4, engine=replace(config.engine, log_every=2, peak_tflops=1.0))
    (tmp_path / "config.json").write_text(to_json(config))
    assert work(tmp_path / "config.json", tmp_path / "run", None, 1).code == 0
    flops = step_flops(config, 8, False)
    recomputing = replace(config, engine=replace(config.engine, activation_checkpointing=True))
    assert step_flops(recomputing, 8, False) == flops
    for line in read_metrics(tmp_path / "run", "train"):
        assert line["tflops_per_device"] == pytest.approx(line["images_per_second"] * flops / 1e12)
        assert line["mfu"] == line["tflops_per_device"]
        assert 0 <= line["host_wait"] <= 1
    result = read_result(tmp_path / "run")
    assert result is not None
    assert result["efficiency"]["mfu"] > 0
    assert result["efficiency"]["peak_tflops"] == 1.0
