"""The commands of jobs/launch.py: from options to configs to jobs."""

from __future__ import annotations

import argparse
import contextlib
import io
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from pfcluster import presets
from pfcluster.config import ConfigError, RunConfig
from pfcluster.emotions import neutral_index
from pfcluster.launch.local import Job

TRAINING = {"pretrain": "mae", "finetune": "scratch", "pf-mag": "pf-vit", "judge": "judge"}


@dataclass(frozen=True)
class Options:
    """What surrounds the configs of one call."""

    command: str
    preset: str
    seeds: tuple[int, ...]
    processes: int
    jobs: int
    output: Path
    dry_run: bool
    nodes: int
    gpus_per_node: int
    """Processes on a node."""
    assumed_tflops: float
    overrides: tuple[str, ...]
    """`--section.field value` pairs, as given."""

    @property
    def world_size(self) -> int:
        """Processes of a run, on all nodes together."""
        return self.nodes * self.gpus_per_node

    def text(self) -> str:
        """The command that repeats this call."""
        return shlex.join(["python", "jobs/launch.py", *sys.argv[1:]])


def parse_training(command: str, arguments: Sequence[str]) -> Options:
    """Options of a command that trains; what is left over are fields of the config."""
    default = "demo" if command == "demo" else "small"
    parser = argparse.ArgumentParser(
        prog=f"jobs/launch.py {command}",
        description="Every field of the config is an option too: --optim.lr 1e-4 --model.depth 6; listed below.",
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("--preset", default=default, choices=sorted(presets.PRESETS), help="config to start from")
    seeds = [0, 1, 2] if command in ("demo", "study") else [0]
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds, help="one run for each")
    parser.add_argument("--processes", type=int, default=1, help="processes of a run (DDP), on this machine")
    jobs_default = 2 if command == "demo" else 1
    parser.add_argument("--jobs", type=int, default=jobs_default, help="runs at once, on this machine")
    output = Path("runs") / command if command in ("demo", "study") else Path("runs")
    parser.add_argument("--output", type=Path, default=output, help="runs go to OUTPUT/NAME/seed-N")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and what it costs of a GPU")
    parser.add_argument("--nodes", type=int, default=1, help="nodes of a run, with --dry-run")
    parser.add_argument("--gpus-per-node", type=int, default=None, help="with --dry-run; default: --processes")
    parser.add_argument(
        "--assumed-tflops", type=float, default=300.0, help="TFLOP/s of a GPU, for --dry-run's images/s"
    )
    parser.add_argument("-h", "--help", action="store_true")
    known, rest = parser.parse_known_args(arguments)
    if known.help:
        parser.print_help()
        role = TRAINING.get(command, "pf-vit")
        tyro.cli(RunConfig, default=presets.recipe(known.preset)[role], args=["--help"], prog="config fields")
    known.gpus_per_node = known.processes if known.gpus_per_node is None else known.gpus_per_node
    for name in ("processes", "jobs", "nodes", "gpus_per_node"):
        if getattr(known, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(known, name)}")
    if not known.assumed_tflops > 0:
        raise ConfigError(f"--assumed-tflops must be positive, got {known.assumed_tflops}")
    if not known.dry_run and (known.nodes, known.gpus_per_node) != (1, known.processes):
        raise ConfigError(
            f"--nodes {known.nodes} --gpus-per-node {known.gpus_per_node} without --dry-run: submitting to a cluster is"
            " not part of this version; torchrun or srun starts `-m pfcluster.launch.worker CONFIG FOLDER` by hand, and"
            " on this machine --processes says how many"
        )
    if len(set(known.seeds)) < len(known.seeds):
        raise ConfigError(f"--seeds must differ from each other, got {' '.join(map(str, known.seeds))}")
    return Options(
        command,
        known.preset,
        tuple(known.seeds),
        known.processes,
        known.jobs,
        known.output,
        known.dry_run,
        known.nodes,
        known.gpus_per_node,
        known.assumed_tflops,
        tuple(rest),
    )


