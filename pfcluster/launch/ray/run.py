"""A plan on a Ray cluster, wave by wave, several runs at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pfcluster.config import ConfigError
from pfcluster.distributed.signals import StopRequest
from pfcluster.launch.errors import LaunchError
from pfcluster.launch.launcher_lock import launching
from pfcluster.launch.local import stopped_alone, unfinished
from pfcluster.launch.options import Cluster
from pfcluster.launch.plan import Plan, TrainRun
from pfcluster.launch.processes import RunMonitor
from pfcluster.launch.ray.connect import RayCluster, connected
from pfcluster.launch.ray.train import Workers, train
from pfcluster.launch.run_queue import RunQueue
from pfcluster.launch.waves import OnFailure, run_waves
from pfcluster.launch.worker import FINISHED, INTERRUPTED, USER_ERROR, ExitStatus
from pfcluster.runs.folder import STOP_FILE, log_path


def run_plan(plan: Plan, cluster: Cluster, max_parallel: int, console: Console) -> bool:
    """Run a plan; True once all is done, False if a signal stopped it. Commands run on this machine.

    Raises LaunchError if a task fails, ConfigError for resources that the cluster does not have.
    """
    layouts = {stage.name: (1, 1) if stage.single_process else cluster.layout_of(stage.name) for stage in plan.stages}
    with connected(cluster.address, plan.folder) as ray_cluster:
        console.print(ray_cluster.text())
        workers = workers_of(cluster, ray_cluster, max_parallel)

        def train_wave(runs: Sequence[TrainRun], _: str, on_failure: OnFailure | None) -> bool:
            supervisor = _Supervisor(workers, cluster.retries, plan.command, max_parallel, console, on_failure)
            return supervisor.train(runs, plan.same_seed_runs())

        with launching(plan, "ray", layouts):
            return run_waves(plan, train_wave)


def workers_of(cluster: Cluster, ray_cluster: RayCluster, max_parallel: int = 1) -> Workers:
    """The Ray workers of each run. Raises ConfigError for resources that the cluster does not have."""
    count = cluster.nodes * cluster.per_node
    if cluster.nodes > ray_cluster.nodes:
        raise ConfigError(f"--nodes {cluster.nodes}: {ray_cluster.text()}; request fewer, or --processes on one node")
    use_gpus = cluster.site.gpus_per_node or ray_cluster.gpus >= count * max_parallel
    gpus = 1.0 if use_gpus else 0.0
    if gpus and count > ray_cluster.gpus:
        raise ConfigError(
            f"a run of {count} workers with a GPU each: {ray_cluster.text()}; request fewer --gpus-per-node"
        )
    cpus: float = cluster.site.cpus_per_task or min(1.0, ray_cluster.cpus / (count * max_parallel))
    if cpus * count > ray_cluster.cpus:
        raise ConfigError(
            f"a run of {count} workers with {cpus:g} cores each: {ray_cluster.text()}; request fewer --cpus-per-task"
        )
    return Workers(count, cpus, gpus, cluster.nodes)


class _Supervisor:
    """Trains runs on Ray, at most `max_parallel` runs at a time."""

    def __init__(
        self,
        workers: Workers,
        retries: int,
        command: str,
        max_parallel: int,
        console: Console,
        on_failure: OnFailure | None,
    ) -> None:
        self.workers, self.retries, self.command = workers, retries, command
        self.max_parallel, self.console, self.on_failure = max_parallel, console, on_failure
        self.failure: LaunchError | None = None
        """The first failure, where there is no `on_failure`: the other runs are then stopped."""

    def train(self, runs: Sequence[TrainRun], before: Mapping[Path, Sequence[TrainRun]]) -> bool:
        """Train all runs, each after those that `before` names; True once all have ended, False if a signal stopped
        them with checkpoints.

        Raises the first LaunchError if there is no `on_failure`.
        """
        import ray

        queue = RunQueue(unfinished(runs, self.console), before)
        train_remotely = ray.remote(num_cpus=0, max_retries=0)(_train)
        running: dict[Any, RunMonitor] = {}
        with StopRequest() as stop:
            signalled = False
            while running or (queue and not stop.requested and self.failure is None):
                while len(running) < self.max_parallel and not (stop.requested or self.failure):
                    run = queue.next()
                    if run is None:
                        break
                    (run.folder / STOP_FILE).unlink(missing_ok=True)
                    reference = train_remotely.remote(run, self.workers, self.retries, self.command)
                    running[reference] = RunMonitor(run)
                ended, _ = ray.wait(list(running), timeout=0.5)
                for monitor in running.values():
                    monitor.read_metrics()
                for reference in ended:
                    monitor, status = running.pop(reference), _exit_status(reference)
                    if status.code == FINISHED:
                        queue.finished(monitor.run)
                    else:
                        queue.drop_after(monitor.run)
                    self._handle_end(monitor, status, stopping=stop.requested or self.failure is not None)
                if (stop.requested or self.failure) and not signalled:
                    signalled = True
                    for monitor in running.values():
                        (monitor.run.folder / STOP_FILE).touch()
        if self.failure is not None:
            raise self.failure
        if stop.requested:
            self.console.print("stopped; the same command continues from the checkpoints")
        return not stop.requested

    def _handle_end(self, monitor: RunMonitor, status: ExitStatus, *, stopping: bool) -> None:
        """`stopping`: all runs are asked to stop."""
        run = monitor.run
        monitor.read_metrics()
        (run.folder / STOP_FILE).unlink(missing_ok=True)
        if status.code == FINISHED:
            self.console.print(f"{run.label}: {monitor.summary()}", soft_wrap=True)
        if status.code == FINISHED or (status.code == INTERRUPTED and stopping):
            return
        failure = stopped_alone(run) if status.code == INTERRUPTED else _launch_error(run, status)
        if self.on_failure is not None:
            self.on_failure(run, failure)
        else:
            self.failure = self.failure or failure


def _train(run: TrainRun, workers: Workers, retries: int, command: str) -> ExitStatus:
    """A Ray task without resources of its own that waits for the workers of a run."""
    return train(run, workers=workers, retries=retries, command=command)


def _exit_status(reference: Any) -> ExitStatus:
    import ray

    try:
        status: ExitStatus = ray.get(reference)
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines()
        return ExitStatus(1, "bug", lines[-1] if lines else repr(error))
    return status


def _launch_error(run: TrainRun, status: ExitStatus) -> LaunchError:
    if status.code == USER_ERROR:
        return LaunchError(f"{run.label}: {status.error}", USER_ERROR)
    return LaunchError(
        f"{run.label} failed ({status.kind}): {status.error}; earlier checkpoints are complete, the same command"
        f" continues from them. Its log: {log_path(run.folder, 0)}",
        1,
    )
