"""The options around a command's config: which runs, where, and on how much of what."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from pfcluster.config import ConfigError, RunConfig, presets
from pfcluster.launch.slurm import client
from pfcluster.launch.slurm.client import SlurmError
from pfcluster.launch.slurm.site import Site, load_site

TRAINING = {"pretrain": "mae", "finetune": "scratch", "pf-mag": "pf-vit", "judge": "judge"}
STUDIES = ("pipeline", "demo", "study")
Executor = Literal["local", "slurm", "ray"]


@dataclass(frozen=True)
class Cluster:
    """Where a command's tasks run."""

    executor: Executor
    reason: str
    """Why there."""
    site: Site
    nodes: int
    per_node: int
    """Processes of a run on each node."""
    processes: int
    """The same where GPUs are not asked for."""
    retries: int
    wait: bool
    address: str | None = None
    """Of a Ray cluster; None starts one here."""

    @property
    def world_size(self) -> int:
        """Processes of a run on this machine."""
        return self.nodes * self.per_node

    def layout_of(self, run: str) -> tuple[int, int]:
        """Nodes, and processes on each, of a run by its name."""
        if self.executor != "slurm":
            return self.nodes, self.per_node
        own = self.site.for_run(run)
        return own.nodes or 1, own.gpus_per_node or self.processes

    def size_of(self, run: str) -> int:
        """Processes of a run by its name."""
        nodes, per_node = self.layout_of(run)
        return nodes * per_node


@dataclass(frozen=True)
class Options:
    """What surrounds the configs of one call."""

    command: str
    preset: str
    seeds: tuple[int, ...]
    jobs: int
    output: Path
    name: str | None
    input: Path | None
    build: tuple[str, ...]
    dry_run: bool
    assumed_tflops: float
    cluster: Cluster
    overrides: tuple[str, ...]
    """`--section.field value` pairs, as given."""


def command_text() -> str:
    """The command that repeats this call."""
    return shlex.join(["python", "jobs/launch.py", *sys.argv[1:]])


def add_cluster_options(parser: argparse.ArgumentParser, executor: str) -> None:
    """Options of every command that can be handed to a cluster."""
    group = parser.add_argument_group("where it runs", "settings of the site belong into a file: --site")
    group.add_argument(
        "--executor",
        choices=("auto", "slurm", "ray", "local"),
        default=executor,
        help="slurm: sbatch through submitit; ray: Ray Train and Tune; local: this machine; auto: slurm where a cluster"
        " answers",
    )
    group.add_argument(
        "--address",
        default=os.environ.get("RAY_ADDRESS"),
        help="Ray's head node; default: a Ray of this machine",
    )
    group.add_argument("--nodes", type=int, default=None, help="nodes of a run; here: groups of processes")
    group.add_argument("--gpus-per-node", type=int, default=None, help="GPUs of a node, a process on each")
    group.add_argument(
        "--processes", type=int, default=1, help="processes of a run on a node, where GPUs are not asked for"
    )
    group.add_argument("--cpus-per-task", type=int, default=None, help="CPU cores of a process")
    for name, words in (
        ("partition", "as in sbatch"),
        ("account", "as in sbatch"),
        ("qos", "as in sbatch"),
        ("constraint", "as in sbatch"),
        ("exclude", "nodes to keep away from"),
        ("mem", "memory of a node, as in sbatch"),
        ("time", "limit of one job: minutes, H:MM:SS or D-HH:MM:SS; longer runs chain"),
    ):
        group.add_argument(f"--{name}", default=None, help=words)
    group.add_argument(
        "--site", type=Path, default=None, help="TOML file; default: pfcluster.toml, ~/.config/pfcluster.toml"
    )
    group.add_argument("--retries", type=int, default=2, help="failures that are tried again; preemptions are free")
    group.add_argument("--wait", action="store_true", help="stay until all has ended, and leave with its exit code")


