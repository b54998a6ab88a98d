"""Several launchers in one folder, drivers of sweeps, and what `pfcluster status` and `cancel` say of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pfcluster.cli import watch
from pfcluster.cli.sweep import sweep
from pfcluster.cli.train import study
from pfcluster.config import ConfigError, RunConfig
from pfcluster.launch import status
from pfcluster.launch.launcher_lock import driving, launching, require_kind, require_no_launcher
from pfcluster.launch.plan import Plan, Stage, TrainRun
from pfcluster.launch.plan_record import PLAN_FILE, PlanRecord, read_plan, write_plan
from pfcluster.launch.status import Cancelled, StatusError, overview
from pfcluster.runs.folder import CONFIG_FILE, RESULT_FILE, TRAINING_LOCK, log_path, write_config
from pfcluster.sweep.options import read
from pfcluster.sweep.spec import save
from pfcluster.system.locks import FileLock
from pfcluster.system.processes import process_started
from tests.tiny import OPTIONS, config


def plan(folder: Path, *names: str, grows: bool = False) -> Plan:
    runs = tuple(TrainRun(replace(config("finetune"), name=name), folder / name / "seed-0") for name in names)
    return Plan(folder.name, folder, (Stage("runs", runs),) if names else (), "pfcluster study", grows=grows)


def finish(folder: Path) -> None:
    folder.mkdir(parents=True)
    write_config(folder, RunConfig())
    (folder / RESULT_FILE).write_text('{"status": "finished"}')


def states(folder: Path) -> dict[str, str]:
    return {task.label.removesuffix(" seed 0"): task.state for task in overview(folder).tasks}


def test_the_record_has_the_plans_of_all_launchers_at_work(tmp_path: Path) -> None:
    study = tmp_path / "study"
    with launching(plan(study, "a", "b"), "local", {}):
        with launching(plan(study, "b", "c"), "local", {}):
            record = read_plan(study)
            assert record is not None
            assert [list(one.stages["runs"].labels) for one in record.launches] == [
                ["b seed 0", "c seed 0"],
                ["a seed 0", "b seed 0"],
            ]
            assert states(study) == {"a": "waiting", "b": "waiting", "c": "waiting"}
        with pytest.raises(ConfigError, match=rf"study is in progress \(process {os.getpid()} on .*`pfcluster cancel"):
            require_no_launcher(study)
        assert overview(study).at_work
    require_no_launcher(study)
    assert not overview(study).at_work
    with launching(plan(study, "c"), "local", {}):
        record = read_plan(study)
    assert record is not None
    assert not record.also
    assert states(study) == {"c": "not run"}


def test_a_folder_is_a_sweeps_or_that_of_other_runs(tmp_path: Path) -> None:
    with launching(plan(tmp_path / "study", "a"), "local", {}):
        pass
    with pytest.raises(ConfigError, match="study holds the runs of study; use another --output"):
        require_kind(tmp_path / "study", grows=True)
    with driving(tmp_path / "search"):
        write_plan(plan(tmp_path / "search", "a", grows=True), "local", {})
        before = (tmp_path / "search" / PLAN_FILE).read_bytes()
        holds = "search holds the sweep search; use another --output"
        with pytest.raises(ConfigError, match=holds), launching(plan(tmp_path / "search", "b"), "local", {}):
            pass
    assert (tmp_path / "search" / PLAN_FILE).read_bytes() == before
    (tmp_path / CONFIG_FILE).write_text("{}")
    with pytest.raises(ConfigError, match="is the folder of a run"), driving(tmp_path):
        pass


def test_dry_runs_refuse_what_the_commands_refuse(tmp_path: Path) -> None:
    words = [*OPTIONS, "--preset", "mini", "--output", str(tmp_path / "search"), "--dry-run"]
    search = [*words, "--role", "scratch", "--space", "optim.lr=choice:1e-3,1e-2", "--search", "grid"]
    assert sweep(search) == 0
    save(read(search).spec, tmp_path / "search")
    with pytest.raises(ConfigError, match="search holds another sweep: "):
        sweep([*search, "--space", "optim.weight_decay=choice:0,0.1"])
    write_plan(plan(tmp_path / "search", "a", grows=True), "local", {})
    with pytest.raises(ConfigError, match="holds the sweep search; use another --output"):
        study(words)
    write_plan(plan(tmp_path / "search", "a"), "local", {})
    with pytest.raises(ConfigError, match="holds the runs of search; use another --output"):
        sweep(search)


def test_a_sweep_that_has_started_no_run_yet_excludes_other_launchers(tmp_path: Path) -> None:
    with driving(tmp_path):
        in_progress = rf"is in progress \(process {os.getpid()} on"
        with pytest.raises(ConfigError, match=in_progress), launching(plan(tmp_path, "b"), "local", {}):
            pass
    assert not (tmp_path / PLAN_FILE).exists()


def test_the_driver_of_an_earlier_sweep_is_not_taken_for_the_launcher(tmp_path: Path) -> None:
    """Exclusive locks record an owner; the shared lock that follows has none."""
    with FileLock(tmp_path / ".launcher", {"pid": 1, "host": "gone"}) as lock:
        lock.acquire()
    with launching(plan(tmp_path, "a"), "local", {}):
        (tmp_path / PLAN_FILE).unlink()
        with pytest.raises(ConfigError, match="is in progress: `pfcluster status"):
            require_no_launcher(tmp_path)


def test_runs_of_a_folder_that_was_moved_or_copied_are_its_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with driving(tmp_path / "old"):
            write_plan(plan(tmp_path / "old", name, grows=True), "local", {})
    finish(tmp_path / "old/a/seed-0")
    log_path(tmp_path / "old/a/seed-0", 0).parent.mkdir()
    log_path(tmp_path / "old/a/seed-0", 0).write_text("log\n")
    (tmp_path / "old").rename(tmp_path / "new")
    assert states(tmp_path / "new") == {"a": "finished", "b": "not run"}
    assert status.log_of(tmp_path / "new", 0, None) == log_path(tmp_path / "new/a/seed-0", 0)
    shutil.copytree(tmp_path / "new", tmp_path / "copy")
    finish(tmp_path / "copy/b/seed-0")
    write_plan(plan(tmp_path / "copy", "b", "c", grows=True), "local", {})
    assert states(tmp_path / "copy") == {"a": "finished", "b": "finished", "c": "not run"}
    assert states(tmp_path / "new") == {"a": "finished", "b": "not run"}


@pytest.mark.parametrize("grows", [True, False])
@pytest.mark.parametrize("text", [None, "{", '{"no_such_field": 1}'])
def test_a_finished_run_without_a_readable_config_counts_as_failed(tmp_path: Path, grows: bool, text: str) -> None:
    """Reports leave it out, and launchers do not take it for finished."""
    write_plan(plan(tmp_path, "a", "b", grows=grows), "local", {})
    for name in "ab":
        finish(tmp_path / name / "seed-0")
    config = tmp_path / "a/seed-0" / CONFIG_FILE
    config.unlink() if text is None else config.write_text(text)
    damaged, whole = overview(tmp_path).tasks
    assert (damaged.state, damaged.reason) == ("failed", "restore its config, or remove its folder")
    assert str(config) in damaged.error
    assert whole.state == "finished"
    assert not overview(tmp_path).all_finished


def test_a_failed_trial_is_continued_by_an_option(tmp_path: Path) -> None:
    for folder, grows in ((tmp_path / "search", True), (tmp_path / "study", False)):
        write_plan(plan(folder, "a", grows=grows), "local", {})
        logs = folder / "a/seed-0/logs"
        logs.mkdir(parents=True)
        (logs / "exit-status-0.json").write_text('{"kind": "user", "error": "diverged"}')
    assert overview(tmp_path / "search").tasks[0].reason == "the same command with --retry-failed continues it"
    assert overview(tmp_path / "study").tasks[0].reason == "the same command continues it"


def test_watching_a_sweep_shows_tasks_that_begin_and_lasts_as_long_as_its_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "WATCH_SECONDS", 0.01)
    console = Console(record=True, width=120, file=(tmp_path / "terminal").open("w"))
    folder = tmp_path / "search"
    watcher = threading.Thread(target=watch.watch, args=(folder, console))

    def printed(words: str) -> bool:
        for _ in range(500):
            if words in console.export_text(clear=False):
                return True
            watcher.join(0.01)
        return False

    with driving(folder):
        finish(folder / "a/seed-0")
        write_plan(plan(folder, "a", grows=True), "local", {})
        watcher.start()
        write_plan(plan(folder, "b", grows=True), "local", {})
        assert printed("b seed 0: waiting")
        finish(folder / "b/seed-0")
        assert printed("b seed 0: finished")
        watcher.join(0.2)
        assert watcher.is_alive(), "all runs have ended, but the driver may start others"
    watcher.join(30)
    assert not watcher.is_alive()
    assert "logs: `pfcluster logs " in console.export_text()


def test_cancel_ends_a_driver_between_its_runs(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from pfcluster.launch.launcher_lock import driving\n"
        "from tests.unit.test_launcher_lock import plan, write_plan\n"
        "folder = Path(sys.argv[1])\n"
        "with driving(folder):\n"
        "    write_plan(plan(folder, 'a', grows=True), 'local', {})\n"
        "    print('driving', flush=True)\n"
        "    time.sleep(600)\n"
    )
    finish(tmp_path / "a/seed-0")
    driver = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert driver.stdout is not None
        assert driver.stdout.readline() == b"driving\n"
        assert status.cancel(tmp_path) == Cancelled([], launcher=True)
        assert driver.wait(60) == -15
    finally:
        driver.kill()
    assert status.cancel(tmp_path) == Cancelled([], launcher=False)


@pytest.mark.parametrize("change", [{"pid": 2**22 + 1}, {"process_start": 1}])
def test_no_process_is_ended_that_is_not_the_launcher(tmp_path: Path, change: dict[str, int]) -> None:
    """Its number may have been given to another process: here to this one."""
    with driving(tmp_path):
        write_plan(plan(tmp_path, "a", grows=True), "local", {})
        record = json.loads((tmp_path / PLAN_FILE).read_text())
        (tmp_path / PLAN_FILE).write_text(json.dumps(record | change))
        with pytest.raises(StatusError, match=r"in progress, but plan\.json does not name the process"):
            status.cancel(tmp_path)
        (tmp_path / PLAN_FILE).write_text(json.dumps(record | {"host": "elsewhere"}))
        with pytest.raises(StatusError, match="was started on elsewhere: cancel it there"):
            status.cancel(tmp_path)


def test_a_launcher_that_was_killed_does_not_hold_back_tasks_of_the_others(tmp_path: Path) -> None:
    with launching(plan(tmp_path, "a"), "local", {}):
        record = read_plan(tmp_path)
        assert isinstance(record, PlanRecord)
        write_plan(plan(tmp_path, "b"), "local", {}, [replace(record, process_start=1)])
        assert states(tmp_path) == {"a": "not run", "b": "waiting"}


def test_a_record_whose_lists_differ_in_their_length_is_damaged(tmp_path: Path) -> None:
    write_plan(plan(tmp_path, "a", "b"), "local", {})
    record = json.loads((tmp_path / PLAN_FILE).read_text())
    record["stages"]["runs"]["folders"].pop()
    (tmp_path / PLAN_FILE).write_text(json.dumps(record))
    for use in (overview, status.cancel):
        with pytest.raises(StatusError, match=r"holds no readable plan\.json"):
            use(tmp_path)


def test_the_start_of_a_process_tells_it_from_others() -> None:
    own, first = process_started(os.getpid()), process_started(1)
    assert own is not None
    assert first is not None
    assert own == process_started(os.getpid()) > first
    assert process_started(2**22 + 1) is None


def test_training_lock_is_not_the_launchers(tmp_path: Path) -> None:
    """A run that trains on without its launcher is still shown as running."""
    write_plan(plan(tmp_path, "a"), "local", {})
    folder = tmp_path / "a/seed-0"
    folder.mkdir(parents=True)
    with FileLock(folder / TRAINING_LOCK) as lock:
        lock.acquire()
        assert states(tmp_path) == {"a": "running"}
        assert not overview(tmp_path).all_ended
    assert states(tmp_path) == {"a": "not run"}
