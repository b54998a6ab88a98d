"""Where a command runs: the options of SLURM, Ray and this machine, and the resulting cluster."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pfcluster.config import ConfigError
from pfcluster.launch import slurm_client
from pfcluster.launch.site import Site, load_site
from pfcluster.launch.slurm_client import SlurmError

Executor = Literal["local", "slurm", "ray"]
SITE_OPTIONS = (
    "partition",
    "account",
    "qos",
    "constraint",
    "exclude",
    "mem",
    "time",
    "nodes",
    "gpus_per_node",
    "cpus_per_task",
)
"""Options that override the same settings of the site file."""


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Options of every command that can run on a cluster. Settings that hold for all jobs belong into a site file."""

    executor: Literal["auto", "slurm", "ray", "local"] = "auto"
    """slurm: sbatch through submitit; ray: Ray Train; local: this machine; auto: slurm where a cluster answers, else
    local."""
    address: str | None = field(default_factory=lambda: os.environ.get("RAY_ADDRESS"))
    """Address of Ray's head node; None starts a Ray on this machine."""
    nodes: int | None = None
    """Nodes of a run; with --executor local, groups of processes."""
    gpus_per_node: int | None = None
    """GPUs of a node, with one process on each."""
    processes: int = 1
    """Processes of a run on a node, where --gpus-per-node is not given."""
    cpus_per_task: int | None = None
    """CPU cores of a process."""
    partition: str | None = None
    """As in sbatch."""
    account: str | None = None
    """As in sbatch."""
    qos: str | None = None
    """As in sbatch."""
    constraint: str | None = None
    """As in sbatch."""
    exclude: str | None = None
    """Nodes that are not used, as in sbatch."""
    mem: str | None = None
    """Memory of a node, as in sbatch."""
    time: str | None = None
    """Time limit of one job: minutes, H:MM:SS or D-HH:MM:SS. A run that takes longer continues in further jobs."""
    site: Path | None = None
    """TOML file with the settings of a SLURM site; default: $PFCLUSTER_SITE, pfcluster.toml,
    ~/.config/pfcluster.toml."""
    retries: int = 2
    """Failures of a task that are retried. Preemptions and time limits do not count."""
    wait: bool = False
    """Return when all jobs have ended, with exit code 1 if one failed."""


InlineCluster = Annotated[ClusterOptions, tyro.conf.arg(name="")]
"""Type of a field that adds these options to a command without a prefix."""


@dataclass(frozen=True)
class Cluster:
    """Where a command's tasks run."""

    executor: Executor
    reason: str
    """Why this executor."""
    site: Site
    nodes: int
    per_node: int
    """Processes of a run on each node."""
    processes: int
    """The same, where no GPUs are requested."""
    retries: int
    wait: bool
    address: str | None = None
    """Address of a Ray cluster; None starts one on this machine."""
    slurm_answers: bool = True
    """False if SLURM cannot be queried: a dry run then assumes the defaults."""

    @property
    def world_size(self) -> int:
        """Processes of a run on this machine."""
        return self.nodes * self.per_node

    def layout_of(self, run: str) -> tuple[int, int]:
        """Nodes, and processes on each, of a run by its name."""
        if self.executor != "slurm":
            return self.nodes, self.per_node
        site = self.site.for_run(run)
        return site.nodes or 1, site.gpus_per_node or self.processes

    def size_of(self, run: str) -> int:
        """Processes of a run by its name."""
        nodes, per_node = self.layout_of(run)
        return nodes * per_node


def resolve_cluster(options: ClusterOptions, *, dry_run: bool = False) -> Cluster:
    """Choose the executor and merge the options with the site file. Raises ConfigError, SlurmError."""
    for name in ("processes", "nodes", "gpus_per_node", "cpus_per_task"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if options.retries < 0:
        raise ConfigError(f"--retries must be at least 0, got {options.retries}")
    if options.time is not None:
        slurm_client.minutes(options.time)
    executor, reason, answers = choose_executor(options.executor, dry_run=dry_run)
    site = load_site(options.site) if executor == "slurm" or options.site is not None else Site()
    if executor != "slurm":
        site = Site()  # the file describes a SLURM cluster
    site = site.with_options({name: getattr(options, name) for name in SITE_OPTIONS})
    return Cluster(
        executor,
        reason,
        site,
        site.nodes or 1,
        site.gpus_per_node or options.processes,
        options.processes,
        options.retries,
        options.wait,
        options.address,
        answers,
    )


def choose_executor(name: str, *, dry_run: bool = False) -> tuple[Executor, str, bool]:
    """The executor, the reason, and whether SLURM answers.

    Raises SlurmError where SLURM is requested and absent; a dry run needs no SLURM.
    """
    if name in ("local", "ray"):
        return name, f"--executor {name}", False  # type: ignore[return-value]
    try:
        available, reason = slurm_client.available()
    except SlurmError as error:
        if not (dry_run and name == "slurm"):
            raise
        available, reason = False, str(error)
    if name != "slurm":
        return ("slurm" if available else "local"), reason, available
    answers = available or reason.startswith("inside")
    if not answers and not dry_run:
        raise SlurmError(f"--executor slurm: {reason}; run on this machine with --executor local")
    return "slurm", "--executor slurm" if answers else f"--executor slurm; {reason}", answers