def cluster_of(known: argparse.Namespace) -> Cluster:
    """Where these options want the tasks. Raises ConfigError, SlurmError."""
    for name in ("processes", "nodes", "gpus_per_node", "cpus_per_task"):
        value = getattr(known, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    if known.retries < 0:
        raise ConfigError(f"--retries must be at least 0, got {known.retries}")
    if known.time is not None:
        client.minutes(known.time)
    executor, reason = choose_executor(known.executor)
    names = ("partition", "account", "qos", "constraint", "exclude", "mem", "time", "nodes", "gpus_per_node")
    site = load_site(known.site).with_options({name: getattr(known, name) for name in (*names, "cpus_per_task")})
    if executor != "slurm":  # the site's own nodes are not here
        nodes, per_node = known.nodes or 1, known.gpus_per_node or known.processes
    else:
        nodes, per_node = site.nodes or 1, site.gpus_per_node or known.processes
    return Cluster(executor, reason, site, nodes, per_node, known.processes, known.retries, known.wait, known.address)


def choose_executor(wanted: str) -> tuple[Executor, str]:
    """slurm, ray or local, and why. Raises SlurmError where SLURM is asked for and absent."""
    if wanted in ("local", "ray"):
        return wanted, f"--executor {wanted}"  # type: ignore[return-value]
    found, reason = client.available()
    if wanted == "slurm":
        if not found and not reason.startswith("inside"):
            raise SlurmError(f"--executor slurm: {reason}; run on this machine with --executor local")
        return "slurm", "--executor slurm"
    return ("slurm" if found else "local"), reason


def parse_training(command: str, arguments: Sequence[str]) -> Options:
    """Options of a command that trains; what is left over are fields of the config."""
    parser = argparse.ArgumentParser(
        prog=f"jobs/launch.py {'' if command == 'pipeline' else command}".rstrip(),
        description="Every field of the config is an option too: --optim.lr 1e-4 --model.depth 6; listed below.",
        allow_abbrev=False,
        add_help=False,
    )
    own = command in ("pipeline", "study") and any(word.startswith(("--data.shards", "--input")) for word in arguments)
    default = "demo" if command == "demo" or (command == "pipeline" and not own) else "small"
    parser.add_argument("--preset", default=default, choices=sorted(presets.PRESETS), help="config to start from")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2] if command in STUDIES else [0], help="one run for each"
    )
    parser.add_argument("--jobs", type=int, default=2 if default == "demo" else 1, help="runs at once, on this machine")
    output = Path("runs") / command if command in STUDIES else Path("runs")
    parser.add_argument("--output", type=Path, default=output, help="runs go to OUTPUT/NAME/seed-N")
    parser.add_argument(
        "--job-name", default=None, help="what the jobs are called in the queue; default: the folder's name"
    )
    if command in STUDIES:
        parser.add_argument("--input", type=Path, default=None, help="raw photos: shards are made of them first")
        parser.add_argument(
            "--build", default="", help='options of shards/build.py, as one text: "--size 112 --align none"'
        )
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and what it costs of a GPU")
    parser.add_argument(
        "--assumed-tflops", type=float, default=300.0, help="TFLOP/s of a GPU, for --dry-run's images/s"
    )
    add_cluster_options(parser, "auto")
    parser.add_argument("-h", "--help", action="store_true")
    known, rest = parser.parse_known_args(arguments)
    if known.help:
        parser.print_help()
        role = TRAINING.get(command, "pf-vit")
        tyro.cli(RunConfig, default=presets.recipe(known.preset)[role], args=["--help"], prog="config fields")
    if known.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, got {known.jobs}")
    if not known.assumed_tflops > 0:
        raise ConfigError(f"--assumed-tflops must be positive, got {known.assumed_tflops}")
    if len(set(known.seeds)) < len(known.seeds):
        raise ConfigError(f"--seeds must differ from each other, got {' '.join(map(str, known.seeds))}")
    values: dict[str, Any] = vars(known)
    return Options(
        command,
        known.preset,
        tuple(known.seeds),
        known.jobs,
        known.output,
        known.job_name,
        values.get("input"),
        tuple(shlex.split(values.get("build", ""))),
        known.dry_run,
        known.assumed_tflops,
        cluster_of(known),
        tuple(rest),
    )
