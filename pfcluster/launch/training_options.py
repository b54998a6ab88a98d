"""The options of the commands that train, besides the fields of the config."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated

import tyro

from pfcluster.config import ConfigError, RunConfig, presets
from pfcluster.config.overrides import OverridesFile, read_overrides
from pfcluster.config.preset_parts import Recipe
from pfcluster.config.starts import MAE_VIT, PfVitStart, with_start
from pfcluster.launch.budget_controls import BudgetControl
from pfcluster.launch.command_line import is_help, parse, parse_known
from pfcluster.launch.options import Cluster, ClusterOptions, InlineCluster, resolve_cluster
from pfcluster.launch.overrides import SET_BY_COMMANDS, SET_BY_STUDIES, override_value, require_absent
from pfcluster.system.redaction import redact

TRAINING = {"pretrain": "mae", "finetune": "scratch", "pf-mag": "pf-vit", "judge": "judge"}
"""Commands that train one stage, and the preset's run that each takes; `finetune --model.init` takes mae-vit."""
STUDIES = ("pipeline", "demo", "study")
"""Commands that train every stage and write a report."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Train one stage."""

    preset: Annotated[str, tyro.conf.arg(help=f"Config to start from: {', '.join(sorted(presets.PRESETS))}.")] = "small"
    overrides: Path | None = None
    """JSON file of overrides, such as a sweep's winner.json; --preset defaults to the file's preset, and fields on the
    command line take precedence."""
    seeds: tuple[int, ...] = (0,)
    """One run for each seed."""
    max_parallel: int = 1
    """Runs at the same time on this machine or on Ray; under SLURM the queue decides."""
    output: Path = Path("runs")
    """Runs are written to OUTPUT/NAME/seed-N."""
    job_name: str | None = None
    """Prefix of the job names in SLURM's queue; default: the folder's name."""
    dry_run: bool = False
    """Print what would run and what it costs, and start nothing."""
    assumed_tflops: float = 300.0
    """TFLOP/s of a GPU, for the images/s that --dry-run prints."""
    cluster: InlineCluster = field(default_factory=ClusterOptions)

    def __post_init__(self) -> None:
        if self.preset not in presets.PRESETS:
            raise ConfigError(f"--preset must be one of {', '.join(sorted(presets.PRESETS))}, got {self.preset!r}")
        if self.max_parallel < 1:
            raise ConfigError(f"--max-parallel must be at least 1, got {self.max_parallel}")
        if not 0 < self.assumed_tflops < math.inf:
            raise ConfigError(f"--assumed-tflops must be positive and finite, got {self.assumed_tflops}")
        require_seeds(self.seeds)


@dataclass(frozen=True, kw_only=True)
class StudyOptions(TrainingOptions):
    """Train every stage with every seed and write a report."""

    input: Path | None = None
    """Raw photos; shards are built from them first."""
    build: str = ""
    """Options of `pfcluster build`, as one string: "--size 112 --align none"."""
    pf_vit_start: PfVitStart | None = None
    """Weights that PF-ViT starts from: the MAE's, as in the paper, or those of the MAE-ViT with the same seed; default:
    the preset's."""
    budget_controls: tuple[BudgetControl, ...] = ()
    """Additional rows: MAE-ViT trained for as many epochs, or for as many FLOPs, as PF-ViT and the MAE-ViT that it
    starts from."""


@dataclass(frozen=True, kw_only=True)
class TrainingHelp(TrainingOptions):
    """Train one stage. The fields of the config follow the options of the command."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


@dataclass(frozen=True, kw_only=True)
class StudyHelp(StudyOptions):
    """Train every stage with every seed and write a report. The fields of the config follow the options of the command,
    and hold for every stage."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)


