"""Files of a sweep's runs are read again only after they changed, and always then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pfcluster.launch.plan import TrainRun
from pfcluster.runs.early_stop import EarlyStop, write_early_stop
from pfcluster.runs.folder import EARLY_STOP_FILE, METRICS_FILE, write_config, write_result
from pfcluster.runs.metrics_file import append_metrics, truncate_metrics
from pfcluster.sweep.run_files import RunFiles
from pfcluster.sweep.trials import Failed, curve, write_failed
from tests.tiny import config


def test_curve_follows_a_log_that_grows_and_is_replaced(tmp_path: Path) -> None:
    files, path = RunFiles("accuracy"), tmp_path / METRICS_FILE
    assert files.curve(tmp_path) == []
    for step in (10, 20, 30):
        append_metrics(tmp_path, "train", step, 1.0, {"accuracy": 0.0})
        append_metrics(tmp_path, "validation", step, 1.0, {"accuracy": step / 100})
        assert files.curve(tmp_path) == curve(tmp_path, "accuracy") == [(s, s / 100) for s in range(10, step + 1, 10)]
    assert files.curve(tmp_path) is files.curve(tmp_path)
    with open(path, "a") as file:
        file.write('{"split": "validation", "step": 40, ')
    assert files.curve(tmp_path)[-1] == (30, 0.3), "a line that is not complete yet"
    with open(path, "a") as file:
        file.write('"accuracy": 0.4}\nnot JSON "validation"\n')
    assert files.curve(tmp_path)[-1] == (40, 0.4)
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if "step" in line))
    truncate_metrics(tmp_path, 20)
    append_metrics(tmp_path, "validation", 20, 1.0, {"accuracy": 0.9})
    assert files.curve(tmp_path) == curve(tmp_path, "accuracy") == [(10, 0.1), (20, 0.9)]
    path.unlink()
    assert files.curve(tmp_path) == []


def test_results_failures_and_early_stops_are_seen_when_they_change(tmp_path: Path) -> None:
    files, run = RunFiles("accuracy"), TrainRun(config("finetune"), tmp_path)
    assert (files.finished(run), files.failed(tmp_path), files.early_stop(tmp_path)) == (False, None, None)
    write_config(tmp_path, run.config)
    write_result(tmp_path, {"status": "stopped", "steps": 20})
    assert not files.finished(run)
    write_early_stop(tmp_path, EarlyStop(20, "worse"))
    assert files.finished(run)
    assert files.early_stop(tmp_path) == EarlyStop(20, "worse")
    assert not files.finished(replace(run, config=replace(run.config, seed=5)))
    (tmp_path / EARLY_STOP_FILE).unlink()
    assert not files.finished(run)
    write_result(tmp_path, {"status": "finished"})
    assert files.finished(run)
    write_failed(tmp_path, Failed("memory", "too large"))
    assert files.failed(tmp_path) == Failed("memory", "too large")
