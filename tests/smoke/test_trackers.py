"""Trackers with their real clients, which write into the run folder: one run over several attempts, without a gap."""

from __future__ import annotations

import json
import signal
import struct
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pfcluster.config import ConfigError, RunConfig
from pfcluster.distributed.signals import StopRequest
from pfcluster.runs.folder import write_config
from pfcluster.runs.metrics_file import read_metrics
from pfcluster.tracking import trackers
from pfcluster.tracking.follower import Received, TrackerFollower
from pfcluster.training import run, selection
from tests import tiny

STEPS = list(range(1, 13))


def config(*names: str, objective: str = "finetune") -> RunConfig:
    return replace(tiny.config(objective), tracker=names)


def interrupted(config: RunConfig, folder: Path) -> None:
    """Train one step, as before a requeue."""
    with StopRequest() as stop:
        stop.ask(signal.SIGTERM)
        assert run(config, folder, stop=stop)["status"] == "interrupted"


def tensorboard_steps(folder: Path) -> list[int]:
    return [step for step, _ in tensorboard_scalars(folder, "train/loss")]


def tensorboard_scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts in one process must not overlap, however long a client takes to import."""
    monkeypatch.setattr(trackers, "INTERRUPTED_SECONDS", 300.0)


def test_tensorboard_gets_each_line_once_also_from_before_it_was_chosen(tmp_path: Path, patient: None) -> None:
    interrupted(config(), tmp_path)
    assert not (tmp_path / "tensorboard").exists()
    run(config("tensorboard"), tmp_path)
    assert tensorboard_steps(tmp_path) == STEPS
    record = json.loads((tmp_path / "trackers.json").read_text())["tensorboard"]
    assert record["steps"] == {"train": 12, "validation": 12, "test": 12}


def test_final_test_figures_arrive_though_the_last_evaluation_was_on_test_too(
    tmp_path: Path, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "is_better", lambda score, best: False)  # the final evaluation is of step 6
    chosen = replace(config("tensorboard"), optim=replace(config().optim, lr=3e-3))
    chosen = replace(chosen, evaluate=replace(chosen.evaluate, selection_split="test"))
    result = run(chosen, tmp_path)
    lines = [line["accuracy"] for line in read_metrics(tmp_path, "test")]
    assert len(lines) == 3
    assert lines[-1] == result["test"]["accuracy"]
    assert lines[-1] != lines[-2]
    expected = [(6, lines[0]), (12, lines[1]), (12, lines[2])]
    assert tensorboard_scalars(tmp_path, "test/accuracy") == [(step, pytest.approx(value)) for step, value in expected]
    assert tensorboard_steps(tmp_path) == STEPS


def test_a_line_that_a_tracker_has_is_not_sent_again(tmp_path: Path) -> None:
    """Of an attempt that was lost in the final evaluation, which the next one repeats."""
    sent: list[tuple[int, dict[str, float]]] = []

    class Recorder:
        def log(self, values: dict[str, float], step: int) -> None:
            sent.append((step, values))

    received = Received("x")
    for attempt in range(2):
        follower = TrackerFollower.__new__(TrackerFollower)
        follower._newest = {}
        for accuracy in (0.5, 0.75, 0.75)[: 2 + attempt]:
            line = {"split": "test", "step": 12, "epoch": 2.0, "accuracy": accuracy}
            follower._send_line(Recorder(), received, line)  # type: ignore[arg-type]
    assert sent == [(12, {"test/epoch": 2.0, "test/accuracy": 0.5}), (12, {"test/accuracy": 0.75})]


def test_a_tracker_that_fails_warns_once_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "trackers").write_text("in the way")
    assert run(config("mlflow"), tmp_path)["status"] == "finished"
    warnings = (tmp_path / "warnings.log").read_text().splitlines()
    assert len(warnings) == 1
    assert "tracker mlflow stopped, training continues without it" in warnings[0]


def test_a_damaged_record_starts_the_trackers_anew(tmp_path: Path) -> None:
    (tmp_path / "trackers.json").write_text('{"tensorboard": 3}')
    assert run(config("tensorboard"), tmp_path)["status"] == "finished"
    assert "trackers.json" in (tmp_path / "warnings.log").read_text()
    assert tensorboard_steps(tmp_path) == STEPS


def test_trackers_are_checked_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[trackio\]'"):
        trackers.require_trackers(config("trackio"))
    with pytest.raises(ConfigError, match="name each tracker once"):
        config("wandb", "wandb")


def wandb_records(folder: Path) -> Iterator[Any]:
    """Records of all attempts. A .wandb file is a log in LevelDB's format: blocks of 32 KiB with chunks of records."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(folder.glob("trackers/wandb/wandb/offline-run-*/*.wandb")):
        data, place, record = path.read_bytes(), 7, b""
        while place < len(data):
            if 32768 - place % 32768 < 7:
                place += 32768 - place % 32768
                continue
            _, size, kind = struct.unpack_from("<IHB", data, place)
            record += data[place + 7 : place + 7 + size]
            place += 7 + size
            if kind in (1, 4):  # whole, or last chunk
                yield Record.FromString(record)
                record = b""


