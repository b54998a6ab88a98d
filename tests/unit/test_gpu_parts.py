"""benchmarks/gpu_day.py: slices, results that are kept, failures, and the plain step that MAE is compared with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_day import COMPLETE, CONTINUES, main
from benchmarks.gpu_parts.long_runs import fer_measurements, poker_measurements
from benchmarks.gpu_parts.measurements import (
    GpuDayOptions,
    Measurement,
    Results,
    Slice,
    Unavailable,
    Unfinished,
    describe_machine,
    run_all,
)
from benchmarks.gpu_parts.report import markdown
from benchmarks.gpu_parts.steps import largest_batch, step_config
from benchmarks.originals import PlainMaeTraining
from benchmarks.poker_faces import COMPARED_RUNS, SEEDS, plan
from pfcluster.distributed.process_group import World
from pfcluster.launch.plan import TrainRun

CPU = torch.device("cpu")


def slice_of(output: Path, seconds: float = 100.0, *, miniature: bool = True) -> Slice:
    options = GpuDayOptions(output, miniature=miniature, device="cpu")
    return Slice(options, World(0, 1, CPU), time.monotonic() + seconds)


def opened(folder: Path) -> Results:
    return Results.open(folder, describe_machine(CPU, miniature=True))


def raises(error: BaseException) -> Callable[[Slice], dict[str, Any]]:
    def measure(here: Slice) -> dict[str, Any]:
        raise error

    return measure


def test_results_are_kept_and_what_has_none_is_tried_again(tmp_path: Path) -> None:
    calls: list[str] = []

    def counted(here: Slice) -> dict[str, Any]:
        calls.append("good")
        return {"images_per_second": 5.0}

    measurements = [
        Measurement("bad", 1.0, raises(ZeroDivisionError("zero"))),
        Measurement("good", 1.0, counted),
        Measurement("absent", 1.0, raises(AssertionError("not called")), needs=("no_such_package",)),
        Measurement("elsewhere", 1.0, raises(Unavailable("needs --fer DIR"))),
        Measurement("longer", 1.0, raises(Unfinished("at step 3"))),
    ]
    for _ in range(2):
        results = opened(tmp_path)
        assert not run_all(measurements, slice_of(tmp_path), results, results.save)
    assert calls == ["good"]
    saved = json.loads((tmp_path / "results.json").read_text())
    assert list(saved["done"]) == ["good"]
    assert saved["problems"]["bad"] == "failed: ZeroDivisionError: zero"
    assert "no_such_package, which is not installed" in saved["problems"]["absent"]
    page = markdown(opened(tmp_path), [("One", ["good", "bad"]), ("Two", ["longer"]), ("Three", ["unknown"])])
    assert "| measurement | images/s |\n| --- | ---: |\n| good | 5 |\n\n- bad: failed: Zero" in page
    assert "- longer: at step 3" in page
    assert "Three" not in page
    only = [measurements[1], measurements[2], measurements[3]]
    assert run_all(only, slice_of(tmp_path), opened(tmp_path), lambda: None)


def test_a_killed_measurement_is_lost_alone_and_later_comes_last(tmp_path: Path) -> None:
    order: list[str] = []

    def measured(name: str) -> Measurement:
        def measure(here: Slice) -> dict[str, Any]:
            order.append(name)
            if name == "hangs":
                raise SystemExit  # as if the process had been killed
            return {}

        return Measurement(name, 1.0, measure)

    measurements = [measured("first"), measured("hangs"), measured("last")]
    for _ in range(3):
        results = opened(tmp_path)
        with pytest.raises(SystemExit):
            run_all(measurements, slice_of(tmp_path), results, results.save)
    assert order == ["first", "hangs", "hangs", "last", "hangs"]
    assert set(opened(tmp_path).done) == {"first", "last"}


def test_nothing_is_begun_that_does_not_fit_into_the_slice(tmp_path: Path) -> None:
    measurements = [Measurement("long", 50.0, raises(AssertionError())), Measurement("short", 5.0, lambda here: {})]
    results = opened(tmp_path)
    assert not run_all(measurements, slice_of(tmp_path, 30.0, miniature=False), results, results.save)
    assert list(results.done) == ["short"]
    assert results.problems == {}


def test_results_of_another_device_are_refused(tmp_path: Path) -> None:
    results = Results.open(tmp_path, describe_machine(CPU, miniature=True) | {"device": "NVIDIA H100"})
    results.save()
    with pytest.raises(ValueError, match=r"results of device 'NVIDIA H100', this is .*give another --output"):
        opened(tmp_path)
    with pytest.raises(SystemExit):
        main(["--list", "--miniature", "--device", "cpu", "--output", str(tmp_path)])


def test_list_and_a_slice_without_time_measure_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--miniature", "--device", "cpu", "--output", str(tmp_path / "day")]
    assert main([*words, "--list"]) == COMPLETE
    assert "7  Parity and resume" in capsys.readouterr().out
    assert not (tmp_path / "day").exists()
    assert main([*words, "--part", "1", "--limit", "0"]) == CONTINUES
    with pytest.raises(SystemExit):
        main([*words, "--part", "99"])


def test_a_run_continues_in_the_next_slice(tmp_path: Path) -> None:
    judge = fer_measurements(GpuDayOptions(tmp_path, miniature=True))[0]
    with pytest.raises(Unfinished, match="at step 1, give the command again"):
        judge.measure(slice_of(tmp_path, 0.0))
    values = judge.measure(slice_of(tmp_path))
    assert values["steps"] == 2
    assert 0 <= values["accuracy"] <= 1


def test_a_run_waits_for_what_it_starts_from(tmp_path: Path) -> None:
    mae_vit = next(each for each in fer_measurements(GpuDayOptions(tmp_path, miniature=True)) if "mae-vit" in each.name)
    with pytest.raises(Unfinished, match=r"waits for .*mae"):
        mae_vit.measure(slice_of(tmp_path))


def test_batches_are_halved_until_they_fit(tmp_path: Path) -> None:
    tried: list[int] = []

    def measure(images: int) -> dict[str, Any]:
        tried.append(images)
        if images > 3:
            raise torch.OutOfMemoryError
        return {"ms": 1.0}

    assert largest_batch(slice_of(tmp_path), 12, measure) == {"images": 3, "ms": 1.0}
    assert tried == [12, 6, 3]


@pytest.mark.parametrize("fused", [False, True])
def test_the_plain_step_has_the_loss_of_masked_patches_and_trains(tmp_path: Path, fused: bool) -> None:
    config = step_config(slice_of(tmp_path), "mae", "b")
    plain = PlainMaeTraining(config, CPU, fused_attention=fused)
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    before = {name: value.clone() for name, value in plain.model.named_parameters()}
    assert 0.5 < plain.step(images) < 3
    moved = {name for name, value in plain.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name, value in plain.model.named_parameters() if value.requires_grad}
    order = torch.rand(3, plain.patches).argsort(dim=1)
    torch.nn.init.zeros_(plain.model.decoder_pred.weight)
    torch.nn.init.zeros_(plain.model.decoder_pred.bias)
    size = 3 * plain.patch**2  # predicting zero leaves the normalised patches' mean square, (n - 1) / n
    assert plain._loss(images, order).item() == pytest.approx((size - 1) / size, rel=1e-4)
    first = images[0, :, : plain.patch, : plain.patch].permute(1, 2, 0).flatten()
    assert torch.equal(plain._patches(images)[0, 0], first)


def test_the_long_runs_are_those_that_the_benchmark_of_poker_faces_plans(tmp_path: Path) -> None:
    planned = {
        f"poker-face/{stage.name}, seed {task.config.seed}"
        for stage in plan(tmp_path, SEEDS, COMPARED_RUNS).stages
        for task in stage.tasks
        if isinstance(task, TrainRun)
    }
    assert {measurement.name for measurement in poker_measurements(GpuDayOptions(tmp_path))} == planned
