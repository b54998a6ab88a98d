"""Sweeps on a real Ray: the same trials and scores as with any executor, also after crashes."""

from __future__ import annotations

import os
import signal
import time

from pfcluster.launch import attempts
from pfcluster.launch.plan import TrainRun
from pfcluster.launch.ray.connect import connected
from pfcluster.launch.status import overview
from pfcluster.sweep.executor import Resources
from pfcluster.sweep.ray import RayExecutor
from pfcluster.sweep.trials import read_trials, result_of
from tests.sweeps import (
    LIMIT,
    LONG,
    TINY,
    begin,
    has_checkpoint,
    outcome,
    processes_logging_to,
    resumed,
    shared_reference,
    step_of,
    wait_for,
)
from tests.tiny import config

RAY = ("--executor", "ray", "--max-parallel", "2")


def test_lost_worker_and_killed_driver_do_not_change_the_outcome(tmp_path, tmp_path_factory):
    """The process of a trial's task is killed and the trial is retried; then the driver is killed, together with the
    Ray that it started. The same command ends with the trials and scores of an undisturbed sweep.
    """
    expected = shared_reference(tmp_path_factory, LONG)
    folder = tmp_path / "sweep"
    first = folder / "trials/000/seed-0"
    driver = begin(folder, *LONG, *RAY)
    wait_for(lambda: has_checkpoint(first), "a checkpoint", driver)
    (worker,) = processes_logging_to(first)
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: attempts.read(first)[-1].outcome == "finished", "the first trial's end", driver)
    assert resumed(first)
    assert [attempt.outcome for attempt in attempts.read(first)] == ["lost", "finished"]
    assert result_of(first)["status"] == "finished"
    finished = (first / "result.json").stat().st_mtime
    driver.kill()
    driver.wait()
    wait_for(lambda: not processes_logging_to(folder), "the end of the driver's trials")
    again = begin(folder, *LONG, *RAY)
    output, _ = again.communicate(timeout=LIMIT)
    assert again.returncode == 0, output
    assert outcome(folder) == expected
    assert (first / "result.json").stat().st_mtime == finished
    assert "trial-000 (baseline)" not in output, "it was proposed before"
    assert overview(folder).all_finished
    assert len(overview(folder).tasks) == 3 + 2, "three trials, the winner and the baseline confirmed"
    wait_for(lambda: not processes_logging_to(folder), "the end of the sweep's workers")


def test_stopped_sweep_saves_its_trials_and_continues(tmp_path):
    folder = tmp_path / "sweep"
    first = folder / "trials/000/seed-0"
    driver = begin(folder, *LONG, *RAY)
    wait_for(lambda: step_of(first) >= 7, "step 7", driver)
    driver.terminate()
    output, _ = driver.communicate(timeout=LIMIT)
    assert driver.returncode == 130, output
    last = attempts.read(first)[-1]
    assert last.outcome == "stopped"
    assert last.checkpoint_step == last.step, "a run that is asked to stop loses no step"
    assert not (first / ".stop").exists()


def test_trial_may_have_several_ray_train_workers(tmp_path):
    options = [*TINY, "--trials", "2", "--scheduler", "none", "--confirm", "0", "--processes", "2", "--epochs", "1"]
    driver = begin(tmp_path, *options, "--executor", "ray", "--max-parallel", "1")
    output, _ = driver.communicate(timeout=LIMIT)
    assert driver.returncode == 0, output
    assert len(read_trials(tmp_path)) == 2
    for number in range(2):
        result = result_of(tmp_path / f"trials/{number:03d}/seed-0")
        assert (result["status"], result["processes"]) == ("finished", 2)
        assert (tmp_path / f"trials/{number:03d}/seed-0/logs/rank-1.log").exists()


def test_runs_share_a_gpu(tmp_path, monkeypatch):
    """Two runs with half a GPU each are in progress at the same time on a Ray with one GPU, which does not exist: the
    training sees no GPU and uses the CPU. A third run waits.
    """
    import ray

    start = ray.init
    monkeypatch.setattr(ray, "init", lambda **options: start(**options, num_gpus=1, num_cpus=4))
    runs = [TrainRun(config("finetune", epochs=200, name=name), tmp_path / name) for name in ("a", "b", "c")]
    with connected(None, tmp_path) as cluster:
        assert cluster.gpus == 1
        executor = RayExecutor(Resources(processes=1, cpus=1, gpus=0.5, max_parallel=3), 1, 0, "a test")
        executor.start(runs)
        wait_for(lambda: sum(step_of(run.folder) > 0 for run in runs) == 2, "two runs in progress")
        time.sleep(2)
        started = [run for run in runs if step_of(run.folder) > 0]
        assert len(started) == 2
        executor.stop()
    assert [attempts.read(run.folder)[-1].outcome for run in started] == ["stopped", "stopped"]
