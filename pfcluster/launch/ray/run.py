"""A plan on a Ray cluster, wave by wave, a few runs at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from pfcluster.config import ConfigError
from pfcluster.distributed.signals import StopRequest
from pfcluster.launch.local import LaunchError, OnFailure, Watched, run_waves, show_line
from pfcluster.launch.options import Cluster
from pfcluster.launch.plan import Plan, TrainRun
from pfcluster.launch.ray.connect import RayCluster, connected
from pfcluster.launch.ray.train import Workers, train
from pfcluster.launch.worker import FINISHED, INTERRUPTED, USER_ERROR, ExitStatus
from pfcluster.runs.folder import STOP_FILE, log_path


def run_plan(plan: Plan, cluster: Cluster, at_once: int, console: Console) -> bool:
    """Run a plan's groups; True once all is finished, False where a signal stopped it. Commands that do not train run
    on this machine. Raises LaunchError where something fails, ConfigError for what the cluster has no room for.
    """
    with connected(cluster.address, plan.folder) as ray:
        console.print(ray.text(), highlight=False)
        workers = workers_of(cluster, ray, at_once)

        def train(jobs: Sequence[TrainRun], _: str, failed: OnFailure | None) -> bool:
            return _run_jobs(jobs, workers, cluster.retries, plan.command, at_once, console, failed)

        return run_waves(plan, train)


def workers_of(cluster: Cluster, ray: RayCluster, at_once: int = 1) -> Workers:
    """The workers of each run. Raises ConfigError for what this cluster can never give."""
    count = cluster.nodes * cluster.per_node
    if cluster.nodes > ray.nodes:
        raise ConfigError(f"--nodes {cluster.nodes}: {ray.text()}; ask for fewer, or for --processes on one")
    wanted = cluster.site.gpus_per_node
    gpus = 1.0 if wanted or ray.gpus >= count * at_once else 0.0
    if gpus and count > ray.gpus:
        raise ConfigError(f"a run of {count} workers with a GPU each: {ray.text()}; ask for fewer --gpus-per-node")
    cpus: float = cluster.site.cpus_per_task or min(1.0, ray.cpus / (count * at_once))
    if cpus * count > ray.cpus:
        raise ConfigError(
            f"a run of {count} workers with {cpus:g} cores each: {ray.text()}; ask for fewer --cpus-per-task"
        )
    return Workers(count, cpus, gpus, cluster.nodes)


def _run_jobs(
    jobs: Sequence[TrainRun],
    workers: Workers,
    retries: int,
    command: str,
    at_once: int,
    console: Console,
    on_failure: OnFailure | None,
) -> bool:
    """Run all jobs; True once all have ended, False where a signal stopped them. A failure is told to `on_failure`,
    else raised.
    """
    import ray

    waiting = [job for job in jobs if not job.finished()]
    for job in jobs:
        if job not in waiting:
            console.print(f"{job.label}: finished already in {job.folder}", highlight=False, soft_wrap=True)
    drive = ray.remote(num_cpus=0, max_retries=0)(_drive)
    running: dict[Any, Watched] = {}
    failure: LaunchError | None = None
    with StopRequest() as stop:
        asked = False
        while running or (waiting and not stop.requested and failure is None):
            while waiting and len(running) < at_once and not stop.requested and failure is None:
                job = waiting.pop(0)
                running[drive.remote(job, workers, retries, command)] = Watched(job)
            done, _ = ray.wait(list(running), timeout=0.5)
            for each in running.values():
                each.read_metrics()
            for reference in done:
                watched = running.pop(reference)
                watched.read_metrics()
                found = _landed(watched, _ending(reference), console)
                if found is not None and on_failure is not None:
                    on_failure(watched.job, found)
                else:
                    failure = failure or found
            if (stop.requested or failure) and not asked:
                asked = True
                for each in running.values():
                    (each.job.folder / STOP_FILE).touch()
    if failure is not None:
        raise failure
    if stop.requested:
        console.print("stopped; the same command goes on from the checkpoints")
    return not stop.requested


def _drive(job: TrainRun, workers: Workers, retries: int, command: str) -> ExitStatus:
    """One run, watched by a task of no size beside its workers."""
    return train(job, workers=workers, retries=retries, command=command)


def _ending(reference: Any) -> ExitStatus:
    import ray

    try:
        ending: ExitStatus = ray.get(reference)
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines()
        return ExitStatus(1, "bug", lines[-1] if lines else repr(error))
    return ending


def _landed(watched: Watched, ending: ExitStatus, console: Console) -> LaunchError | None:
    job = watched.job
    (job.folder / STOP_FILE).unlink(missing_ok=True)
    if ending.code == FINISHED:
        console.print(f"{job.label}: {show_line(watched)}", highlight=False, soft_wrap=True)
    if ending.code in (FINISHED, INTERRUPTED):
        return None
    if ending.code == USER_ERROR:
        return LaunchError(f"{job.label}: {ending.error}", USER_ERROR)
    log = log_path(job.folder, 0)
    return LaunchError(
        f"{job.label} failed ({ending.kind}): {ending.error}; checkpoints from before are whole, the same command goes"
        f" on. Its log: {log}",
        1,
    )