def apply_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """A config changed by `--section.field value` pairs. Raises ConfigError in one paragraph of plain words."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return tyro.cli(RunConfig, default=config, args=list(overrides))
    except SystemExit as stop:
        words = [word.strip("│╭╮╰╯─-") if set(word) <= set("│╭╮╰╯─-") else word for word in said.getvalue().split()]
        raise ConfigError(" ".join(word for word in words if word)) from stop


def study_jobs(options: Options) -> list[list[Job]]:
    """A whole study in two stages: what starts from nothing, then what starts from MAE's weights. Long runs go first.

    MAE and the judge run once, with the first seed; each classifier with each seed. Where the data has no neutral class
    nobody is asked to judge poker faces. Raises DataError.
    """
    from pfcluster.data.source import open_dataset

    recipe = {
        role: apply_overrides(config, options.overrides) for role, config in presets.recipe(options.preset).items()
    }
    recipe = {role: replace(config, name=role) for role, config in recipe.items()}
    first = options.seeds[0]
    once = [_job(options, replace(recipe[role], seed=first)) for role in ("mae", "judge")]
    mae, judge = (str(job.folder) for job in once)
    pf_vit = _from(recipe["pf-vit"], mae)
    if neutral_index(open_dataset(pf_vit.data, first).classes) is None:
        once.pop()
    else:
        pf_vit = _judged(pf_vit, judge)
    grown = (pf_vit, _from(recipe["mae-vit"], mae))
    return [
        [*once, *_seeded(options, recipe["scratch"])],
        [job for config in grown for job in _seeded(options, config)],
    ]


def single_jobs(options: Options) -> list[list[Job]]:
    """One training command: a run for each seed."""
    config = apply_overrides(presets.recipe(options.preset)[TRAINING[options.command]], options.overrides)
    if config.objective == "finetune" and config.model.init is not None and config.name == "scratch":
        config = replace(config, name="mae-vit")
    return [_seeded(options, config)]


def _seeded(options: Options, config: RunConfig) -> list[Job]:
    return [_job(options, replace(config, seed=seed)) for seed in options.seeds]


def _from(config: RunConfig, init: str) -> RunConfig:
    return replace(config, model=replace(config.model, init=init))


def _judged(config: RunConfig, judge: str) -> RunConfig:
    return replace(config, evaluate=replace(config.evaluate, judge=judge))


def _job(options: Options, config: RunConfig) -> Job:
    return Job(config, options.output / config.name / f"seed-{config.seed}")


def preflight(stages: Sequence[Sequence[Job]], processes: int) -> None:
    """Find out within seconds what would go wrong after hours. Raises ValueError subclasses."""
    from pfcluster import models
    from pfcluster.data.source import open_dataset, require_labels
    from pfcluster.dist import World, world
    from pfcluster.engine.build import check
    from pfcluster.evaluate.final import load_judge
    from pfcluster.nn.recognition import find_weights

    coming = {str(job.folder) for stage in stages for job in stage}
    seen: set[str] = set()
    for job in (job for stage in stages for job in stage):
        config = job.config
        if config.name in seen or job.finished():
            continue
        seen.add(config.name)
        if config.batch_size % (processes * config.engine.accumulate):
            raise ConfigError(
                f"batch_size must be a multiple of --processes {processes} times engine.accumulate"
                f" {config.engine.accumulate}, got {config.batch_size}"
            )
        check(config.engine, processes)
        dataset = open_dataset(config.data, config.seed)
        require_labels(dataset, config.objective)
        if config.model.init is not None and config.model.init not in coming:
            models.build(config, len(dataset.classes))
        if config.evaluate.judge is not None and config.evaluate.judge not in coming:
            with world("cpu") as here:
                assert isinstance(here, World)
                load_judge(config, dataset, here)
        if config.objective == "pf_mag" and config.pf_mag.recognition == "facenet":
            find_weights(config.pf_mag.recognition_weights)
