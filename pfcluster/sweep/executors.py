"""Which executor a sweep has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pfcluster.config import ConfigError
from pfcluster.sweep.executor import Executor, Resources, machine, share_of
from pfcluster.sweep.local import LocalExecutor
from pfcluster.sweep.options import SweepOptions


@contextmanager
def executor_of(options: SweepOptions, command: str) -> Iterator[Executor]:
    """The executor that the options ask for, for as long as it is wanted. Raises ConfigError."""
    cluster = options.cluster
    if cluster.executor == "slurm":
        from pfcluster.sweep.slurm import SlurmExecutor

        if options.gpus_per_trial is not None:
            raise ConfigError("--gpus-per-trial: SLURM gives whole GPUs; say --gpus-per-node")
        yield SlurmExecutor(options.output, options.name, cluster, command, options.at_once)
        return
    if cluster.executor == "ray":
        from pfcluster.launch.ray.connect import connected
        from pfcluster.sweep.ray import RayExecutor

        with connected(cluster.address, options.output) as found:
            share = _share(options, found.cpus, found.gpus)
            print(found.text())
            executor = RayExecutor(options.output, share, cluster.nodes, cluster.retries, command)
            try:
                yield executor
            finally:
                executor.close()
        return
    cores, gpus = machine()
    yield LocalExecutor(_share(options, cores, len(gpus)), cluster.retries, command, gpus)


def _share(options: SweepOptions, cores: int, devices: int) -> Resources:
    return share_of(
        processes=options.cluster.world_size,
        cpus=options.cpus,
        gpus=options.gpus_per_trial,
        at_once=options.at_once,
        cores=cores,
        devices=devices,
    )
