"""The options of `pfcluster sweep`, and the spec that they describe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pfcluster.config import ConfigError, RunConfig, presets
from pfcluster.config.preset_parts import Recipe
from pfcluster.config.starts import (
    MAE_VIT,
    SAME_SEED_MAE_VIT,
    PfVitStart,
    require_classifier_start,
    with_start,
)
from pfcluster.data.labels import neutral_index
from pfcluster.launch.command_line import parse_known
from pfcluster.launch.options import Cluster, ClusterOptions, InlineCluster, resolve_cluster
from pfcluster.launch.overrides import SET_BY_STUDIES, apply_overrides, override_value, require_absent
from pfcluster.sweep.space import MAE, NamedSpace, Parameter, named_spaces, parse
from pfcluster.sweep.spec import CURVE_METRICS, METRICS, SPEC, Scheduler, Search, Spec, load
from pfcluster.sweep.trials import JUDGE

DEFAULT_SPACE = "loss_weights"
DEFAULT_LAG = 4
ROLES = ("scratch", "mae-vit", "pf-vit", "judge")


@dataclass(frozen=True, kw_only=True)
class SweepCommand:
    """Search on validation with few seeds, then train the best trials and the baseline again on fresh seeds and report
    both. Every field of the config is an option too, for all runs: --optim.lr 1e-4 --epochs 5. An interrupted sweep
    continues when the same command is run again. `pfcluster sweep report FOLDER` writes the report again.
    """

    space: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(
            metavar="NAME|FIELD=KIND:VALUES",
            help=f"{', '.join(named_spaces())}, or a field: optim.lr=loguniform:1e-4,1e-2 (uniform, loguniform, int,"
            f" choice). Repeatable; default: {DEFAULT_SPACE}.",
        ),
    ] = ()
    spaces: Path | None = None
    """TOML file of further named spaces, in the form of pfcluster/sweep/spaces.toml."""
    role: Literal["scratch", "mae-vit", "pf-vit", "judge"] | None = None
    """Run of the preset that is searched; default: the space's."""
    preset: Annotated[
        str | None,
        tyro.conf.arg(
            help=f"Config to start from, the baseline: {', '.join(sorted(presets.PRESETS))}; default: small with"
            " --data.shards, else mini."
        ),
    ] = None
    pf_vit_start: PfVitStart | None = None
    """Weights that PF-ViT starts from: the MAE's, or those of the MAE-ViT with the same seed; default: the preset's."""
    search: Search = "tpe"
    """How values are proposed. one-at-a-time: the baseline with one value changed in each trial."""
    scheduler: Scheduler | None = None
    """What stops or changes trials early; default: asha if the metric is measured during training, else none."""
    metric: Annotated[str, tyro.conf.arg(help=f"On validation: {', '.join(METRICS)}.")] = "accuracy"
    trials: int = 12
    """Configurations, including the baseline; with pbt the members of the population."""
    grid_points: int = 3
    """Values of each range with --search grid or one-at-a-time."""
    lag: int | None = None
    """TPE proposes trial i from the results of the trials up to i - LAG; default: 4, or --max-parallel if larger; a
    continued sweep keeps its own."""
    reduction: int = 3
    """ASHA: one trial in REDUCTION continues at each rung."""
    rungs: int = 2
    """ASHA: rungs before the end."""
    generations: int = 4
    """PBT: number of generations; members are compared, replaced and perturbed between them."""
    confirm: int = 2
    """Best configurations that are trained again on fresh seeds; 0: none."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the search: each trial is trained with each of them."""
    fresh_seeds: tuple[int, ...] = (1000, 1001, 1002)
    """Seeds of the confirmation."""
    search_seed: int = 0
    """Seed of the proposals."""
    output: Path = Path("runs/sweep")
    """The sweep's folder."""
    job_name: str | None = None
    """Name of the SLURM jobs; default: the folder's name."""
    retry_failed: bool = False
    """Run trials again that failed after all retries."""
    dry_run: bool = False
    """Check everything and print what would be searched; start nothing."""
    max_parallel: int | None = None
    """Runs at the same time; default: as many as fit."""
    gpus_per_trial: float | None = None
    """GPUs of each process, also a fraction such as 0.25; default: 1 on machines with GPUs."""
    cluster: InlineCluster = field(default_factory=ClusterOptions)

    def __post_init__(self) -> None:
        if self.preset is not None and self.preset not in presets.PRESETS:
            raise ConfigError(f"--preset must be one of {', '.join(sorted(presets.PRESETS))}, got {self.preset!r}")
        if self.max_parallel is not None and self.max_parallel < 1:
            raise ConfigError(f"--max-parallel must be at least 1, got {self.max_parallel}")


SET_BY_SWEEPS = {**SET_BY_STUDIES, "--evaluate.final-split": "no trial of a search uses the test split"}


SET_BY_STARTS = {
    "model.init": (MAE, "every trial starts from the sweep's own pre-training"),
    "pf_mag.decoder_init": (MAE_VIT, "every trial's decoder starts from the sweep's own pre-training"),
    "evaluate.judge": (JUDGE, "the sweep trains one judge for all trials"),
}
"""Fields that a sweep sets if it trains the run of this name before the trials, and why they cannot be searched."""


@dataclass(frozen=True)
class SweepOptions:
    """A sweep and where it runs."""

    spec: Spec
    output: Path
    name: str
    cluster: Cluster
    max_parallel: int | None
    gpus_per_trial: float | None
    cpus: int | None
    retry_failed: bool
    dry_run: bool
    about: tuple[str, ...]
    """What each of the named spaces searches."""


