"""Executes trials on Ray. A run of one process is a Ray task that reserves cores and a fraction of a GPU; a run of
several processes is trained by Ray Train, as in `launch/ray`.

Every machine must see the sweep's folder at the same path: a shared file system if there is more than one machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pfcluster.launch.plan import TrainRun
from pfcluster.launch.ray.train import Workers, train, train_rank
from pfcluster.launch.worker import FAILED, ExitStatus
from pfcluster.runs.folder import STOP_FILE, write_requested_config
from pfcluster.sweep.executor import Resources, Retries


class RayExecutor:
    """Submits runs as tasks to the Ray cluster that this process is connected to, and retries those that failed."""

    name = "ray"
    poll_seconds = 0.5

    def __init__(self, resources: Resources, nodes: int, retries: int, command: str) -> None:
        self.resources, self.nodes, self.retries, self.command = resources, nodes, retries, command
        self._retries = Retries(retries)
        self._tasks: dict[Any, TrainRun] = {}
        """Runs in progress by their Ray object reference."""
        self._delayed: list[TrainRun] = []
        """Runs that wait before their next attempt."""

    @property
    def max_parallel(self) -> int:
        return self.resources.max_parallel

    def start(self, runs: Sequence[TrainRun]) -> None:
        for run in runs:
            write_requested_config(run.folder, run.config)
            (run.folder / STOP_FILE).unlink(missing_ok=True)
            self._tasks[self._submit(run)] = run

    def _submit(self, run: TrainRun) -> Any:
        import ray

        resources, folder = self.resources, run.folder.resolve()
        task: Any
        if resources.processes > 1:  # Ray Train reserves the workers and retries them itself
            workers = Workers(resources.processes, resources.cpus, resources.gpus, self.nodes)
            task = ray.remote(_train_group).options(num_cpus=0, max_retries=0)
            return task.remote(replace(run, folder=folder), workers, self.retries, self.command)
        task = ray.remote(max_calls=1)(train_alone)  # a new process for every run, as with the other executors
        task = task.options(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=0)
        return task.remote(folder, self.command, resources)

    def poll(self) -> list[tuple[TrainRun, ExitStatus]]:
        import ray

        for run in [run for run in self._delayed if self._retries.may_start(run)]:
            self._delayed.remove(run)
            self._tasks[self._submit(run)] = run
        if not self._tasks:
            return []
        ended = []
        done, _ = ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
        for reference in done:
            run = self._tasks.pop(reference)
            try:
                exit_status, retried = ray.get(reference), self.resources.processes > 1
            except ray.exceptions.RayError as error:
                exit_status, retried = task_failure(error), False
            if not retried and self._retries.again(run, exit_status):
                self._delayed.append(run)
            else:
                (run.folder / STOP_FILE).unlink(missing_ok=True)
                ended.append((run, exit_status))
        return ended

    def stop(self) -> None:
        for run in self._tasks.values():
            (run.folder / STOP_FILE).touch()
        self._retries.limit = 0
        self._delayed.clear()
        while self._tasks:
            self.poll()
            time.sleep(self.poll_seconds)


def _train_group(run: TrainRun, workers: Workers, retries: int, command: str) -> ExitStatus:
    return train(run, workers=workers, retries=retries, command=command)


def train_alone(folder: Path, command: str, resources: Resources) -> ExitStatus:
    """Train a run of one process in this Ray task. Raises RuntimeError if this machine does not see the folder."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)
    if not resources.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return train_rank(folder, command, cpus=resources.cpus)


def task_failure(error: Exception) -> ExitStatus:
    """Exit status of a Ray task that raised an error or whose worker process was lost."""
    from ray.exceptions import RayTaskError

    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, RayTaskError):
        return ExitStatus(FAILED, "bug", lines[-1] if lines else repr(error))
    reason = f" ({lines[0][:200]})" if lines else ""
    return ExitStatus(FAILED, "lost rank", f"its Ray worker was lost{reason}")
