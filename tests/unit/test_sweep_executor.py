"""Executors: resources of trials, retries, exit statuses; early stops and the test split of a run."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, replace

import pytest

from pfcluster.config import ConfigError
from pfcluster.launch import attempts
from pfcluster.launch.attempts import FINAL
from pfcluster.launch.plan import Plan, TrainRun
from pfcluster.launch.processes import RunProcesses
from pfcluster.launch.status import overview
from pfcluster.launch.worker import FAILED, FINISHED, INTERRUPTED, USER_ERROR, ExitStatus, _kind_of, _status_of
from pfcluster.runs.early_stop import EarlyStop, read_early_stop, write_early_stop
from pfcluster.runs.folder import EARLY_STOP_FILE, exit_status_path
from pfcluster.sweep.executor import Retries, divide_machine
from pfcluster.sweep.local import LocalExecutor
from pfcluster.sweep.ray import task_failure
from pfcluster.sweep.recorded import recorded
from pfcluster.training import run
from tests.sweeps import InProcess
from tests.tiny import config

MACHINE = {"processes": 1, "cpus": None, "gpus": None, "max_parallel": None}


@pytest.mark.parametrize(
    ("options", "cores", "devices", "expected"),
    [
        ({}, 2, 0, (1, 1, 0.0, 2)),  # a laptop: one core per trial
        ({"processes": 2}, 8, 0, (2, 1, 0.0, 4)),
        ({"cpus": 4}, 8, 0, (1, 4, 0.0, 2)),
        ({"processes": 4}, 2, 0, (4, 1, 0.0, 1)),
        ({}, 64, 8, (1, 8, 1.0, 8)),  # a node: one GPU per trial, cores divided evenly
        ({"gpus": 0.25}, 64, 8, (1, 2, 0.25, 32)),
        ({"processes": 4}, 64, 8, (4, 8, 1.0, 2)),
        ({"gpus": 0.0}, 64, 8, (1, 1, 0.0, 64)),
        ({"max_parallel": 3}, 64, 8, (1, 21, 1.0, 3)),
        ({"gpus": 0.4}, 64, 2, (1, 16, 0.4, 4)),  # a fifth run would need 0.2 of both GPUs
        ({"gpus": 0.6}, 64, 3, (1, 21, 0.6, 3)),
        ({"gpus": 0.3, "processes": 2}, 64, 4, (2, 5, 0.3, 6)),
        ({"gpus": 1 / 3}, 64, 1, (1, 21, 1 / 3, 3)),
        ({"gpus": 2.0}, 64, (3, 3), (1, 32, 2.0, 2)),  # the third GPU of each of two machines is left
    ],
)
def test_machine_is_divided_among_trials(options, cores, devices, expected):
    devices = (devices,) if isinstance(devices, int) else devices
    resources = divide_machine(**{**MACHINE, **options}, cores=cores, devices=devices)
    assert (resources.processes, resources.cpus, resources.gpus, resources.max_parallel) == expected


def test_runs_of_all_drivers_of_a_sweep_are_recorded(tmp_path):
    """The second driver starts one new run; the record still has the first one's, which finished. Beside it no further
    driver may propose trials.
    """
    plan = Plan("search", tmp_path, (), "pfcluster sweep", grows=True)
    names = ("trial-000", "trial-001")
    runs = [TrainRun(replace(config("finetune", epochs=1.0), name=name), tmp_path / name / "seed-0") for name in names]
    with recorded(InProcess(), "local", plan) as executor:
        executor.start(runs[:1])
        assert [task.state for task in overview(tmp_path).tasks] == ["waiting"]
        executor.poll()
    with recorded(InProcess(), "local", plan) as executor:
        executor.start(runs[1:])
        with (
            pytest.raises(ConfigError, match=rf"is in progress \(process {os.getpid()} on .*`pfcluster cancel"),
            recorded(InProcess(), "local", plan),
        ):
            pass
    states = {task.label: task.state for task in overview(tmp_path).tasks}
    assert states == {"trial-000 seed 0": "finished", "trial-001 seed 0": "not run"}


@pytest.mark.parametrize(
    ("options", "devices", "message"),
    [
        ({"gpus": 0.5}, [0], "there are 0 GPUs"),
        ({"gpus": -1.0}, [0], "at least 0"),
        ({"gpus": 1.5}, [0], "a fraction of one GPU or a whole number"),
        ({"gpus": 0.6, "processes": 3}, [2], "0.6 with 3 processes: there are 2 GPUs, with room for 2 such processes"),
        ({"gpus": 4.0}, [2, 2, 2], "there are 6 GPUs on 3 machines, with room for 0 such processes; use a smaller"),
    ],
)
def test_missing_gpus_are_refused(options, devices, message):
    with pytest.raises(ConfigError, match=message):
        divide_machine(**{**MACHINE, **options}, cores=8, devices=devices)


def test_more_parallel_runs_than_gpus_are_refused():
    with pytest.raises(ConfigError, match="room for 4 runs"):
        divide_machine(processes=1, cpus=None, gpus=0.5, max_parallel=5, cores=8, devices=[2])


@pytest.mark.parametrize(
    ("processes", "gpus", "slots", "devices"),
    [
        (1, 0.5, 4, [["4"], ["5"], ["4"], ["5"]]),
        (1, 0.4, None, [["4"], ["5"], ["4"], ["5"]]),
        (2, 0.4, None, [["4", "5"], ["4", "5"]]),
        (1, 0.6, None, [["4"], ["5"]]),
        (1, 1.0, 2, [["4"], ["5"]]),
        (2, 1.0, 1, [["4", "5"]]),
        (1, 2.0, 1, [["4,5"]]),
        (1, 0.0, 1, [[""]]),
    ],
)
def test_slots_have_separate_gpus_or_shares_that_fit(processes, gpus, slots, devices):
    resources = divide_machine(processes=processes, cpus=1, gpus=gpus, max_parallel=slots, cores=8, devices=[2])
    executor = LocalExecutor(resources, 0, "a test", ["4", "5"])
    assert [slot.devices for slot in executor._slots] == devices


def test_retries_are_counted_per_run(tmp_path):
    first, second = (TrainRun(config("finetune"), tmp_path / name) for name in ("first", "second"))
    retries, lost = Retries(2), ExitStatus(FAILED, "lost rank", "its Ray worker was lost")
    assert [retries.again(first, lost) for _ in range(3)] == [True, True, False]
    assert retries.again(second, lost)
    for final in (ExitStatus(FINISHED), ExitStatus(INTERRUPTED), ExitStatus(FAILED, "training", "not finite")):
        assert not retries.again(second, final)


def test_ray_task_failure_becomes_an_exit_status():
    exceptions = pytest.importorskip("ray.exceptions")
    lost = task_failure(exceptions.WorkerCrashedError())
    assert (lost.code, lost.kind) == (FAILED, "lost rank")
    assert lost.error.startswith("its Ray worker was lost")
    error = exceptions.RayTaskError("train_alone", "Traceback ...\nRuntimeError: no such folder", RuntimeError())
    assert task_failure(error) == ExitStatus(FAILED, "bug", "RuntimeError: no such folder")


def test_exit_status_of_a_run_is_the_most_informative_rank_error(tmp_path):
    running = RunProcesses(
        TrainRun(config("finetune"), tmp_path), processes=[None, None], logs=[tmp_path / "0", tmp_path / "1"]
    )
    (tmp_path / "logs").mkdir()
    assert running.exit_status(-9).kind == "killed"
    assert "memory runs out" in running.exit_status(-9).error
    statuses = [ExitStatus(FAILED, "lost rank", "rank 1 is gone"), ExitStatus(FAILED, "memory", "no room")]
    for rank, status in enumerate(statuses):
        exit_status_path(tmp_path, rank).write_text(json.dumps(asdict(status)))
    assert running.exit_status(1) == statuses[1]
    assert running.exit_status(0) == ExitStatus(FINISHED)


def test_early_stop_ends_a_run_and_can_be_removed(tmp_path):
    tiny = config("finetune")
    uninterrupted = run(tiny, tmp_path / "uninterrupted", "a test")
    write_early_stop(tmp_path / "short", EarlyStop(4, "stopped by ASHA"))
    short = run(tiny, tmp_path / "short", "a test")
    assert (short["status"], short["steps"], short["ended_early"]) == ("stopped", 4, "stopped by ASHA")
    assert "test" not in short
    assert TrainRun(tiny, tmp_path / "short").finished()
    assert run(tiny, tmp_path / "short", "a test")["steps"] == 4
    (tmp_path / "short" / EARLY_STOP_FILE).unlink()
    assert read_early_stop(tmp_path / "short") is None
    assert not TrainRun(tiny, tmp_path / "short").finished()
    again = run(tiny, tmp_path / "short", "a test")
    assert again["status"] == "finished"
    assert again["test"] == uninterrupted["test"]


@pytest.mark.slow
def test_test_split_is_measured_only_on_request(tmp_path):
    tiny = config("pf_mag")
    without_test = replace(tiny, evaluate=replace(tiny.evaluate, final_split="validation"))
    first = run(without_test, tmp_path / "run", "a test")
    assert "test" not in first
    assert first["measured_on"] == "validation"
    second = run(tiny, tmp_path / "run", "a test")
    assert second["test"] == run(tiny, tmp_path / "at-once", "a test")["test"]
    assert second["steps"] == first["steps"]
    assert second["on_validation"]["poker"] == first["poker"]
    assert run(without_test, tmp_path / "run", "a test")["test"] == second["test"], (
        "a measured test split stays in the result"
    )


def test_errors_are_classified():
    assert _kind_of(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")) == "memory"
    assert _kind_of(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")) == "memory"
    assert _kind_of(MemoryError()) == "memory"
    assert _kind_of(RuntimeError("NCCL error")) == "device"
    assert _kind_of(RuntimeError("code: -98, name: EADDRINUSE, message: address already in use")) == "device"
    assert _kind_of(KeyError("x")) == "bug"


def storage_error(number):
    """The exit status of a run whose folder gives this error."""
    return _status_of(OSError(number, os.strerror(number), "/data/run/metrics.jsonl"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_only_a_full_disk_or_quota_is_final_as_such(number):
    status = storage_error(number)
    assert (status.kind, status.code) == ("disk", FAILED)
    assert status.error.startswith(f"/data/run/metrics.jsonl: {os.strerror(number)} ({errno.errorcode[number]}); ")
    assert not Retries(1).again("run", status)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.EREMOTEIO])
def test_failing_storage_is_retried(number):
    status = storage_error(number)
    assert (status.kind, status.code) == ("storage", FAILED)
    assert errno.errorcode[number] in status.error
    assert Retries(1).again("run", status)
    assert "storage" not in FINAL


def test_storage_is_given_time_between_attempts(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("pfcluster.sweep.executor.time.monotonic", lambda: clock[0])
    retries, status = Retries(3), storage_error(errno.ESTALE)
    assert retries.again("run", status)
    assert not retries.may_start("run")
    assert retries.may_start("another run")
    clock[0] += 15
    assert retries.may_start("run")
    assert retries.again("run", status)
    clock[0] += 59
    assert not retries.may_start("run")
    for number, kind in enumerate(("storage", "lost rank", "storage", "storage"), start=1):
        attempt = attempts.Attempt(number, "ray", 0, 0, "node", attempts.now())
        attempts.write(tmp_path, replace(attempt, outcome="failed", kind=kind))
    assert attempts.storage_failures(tmp_path) == 2
    assert attempts.storage_delay(2) == 60


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EMFILE, errno.ENOENT])
def test_paths_permissions_and_limits_are_the_users(number):
    status = storage_error(number)
    assert (status.kind, status.code) == ("user", USER_ERROR)
    assert errno.errorcode[number] in status.error


def test_a_damaged_attempt_is_named(tmp_path):
    for number in (1, 2):
        attempts.write(tmp_path, attempts.Attempt(number, "ray", 0, 0, "node", attempts.now()))
    (tmp_path / "attempts/001.json").write_text("{")
    with pytest.warns(UserWarning, match=r"attempts/001\.json is not JSON: .*; this attempt is ignored"):
        assert [attempt.number for attempt in attempts.read(tmp_path)] == [2]
