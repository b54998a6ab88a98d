"""A plan on a Ray cluster, wave by wave, several runs at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from rich.console import Console

from pfcluster.config import ConfigError
from pfcluster.launch.errors import LaunchError
from pfcluster.launch.launcher_lock import launching
from pfcluster.launch.options import Cluster
from pfcluster.launch.plan import Plan, TrainRun
from pfcluster.launch.processes import RunMonitor
from pfcluster.launch.ray.connect import RayCluster, connected
from pfcluster.launch.ray.train import Workers, train
from pfcluster.launch.supervisor import EndedRun, train_runs
from pfcluster.launch.waves import OnFailure, run_waves
from pfcluster.launch.worker import FINISHED, INTERRUPTED, USER_ERROR, ExitStatus
from pfcluster.runs.folder import STOP_FILE, log_path

POLL_SECONDS = 0.5


def run_plan(plan: Plan, cluster: Cluster, max_parallel: int, console: Console) -> bool:
    """Run a plan; True once all is done, False if a signal stopped it. Commands run on this machine.

    Raises LaunchError if a task fails, ConfigError for resources that the cluster does not have.
    """
    layouts = {stage.name: (1, 1) if stage.single_process else cluster.layout_of(stage.name) for stage in plan.stages}
    with connected(cluster.address, plan.folder) as ray_cluster:
        console.print(ray_cluster.text())
        workers = workers_of(cluster, ray_cluster, max_parallel)

        def train_wave(runs: Sequence[TrainRun], _: str, on_failure: OnFailure | None) -> bool:
            backend = _RayRuns(workers, cluster.retries, plan.command, console)
            return train_runs(backend, runs, plan.same_seed_runs(), max_parallel=max_parallel, on_failure=on_failure)

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


class _RayRuns:
    """The runs in progress, each a Ray task that waits for its workers."""

    display = nullcontext()

    def __init__(self, workers: Workers, retries: int, command: str, console: Console) -> None:
        import ray

        self.workers, self.retries, self.command, self.console = workers, retries, command, console
        self.train_remotely = ray.remote(num_cpus=0, max_retries=0)(_train)
        self.running: dict[Any, RunMonitor] = {}

    def start(self, run: TrainRun) -> None:
        (run.folder / STOP_FILE).unlink(missing_ok=True)
        reference = self.train_remotely.remote(run, self.workers, self.retries, self.command)
        self.running[reference] = RunMonitor(run)

    def poll(self) -> list[EndedRun]:
        import ray

        ended, _ = ray.wait(list(self.running), timeout=POLL_SECONDS)
        for monitor in self.running.values():
            monitor.read_metrics()
        return [self._end(reference) for reference in ended]

    def _end(self, reference: Any) -> EndedRun:
        monitor, status = self.running.pop(reference), _exit_status(reference)
        run = monitor.run
        monitor.read_metrics()
        (run.folder / STOP_FILE).unlink(missing_ok=True)
        if status.code == FINISHED:
            self.console.print(f"{run.label}: {monitor.summary()}", soft_wrap=True)
        failure = None if status.code in (FINISHED, INTERRUPTED) else _launch_error(run, status)
        return EndedRun(run, status.code, failure)

    def request_stop(self) -> None:
        for monitor in self.running.values():
            (monitor.run.folder / STOP_FILE).touch()

    def show_failure(self, failure: LaunchError) -> None:
        """Nothing: the plan's own error names it at the end."""


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