@pytest.mark.slow
def test_wandb_offline(tmp_path: Path, patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    chosen = config("wandb", objective="pf_mag")
    interrupted(chosen, tmp_path)
    run(chosen, tmp_path)
    assert len(list(tmp_path.glob("trackers/wandb/wandb/offline-run-*"))) == 2
    records = list(wandb_records(tmp_path))
    runs = {record.run.run_id for record in records if record.HasField("run")}
    assert runs == {json.loads((tmp_path / "trackers.json").read_text())["wandb"]["id"]}
    rows = [record.history.item for record in records if record.HasField("history")]
    values = [{item.key or item.nested_key[0]: item.value_json for item in row} for row in rows]
    assert [int(row["step"]) for row in values if "train/loss" in row] == STEPS
    assert [int(row["step"]) for row in values if any("pictures/grid" in name for name in row)] == [6, 12]
    assert list(tmp_path.glob("trackers/wandb/wandb/offline-run-*/files/result.json"))


@pytest.mark.slow
def test_mlflow_file_store_and_report(tmp_path: Path, patient: None) -> None:
    from mlflow.tracking import MlflowClient

    folder = tmp_path / "study" / "scratch" / "seed-0"
    interrupted(config("mlflow"), folder)
    page = tmp_path / "report.html"
    page.write_text("<html></html>")
    trackers.send_report(tmp_path / "study", page)
    client = MlflowClient(tracking_uri=(folder / "trackers/mlflow").as_uri())
    experiment = client.get_experiment_by_name("pfcluster")
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.status == "KILLED", "the report does not call an interrupted run finished"
    run(config("mlflow"), folder)
    trackers.send_report(tmp_path / "study", page)
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["model.width"] == "32"
    assert [point.step for point in client.get_metric_history(tracked.info.run_id, "train/loss")] == STEPS
    files = {each.path for each in client.list_artifacts(tracked.info.run_id)}
    assert {"result.json", "provenance.json", "report.html"} <= files


@pytest.mark.slow
def test_trackio_local(tmp_path: Path, patient: None) -> None:
    if find_spec("trackio") is None:  # importing it would fix its folder
        pytest.skip("pip install -e '.[trackio]', which replaces the newest Pillow by an older one")
    interrupted(config("trackio"), tmp_path)
    run(config("trackio"), tmp_path)
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("pfcluster")
    assert name == json.loads((tmp_path / "trackers.json").read_text())["trackio"]["id"]
    steps = [line["step"] for line in SQLiteStorage.get_logs("pfcluster", name) if "train/loss" in line]
    assert steps == STEPS


def test_send_report_skips_runs_without_trackers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "scratch" / "seed-0"
    folder.mkdir(parents=True)
    write_config(folder, config("mlflow"))
    (folder / "result.json").write_text("{}")
    trackers.send_report(tmp_path, tmp_path / "report.html")
    assert not (folder / "trackers").exists()
    assert capsys.readouterr().err == ""