def read(arguments: Sequence[str]) -> SweepOptions:
    """Parse a command line; the arguments that are left over are fields of the config. Raises ConfigError,
    WeightsError, SlurmError.
    """
    command, overrides = parse_known(SweepCommand, arguments, prog="pfcluster sweep")
    require_absent(overrides, SET_BY_SWEEPS)
    return SweepOptions(
        _spec(command, overrides),
        command.output,
        command.job_name or command.output.resolve().name,
        resolve_cluster(command.cluster, dry_run=command.dry_run),
        command.max_parallel,
        command.gpus_per_trial,
        command.cluster.cpus_per_task,
        command.retry_failed,
        command.dry_run,
        tuple(f"{one.name}: {one.about}" for one in _named(command)),
    )


def _spec(command: SweepCommand, overrides: Sequence[str]) -> Spec:
    parameters, role = _space(command)
    preset = command.preset or ("small" if override_value(overrides, "--data.shards") else "mini")
    recipe = {
        name: replace(apply_overrides(config, overrides), name=name)
        for name, config in with_start(presets.recipe(preset), command.pf_vit_start).items()
    }
    config, before = recipe[role], _before(recipe, role)
    _require_free_fields(parameters, before)
    on_curve = command.metric in CURVE_METRICS
    if on_curve:
        config = replace(config, evaluate=replace(config.evaluate, metric=command.metric))  # type: ignore[arg-type]
    return Spec(
        config=replace(config, evaluate=replace(config.evaluate, final_split="validation")),
        before=before,
        space=parameters,
        search=command.search,
        trials=command.trials,
        grid_points=command.grid_points,
        lag=_default_lag(command) if command.lag is None else command.lag,
        scheduler=command.scheduler or ("asha" if on_curve else "none"),
        reduction=command.reduction,
        rungs=command.rungs,
        generations=command.generations,
        metric=command.metric,
        seed=command.search_seed,
        seeds=command.seeds,
        confirm=command.confirm,
        fresh_seeds=command.fresh_seeds,
        preset=preset,
        overrides=tuple(overrides),
    )


def _require_free_fields(parameters: Sequence[Parameter], before: Mapping[str, RunConfig]) -> None:
    """Raises ConfigError if a field is to be searched that the sweep sets itself: all its trials would be equal."""
    reasons = {option.removeprefix("--").replace("-", "_"): reason for option, reason in SET_BY_SWEEPS.items()}
    reasons["evaluate.selection_split"] = "the test split must not influence the search"
    reasons |= {name: reason for name, (run, reason) in SET_BY_STARTS.items() if run in before}
    for one in parameters:
        if one.field in reasons:
            raise ConfigError(f"--space {one.name}={one.text()} cannot be searched: {reasons[one.field]}")


def _default_lag(command: SweepCommand) -> int:
    """The lag of the sweep in the folder, which is kept even if --max-parallel changes: proposals depend on it. Else as
    many trials as can run in parallel. Raises JsonFileError if the sweep's file is damaged.
    """
    if (command.output / SPEC).exists():
        return load(command.output).lag
    return max(DEFAULT_LAG, command.max_parallel or 0)


def _space(command: SweepCommand) -> tuple[tuple[Parameter, ...], str]:
    """The parameters of all --space options, and the run that they belong to."""
    spaces = _available(command)
    parameters: list[Parameter] = []
    roles: list[str] = []
    for word in command.space or (DEFAULT_SPACE,):
        if word in spaces:
            parameters += spaces[word].parameters
            roles.append(spaces[word].role)
        elif "=" in word:
            parameters.append(parse(word))
        else:
            raise ConfigError(
                f"--space {word}: no such space; there are {', '.join(spaces)}, or write FIELD=KIND:VALUES"
            )
    last = {one.name: one for one in parameters}  # a field given after a named space replaces the space's
    if command.role is None and len(set(roles)) > 1:
        raise ConfigError(
            f"--space: these belong to different runs, {' and '.join(sorted(set(roles)))}; say which with --role"
        )
    role = command.role or (roles[0] if roles else "pf-vit")
    if role not in ROLES:
        raise ConfigError(f"the space's role must be one of {', '.join(ROLES)}, got {role!r}")
    return tuple(last.values()), role


def _available(command: SweepCommand) -> dict[str, NamedSpace]:
    """The spaces that --space may name."""
    return named_spaces() | (named_spaces(command.spaces) if command.spaces is not None else {})


def _named(command: SweepCommand) -> list[NamedSpace]:
    """The spaces that --space names."""
    spaces = _available(command)
    return [spaces[word] for word in command.space or (DEFAULT_SPACE,) if word in spaces]


def _before(recipe: Recipe, role: str) -> dict[str, RunConfig]:
    """Runs that the searched one starts from, unless its config names existing ones."""
    from pfcluster.data.dataset import open_dataset

    config = recipe[role]
    before = {}
    if role in (MAE_VIT, "pf-vit") and config.model.init in (None, SAME_SEED_MAE_VIT):
        before[MAE] = recipe[MAE]
    if config.model.init == SAME_SEED_MAE_VIT:
        before[MAE_VIT] = recipe[MAE_VIT]
    elif role == "pf-vit" and MAE in before:
        require_classifier_start(config, "--pf-vit-start")
    needs_judge = role == "pf-vit" and config.evaluate.judge is None
    if needs_judge and neutral_index(open_dataset(config.data, config.seed).classes) is not None:
        before[JUDGE] = recipe[JUDGE]
    return {
        name: replace(one, evaluate=replace(one.evaluate, final_split="validation")) for name, one in before.items()
    }
