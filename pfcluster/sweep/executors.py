"""Creates the executor that the options select."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pfcluster.config import ConfigError
from pfcluster.launch.launcher_lock import driving
from pfcluster.launch.plan import Plan
from pfcluster.sweep.executor import Executor, Resources, divide_machine, local_devices
from pfcluster.sweep.local import LocalExecutor
from pfcluster.sweep.options import SweepOptions
from pfcluster.sweep.recorded import recorded


@contextmanager
def make_executor(options: SweepOptions, command: str) -> Iterator[Executor]:
    """The executor of a sweep; Ray is shut down at the end. Raises ConfigError."""
    cluster = options.cluster
    if cluster.executor == "slurm":
        from pfcluster.sweep.slurm import SlurmExecutor

        if options.gpus_per_trial is not None:
            raise ConfigError("--gpus-per-trial: SLURM allocates whole GPUs; use --gpus-per-node")
        with driving(options.output):
            yield SlurmExecutor(
                options.output, options.name, cluster, command, options.max_parallel, retry_failed=options.retry_failed
            )
        return
    plan = Plan(options.name, options.output, (), command, grows=True)
    if cluster.executor == "ray":
        from pfcluster.launch.ray.connect import connected
        from pfcluster.sweep.ray import RayExecutor

        with connected(cluster.address, options.output) as ray:
            resources = _resources(options, ray.cpus, ray.gpus_of_nodes)
            print(ray.text())
            ray_executor = RayExecutor(resources, cluster.nodes, cluster.retries, command)
            with recorded(ray_executor, "ray", plan) as executor:
                yield executor
        return
    cores, gpus = local_devices()
    local_executor = LocalExecutor(_resources(options, cores, [len(gpus)]), cluster.retries, command, gpus)
    with recorded(local_executor, "local", plan) as executor:
        yield executor


def _resources(options: SweepOptions, cores: int, devices: Sequence[int]) -> Resources:
    return divide_machine(
        processes=options.cluster.world_size,
        cpus=options.cpus,
        gpus=options.gpus_per_trial,
        max_parallel=options.max_parallel,
        cores=cores,
        devices=devices,
    )
