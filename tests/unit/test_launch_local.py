"""Plans on this machine: progress, failures, and their status while they run and afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pfcluster.config import RunConfig
from pfcluster.launch import status
from pfcluster.launch.errors import LaunchError
from pfcluster.launch.launcher_lock import LAUNCHER_LOCK
from pfcluster.launch.local import run_plan
from pfcluster.launch.plan import Command, Plan, Stage, TrainRun
from pfcluster.launch.plan_record import PLAN_FILE, read_plan
from pfcluster.launch.processes import RunMonitor
from pfcluster.launch.waves import run_waves
from pfcluster.runs.folder import METRICS_FILE, TRAINING_LOCK
from pfcluster.runs.metrics_file import last_trained_step, read_metrics
from pfcluster.system.atomic_files import write_atomically
from pfcluster.system.locks import is_locked, lock_owner
from tests.commands import command
from tests.tiny import LAUNCH, OPTIONS, ROOT, config


def lines(steps: range, **more: float) -> str:
    return "".join(json.dumps({"split": "train", "step": step, "epoch": 0.0, **more}) + "\n" for step in steps)


def test_monitor_follows_metrics_of_a_run_that_replaces_the_file(tmp_path: Path) -> None:
    monitor = RunMonitor(TrainRun(RunConfig(), tmp_path))
    path = tmp_path / METRICS_FILE
    write_atomically(path, lines(range(1, 5), loss=1.0))
    monitor.read_metrics()
    assert (monitor.step, monitor.values["loss"]) == (4, 1.0)
    write_atomically(path, lines(range(1, 3), loss=1.0))
    with open(path, "a") as file:
        file.write(lines(range(3, 9), loss=0.123456789) + '{"split": "tr')
    monitor.read_metrics()
    assert (monitor.step, monitor.values["loss"]) == (8, 0.123456789)


def test_the_progress_line_shows_validation_not_test_figures(tmp_path: Path) -> None:
    monitor = RunMonitor(TrainRun(RunConfig(), tmp_path))
    validation, test = ({"split": name, "step": 4, "epoch": 1.0} for name in ("validation", "test"))
    figures = [json.dumps(validation | {"accuracy": 0.75}), json.dumps(test | {"accuracy": 0.25, "loss": 9.0})]
    write_atomically(tmp_path / METRICS_FILE, lines(range(1, 5), loss=1.0) + "\n".join(figures) + "\n")
    monitor.read_metrics()
    assert monitor.summary() == "loss 1.000  val accuracy 0.750"


def failing_plan(folder: Path, *, continue_on_failure: bool) -> Plan:
    """A command that fails, two that wait for it, one that waits and always runs, and an independent one."""

    def stage(name: str, code: str = "pass", **options: object) -> Stage:
        arguments = ("-n1", "-r1", f"open({str(folder / name)!r}, 'w'); {code}")
        command = Command(name, folder / name, arguments, module="timeit", produces=folder / name)
        return Stage(name, (command,), **options)  # type: ignore[arg-type]

    stages = (
        stage("broken", "raise ValueError"),
        stage("independent"),
        stage("waiting", after=("broken",)),
        stage("later", after=("waiting",)),
        stage("table", after=("later", "independent"), always_run=True),
    )
    return Plan("plan", folder, stages, "the command", continue_on_failure=continue_on_failure)


def outputs(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {PLAN_FILE, LAUNCHER_LOCK}


def test_plan_that_continues_on_failure_runs_what_it_can(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"(?s)1 of the plan.s tasks failed.*broken.*waiting, later") as raised:
        run_plan(failing_plan(tmp_path, continue_on_failure=True), processes=1, max_parallel=1)
    assert raised.value.code == 1
    assert outputs(tmp_path) == {"broken", "independent", "table"}


def test_plan_ends_at_the_first_failure(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="broken ended with 1"):
        run_plan(failing_plan(tmp_path, continue_on_failure=False), processes=1, max_parallel=1)
    assert outputs(tmp_path) == {"broken"}


@pytest.mark.slow
def test_failed_run_does_not_end_the_runs_beside_it(tmp_path: Path) -> None:
    good = config("finetune", max_steps=1)
    bad = replace(good, name="bad", data=replace(good.data, shards=str(tmp_path / "nowhere")))
    runs = [TrainRun(each, tmp_path / each.name, study="faces") for each in (bad, good)]
    stages = (*(Stage(run.config.name, (run,)) for run in runs), Stage("report", (), after=("bad",)))
    report = Command("report", tmp_path / "report", ("report", str(tmp_path)), produces=tmp_path / "report.html")
    stages = (*stages[:2], replace(stages[2], tasks=(report,)))
    with pytest.raises(LaunchError, match=r"(?s)1 of the plan.*faces bad seed 0: .*nowhere"):
        run_plan(Plan("plan", tmp_path, stages, "", continue_on_failure=True), processes=1, max_parallel=1)
    assert runs[1].finished()
    plan = status.overview(tmp_path)
    assert [task.state for task in plan.tasks] == ["failed", "finished", "not run"]
    assert "nowhere" in plan.tasks[0].error
    assert plan.tasks[2].reason == "bad failed"
    assert (plan.tasks[1].step, plan.tasks[1].total_steps) == (1, 1)
    assert plan.all_ended
    assert not plan.all_finished


@pytest.mark.slow
def test_run_that_a_signal_stops_alone_has_failed(tmp_path: Path) -> None:
    """What starts from it is not trained from a checkpoint of the middle; the same plan continues it."""
    long = replace(config("mae", max_steps=300), epochs=1000.0)
    pretraining = TrainRun(replace(long, data=replace(long.data, workers=0)), tmp_path / "mae")
    start = config("finetune", max_steps=1)
    start = replace(start, model=replace(start.model, init=str(pretraining.folder)))
    run = TrainRun(start, tmp_path / "finetune")
    stages = (Stage("mae", (pretraining,)), Stage("finetune", (run,), after=("mae",)))
    plan = Plan("plan", tmp_path, stages, "", continue_on_failure=True)

    def stop_worker() -> None:
        wait_for(lambda: (tmp_path / PLAN_FILE).exists() and status.overview(tmp_path).tasks[0].step)
        children = Path(f"/proc/{os.getpid()}/task/{threading.main_thread().native_id}/children").read_text().split()
        for child in children:
            if b"pfcluster.launch.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), signal.SIGTERM)

    thread = threading.Thread(target=stop_worker)
    thread.start()
    with pytest.raises(LaunchError, match=r"(?s)was stopped by a signal to its own process.*finetune"):
        run_plan(plan, processes=1, max_parallel=1)
    thread.join()
    assert not run.folder.exists()
    assert run_plan(plan, processes=1, max_parallel=1)
    assert pretraining.finished()
    assert run.finished()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_a_command_ends_it_and_the_plan(tmp_path: Path, sent: int) -> None:
    """`pfcluster cancel` signals the launcher alone: the command is told, and nothing begins after it."""
    seconds = 60 if sent == signal.SIGTERM else 3  # Ctrl-C reaches a command without the launcher
    statements = {
        "first": f"import pathlib, time; time.sleep({seconds}); pathlib.Path({str(tmp_path / 'first')!r}).touch()",
        "second": f"import pathlib; pathlib.Path({str(tmp_path / 'second')!r}).touch()",
    }
    stages = [
        Stage(name, (Command(name, tmp_path, ("-n", "1", "-r", "1", statement), "timeit"),))
        for name, statement in statements.items()
    ]
    stages[1] = replace(stages[1], after=("first",))
    timer = threading.Timer(1.0, os.kill, (os.getpid(), sent))
    timer.start()
    assert run_waves(Plan("plan", tmp_path, tuple(stages), ""), lambda runs, title, on_failure: True) is False
    timer.join()
    assert (tmp_path / "first").exists() == (sent == signal.SIGINT)
    assert not (tmp_path / "second").exists()


def wait_for(condition, launcher: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 400
    while not condition():
        assert launcher is None or launcher.poll() is None, "the launcher has ended"
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_status_and_cancel_of_a_local_run(tmp_path: Path) -> None:
    """The same command lists runs of this machine as it does those of SLURM."""
    words = ["finetune", *OPTIONS, "--epochs", "200", "--checkpoint.every-steps", "4", "--output", str(tmp_path)]
    words += ["--seeds", "0", "1", "--executor", "local"]
    launcher = subprocess.Popen([*LAUNCH, *words], cwd=ROOT)
    folder = tmp_path / "scratch"

    def first():
        return status.overview(folder).tasks[0]

    try:
        wait_for(lambda: (folder / PLAN_FILE).exists() and first().step, launcher)
        plan = status.overview(folder)
        assert (plan.launcher, plan.tasks[0].state, plan.tasks[1].state) == ("local", "running", "waiting")
        assert plan.tasks[0].total_steps == 1200
        assert plan.tasks[0].loss > 0
        assert plan.tasks[0].images_per_second > 0
        assert not plan.all_ended
        assert read_plan(folder).pid == launcher.pid
        assert is_locked(folder / LAUNCHER_LOCK)
        assert status.log_of(folder, 0, None) == folder / "seed-0/logs/rank-0.log"
        shown = command("status", "--output", tmp_path, environment=os.environ | {"COLUMNS": "200"}).stdout
        for word in ("scratch seed 0", "running", "waiting", "images/s"):
            assert word in shown
        assert status.cancel(folder) == status.Cancelled(["scratch seed 0", "scratch seed 1"], launcher=True)
        assert launcher.wait(timeout=240) == 130
    finally:
        launcher.kill()
    plan = status.overview(folder)
    assert [task.state for task in plan.tasks] == ["stopped", "not run"]
    assert plan.all_ended
    assert status.cancel(folder) == status.Cancelled([], launcher=False)


@pytest.mark.slow
def test_status_of_a_run_whose_processes_were_killed(tmp_path: Path) -> None:
    words = ["finetune", *OPTIONS, "--epochs", "200", "--output", str(tmp_path), "--executor", "local"]
    launcher = subprocess.Popen([*LAUNCH, *words], cwd=ROOT, start_new_session=True)
    folder = tmp_path / "scratch"
    try:
        wait_for(lambda: (folder / PLAN_FILE).exists() and status.overview(folder).tasks[0].step, launcher)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    finally:
        launcher.send_signal(signal.SIGKILL)
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    launcher.wait()
    wait_for(lambda: status.overview(folder).tasks[0].state != "running")
    task = status.overview(folder).tasks[0]
    assert task.state == "lost"
    assert "the same command continues it" in task.reason


@pytest.mark.slow
def test_a_second_launcher_waits_and_truncates_no_log(tmp_path: Path) -> None:
    """Two processes each; the other ranks of the waiting group wait, too. It stops when asked, else it continues."""
    words = ["finetune", *OPTIONS, "--epochs", "5000", "--output", str(tmp_path), "--executor", "local"]
    words += ["--processes", "2"]
    folder = tmp_path / "scratch/seed-0"
    log = folder / "logs/rank-0.log"
    launchers: list[subprocess.Popen[bytes]] = []

    def launch() -> subprocess.Popen[bytes]:
        launchers.append(subprocess.Popen([*LAUNCH, *words], cwd=ROOT))
        return launchers[-1]

    def waits(times: int) -> bool:
        return log.read_text().count("waiting for another process that trains in") == times

    try:
        first = launch()
        wait_for(lambda: last_trained_step(folder) > 4, first)
        begun = log.read_text()
        second = launch()
        wait_for(lambda: waits(1), first)
        assert f"(process {lock_owner(folder / TRAINING_LOCK)['pid']} on " in log.read_text()
        second.terminate()
        assert second.wait(60) == 130
        third = launch()
        wait_for(lambda: waits(2), first)
        first.terminate()
        assert first.wait(240) == 130
        stopped_at = last_trained_step(folder)
        wait_for(lambda: last_trained_step(folder) > stopped_at, third)
        fourth = launch()
        wait_for(lambda: waits(3), third)
        assert status.cancel(folder.parent) == status.Cancelled(["scratch seed 0"], launcher=True)
        assert third.wait(240) == fourth.wait(240) == 130
    finally:
        for launcher in launchers:
            launcher.kill()
    assert log.read_text().startswith(begun)
    steps = [line["step"] for line in read_metrics(folder, "train")]
    assert steps == list(range(1, len(steps) + 1)), "only one of them trained at a time"