@dataclass(frozen=True)
class Options:
    """A training command as it was given."""

    command: str
    command_line: str
    """The whole command as text, which repeats the call."""
    preset: str
    seeds: tuple[int, ...]
    max_parallel: int
    output: Path
    name: str | None
    input: Path | None
    build: tuple[str, ...]
    """Options of `pfcluster build`."""
    dry_run: bool
    assumed_tflops: float
    cluster: Cluster
    overrides: tuple[str, ...]
    """`--section.field value` pairs, as given."""
    overrides_file: OverridesFile | None = None
    """Content of the file that --overrides names."""
    pf_vit_start: PfVitStart | None = None
    budget_controls: tuple[BudgetControl, ...] = ()

    def recipe(self) -> Recipe:
        """The preset's configs with the values of the overrides file. Raises ConfigError."""
        recipe = with_start(presets.recipe(self.preset), self.pf_vit_start)
        return recipe if self.overrides_file is None else self.overrides_file.apply(recipe)


def command_text(command: str, arguments: Sequence[str]) -> str:
    """The shell command that repeats a call; secrets in it are redacted, as it is recorded."""
    return redact(shlex.join(["pfcluster", command, *arguments]))


def trained_role(command: str, init: str | None) -> str:
    """The preset's run that a command of one stage trains; `init` is where it starts (model.init)."""
    return MAE_VIT if command == "finetune" and init is not None else TRAINING[command]


def require_seeds(seeds: Sequence[int]) -> None:
    """Raises ConfigError unless there is a seed and no seed stands twice."""
    if not seeds:
        raise ConfigError("--seeds must name at least one seed")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds must differ from each other, got {' '.join(map(str, seeds))}")


def parse_training(command: str, arguments: Sequence[str]) -> Options:
    """Options of a command that trains; the arguments that are left over are fields of the config.

    Raises ConfigError, SlurmError.
    """
    prog, default = f"pfcluster {command}", defaults(command, arguments)
    if is_help(arguments):
        everything = with_config(command, default)
        parse(type(everything), ["--help"], prog=prog, default=everything)
    options, overrides = parse_known(type(default), arguments, prog=prog, default=default)
    require_absent(overrides, SET_BY_STUDIES if command in STUDIES else SET_BY_COMMANDS)
    study = options if isinstance(options, StudyOptions) else StudyOptions()
    overrides_file = None if options.overrides is None else read_overrides(options.overrides)
    if overrides_file is not None and command in TRAINING:
        init = override_value(overrides, "--model.init") or overrides_file.values.get("model.init")
        overrides_file.require_values_of(trained_role(command, init), prog)
    return Options(
        command,
        command_text(command, arguments),
        options.preset,
        options.seeds,
        options.max_parallel,
        options.output,
        options.job_name,
        study.input,
        tuple(shlex.split(study.build)),
        options.dry_run,
        options.assumed_tflops,
        resolve_cluster(options.cluster, dry_run=options.dry_run),
        tuple(overrides),
        overrides_file,
        study.pf_vit_start,
        study.budget_controls,
    )


def defaults(command: str, arguments: Sequence[str] = ()) -> TrainingOptions:
    """The options of a command where none is given. Without photos or shards, a study takes the demo's preset."""
    has_data = any(word.startswith(("--data.shards", "--input")) for word in arguments)
    demo = command == "demo" or (command == "pipeline" and not has_data)
    preset = "demo" if demo else "small"
    file = override_value(arguments, "--overrides")
    if file is not None:
        preset = read_overrides(Path(file)).preset or preset
    named = override_value(arguments, "--preset")
    if named in presets.PRESETS:  # so that --help shows its values
        preset = named
    if command not in STUDIES:
        return TrainingOptions(preset=preset)
    return StudyOptions(preset=preset, seeds=(0, 1, 2), max_parallel=2 if demo else 1, output=Path("runs") / command)


def with_config(command: str, default: TrainingOptions) -> TrainingOptions:
    """The options of a command together with the fields of its config, for --help and shell completion."""
    config = presets.recipe(default.preset)[TRAINING.get(command, "pf-vit")]
    values = {each.name: getattr(default, each.name) for each in fields(default)}
    return StudyHelp(config=config, **values) if command in STUDIES else TrainingHelp(config=config, **values)
