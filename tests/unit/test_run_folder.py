"""runs/folder.py: names, readers and writers of a run folder's files."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from pfcluster.config import ConfigError, RunConfig
from pfcluster.config.io import flatten
from pfcluster.config.json_files import JsonFileError, read_object, try_read_object
from pfcluster.runs.folder import (
    CHECKPOINT_FILE,
    CHECKPOINTS_DIR,
    CONFIG_FILE,
    METRICS_FILE,
    REQUESTED_CONFIG_FILE,
    RESULT_FILE,
    append_warning,
    changes_on_resume,
    checkpoint_steps,
    enclosing_run,
    exit_status_path,
    find_runs,
    is_finished,
    log_path,
    logged_error,
    newest_checkpoint_step,
    read_config,
    read_progress,
    read_result,
    remove_exit_statuses,
    step_folder,
    write_config,
    write_failure,
    write_progress,
    write_requested_config,
    write_result,
)
from pfcluster.runs.metrics_file import (
    TAIL_BYTES,
    MetricsTail,
    append_metrics,
    append_rank_times,
    last_metrics,
    last_trained_step,
    metric_series,
    read_metrics,
    truncate_metrics,
)


def append_lines(folder: Path, *lines: tuple[str, int, float]) -> None:
    """Log (split, step, loss) lines."""
    for split, step, loss in lines:
        append_metrics(folder, split, step, 0.5, {"loss": loss})


def test_config_is_read_as_written(tmp_path: Path) -> None:
    config = RunConfig(name="a", seed=3)
    write_config(tmp_path, config)
    assert read_config(tmp_path) == config
    path = write_requested_config(tmp_path / "new/run", config)
    assert path == tmp_path / "new/run" / REQUESTED_CONFIG_FILE
    assert json.loads(path.read_text())["seed"] == 3


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: No such file"):
        read_config(tmp_path)


def test_resuming_may_change_execution_only(tmp_path: Path) -> None:
    config = RunConfig()
    assert changes_on_resume(tmp_path, config) == {}
    write_config(tmp_path, config)
    every = config.checkpoint.every_steps
    faster = replace(config, checkpoint=replace(config.checkpoint, every_steps=every + 1))
    assert changes_on_resume(tmp_path, faster) == {"checkpoint.every_steps": (every, every + 1)}
    with pytest.raises(ConfigError, match="belongs to another config: seed is 0 there and 5 here"):
        changes_on_resume(tmp_path, replace(config, seed=5))


def test_result_is_none_before_the_end(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None
    assert not is_finished(tmp_path)
    write_result(tmp_path, {"status": "interrupted"})
    assert not is_finished(tmp_path)
    write_result(tmp_path, {"status": "finished", "test": {"n": 4}})
    assert is_finished(tmp_path)
    assert read_result(tmp_path) == {"status": "finished", "test": {"n": 4}}


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[1]", "must hold an object, got")])
def test_a_damaged_result_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / RESULT_FILE
    path.write_text(text)
    with pytest.raises(JsonFileError, match=message) as error:
        read_result(tmp_path)
    assert str(path) in str(error.value)
    assert try_read_object(path) is None
    assert not is_finished(tmp_path)


def test_reading_a_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "none.json")
    assert try_read_object(tmp_path / "none.json") is None


def test_runs_are_found_by_their_files(tmp_path: Path) -> None:
    for name in ("b/seed-1", "a/seed-0", "a/seed-0/inner", ".hidden/run", "empty"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("b/seed-1", "a/seed-0/inner", ".hidden/run"):
        (tmp_path / name / RESULT_FILE).write_text("{}")
    for name in (".", "a/seed-0"):
        (tmp_path / name / CONFIG_FILE).write_text("{}")
    places = [path.relative_to(tmp_path).as_posix() for path in find_runs(tmp_path)]
    assert places == ["a/seed-0", "b/seed-1"], "sorted; neither the study itself nor anything inside a run"
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "runs").symlink_to(tmp_path / "b")
    (tmp_path / "linked" / "loop").symlink_to(tmp_path)
    assert tmp_path / "linked" / "runs" / "seed-1" in set(find_runs(tmp_path))


def test_a_checkpoint_belongs_to_the_run_around_it(tmp_path: Path) -> None:
    checkpoint = step_folder(tmp_path / "run" / CHECKPOINTS_DIR, 5)
    checkpoint.mkdir(parents=True)
    assert enclosing_run(checkpoint) is None
    (tmp_path / "run" / CONFIG_FILE).write_text("{}")
    assert enclosing_run(checkpoint) == tmp_path / "run"
    assert enclosing_run(tmp_path / "run") == tmp_path / "run"


def test_only_complete_checkpoints_count(tmp_path: Path) -> None:
    checkpoints = tmp_path / CHECKPOINTS_DIR
    assert newest_checkpoint_step(tmp_path) == 0
    for step in (20, 100, 3):
        step_folder(checkpoints, step).mkdir(parents=True)
    for step in (20, 3):
        (step_folder(checkpoints, step) / CHECKPOINT_FILE).touch()
    (checkpoints / "step-old").mkdir()
    (checkpoints / "step-old" / CHECKPOINT_FILE).touch()
    assert checkpoint_steps(checkpoints) == [3, 20]
    assert newest_checkpoint_step(tmp_path) == 20


def test_metrics_are_read_without_damaged_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    append_lines(tmp_path, ("train", 1, 0.5), ("validation", 1, 0.25))
    with open(tmp_path / METRICS_FILE, "a") as file:
        file.write('3\n{"split": "train", "st')
    assert [line["split"] for line in read_metrics(tmp_path)] == ["train", "validation"]
    assert read_metrics(tmp_path, "validation") == [{"split": "validation", "step": 1, "epoch": 0.5, "loss": 0.25}]


def test_a_metrics_line_holds_its_values(tmp_path: Path) -> None:
    append_metrics(tmp_path, "train", 7, 1 / 3, {"loss": 0.1})
    assert (tmp_path / METRICS_FILE).read_text() == '{"split": "train", "step": 7, "epoch": 0.3333, "loss": 0.1}\n'


def test_metrics_after_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    truncate_metrics(tmp_path, 0)
    assert (tmp_path / METRICS_FILE).read_text() == ""
    append_lines(tmp_path, ("train", 1, 0.5), ("train", 2, 0.4), ("train", 3, 0.3))
    with open(tmp_path / METRICS_FILE, "a") as file:
        file.write('{"split": "train", "step": 4')
    truncate_metrics(tmp_path, 2)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_the_last_line_of_a_split_is_found_from_the_end(tmp_path: Path) -> None:
    assert last_metrics(tmp_path, "train") is None
    assert last_trained_step(tmp_path) == 0
    append_lines(tmp_path, ("validation", 1, 0.9), *(("train", step, 0.5) for step in range(1, 2000)))
    with open(tmp_path / METRICS_FILE, "a") as file:
        file.write('{"split": "train", "st')
    assert os.path.getsize(tmp_path / METRICS_FILE) > TAIL_BYTES
    assert last_metrics(tmp_path, "train") == {"split": "train", "step": 1999, "epoch": 0.5, "loss": 0.5}
    assert last_trained_step(tmp_path) == 1999
    assert last_metrics(tmp_path, "validation") is None, "further back than the end that is read"


def test_a_series_ascends_and_later_lines_win(tmp_path: Path) -> None:
    append_lines(tmp_path, ("train", 20, 0.2), ("train", 10, 0.1), ("validation", 10, 9.0), ("train", 20, 0.3))
    append_metrics(tmp_path, "train", 30, 1.0, {"accuracy": 0.5})
    assert metric_series(read_metrics(tmp_path), "train", "loss") == [(10, 0.1), (20, 0.3)]
    assert metric_series(read_metrics(tmp_path), "validation", "loss") == [(10, 9.0)]
    assert metric_series([], "train", "loss") == []


def test_a_tail_gives_each_complete_line_once(tmp_path: Path) -> None:
    tail = MetricsTail(tmp_path)
    assert list(tail.new_lines()) == []
    append_lines(tmp_path, ("train", 1, 0.5), ("train", 2, 0.4))
    assert [line["step"] for line in tail.new_lines()] == [1, 2]
    assert list(tail.new_lines()) == []
    with open(tmp_path / METRICS_FILE, "a") as file:
        file.write('{"split": "train", "step": 3')
    assert list(tail.new_lines()) == []
    with open(tmp_path / METRICS_FILE, "a") as file:
        file.write("}\n")
    assert [line["step"] for line in tail.new_lines()] == [3]


def test_a_tail_starts_over_when_a_resumed_run_replaces_the_file(tmp_path: Path) -> None:
    append_lines(tmp_path, ("train", 1, 0.5), ("train", 2, 0.4))
    tail = MetricsTail(tmp_path)
    list(tail.new_lines())
    truncate_metrics(tmp_path, 1)
    append_lines(tmp_path, ("train", 2, 0.4))
    assert [line["step"] for line in tail.new_lines()] == [1, 2]


def test_rank_times_progress_failures_and_warnings(tmp_path: Path) -> None:
    append_rank_times(tmp_path, 10, {"data": [1.5, 2.5]})
    append_rank_times(tmp_path, 20, {"data": [1.0, 2.0]})
    lines = (tmp_path / "ranks.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 10, "data": [1.5, 2.5]}, {"step": 20, "data": [1.0, 2.0]}]
    assert read_progress(tmp_path) == {}
    write_progress(tmp_path, 100, "train")
    assert read_progress(tmp_path) == {"total_steps": 100, "stage": "train"}
    path = write_failure(tmp_path, {"step": 3})
    assert json.loads(path.read_text()) == {"step": 3}
    append_warning(tmp_path, "one")
    append_warning(tmp_path, "two")
    assert (tmp_path / "warnings.log").read_text() == "one\ntwo\n"


def test_warnings_have_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    monkeypatch.setenv("PFCLUSTER_SECRETS", "HF_TOKEN")
    append_warning(tmp_path, "401 for hf_abcdefgh at https://user:pass@host/shards")
    text = (tmp_path / "warnings.log").read_text()
    assert "<HF_TOKEN>" in text
    assert "hf_abc" not in text
    assert "pass" not in text


def test_the_last_error_of_the_first_rank_that_has_one(tmp_path: Path) -> None:
    assert logged_error(tmp_path) is None
    log_path(tmp_path, 0).parent.mkdir()
    log_path(tmp_path, 0).write_text("step 1\n")
    log_path(tmp_path, 1).write_text("error: first\nerror: second\nend\n")
    log_path(tmp_path, 2).write_text("error: third\n")
    assert logged_error(tmp_path) == "second"


def test_errors_of_an_earlier_attempt_with_more_ranks_are_not_those_of_the_newest(tmp_path: Path) -> None:
    log_path(tmp_path, 0).parent.mkdir()
    for rank in range(12):
        error = f"error: rank {rank} is out of memory\n" if rank in (2, 10) else ""
        log_path(tmp_path, rank).write_text(f"--- 2026-11-28 12:00:00 rank {rank} of 12 on node1\n{error}")
    assert logged_error(tmp_path) == "rank 2 is out of memory"
    for rank in range(2):
        with open(log_path(tmp_path, rank), "a") as log:
            log.write(f"--- 2026-11-28 13:00:00 rank {rank} of 2 on node1\nkilled\n")
    assert logged_error(tmp_path) is None
    for rank in (0, 11):
        exit_status_path(tmp_path, rank).write_text('{"kind": "out of memory"}')
    remove_exit_statuses(tmp_path)
    assert not list((tmp_path / "logs").glob("exit-status*"))


def test_nested_mappings_flatten_to_dotted_names() -> None:
    assert flatten({"a": 1, "b": {"c": 2, "d": {"e": [3]}}}) == {"a": 1, "b.c": 2, "b.d.e": [3]}
