"""Plans of the commands that train: one stage, or a whole study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pfcluster.config import ConfigError, RunConfig
from pfcluster.config.starts import (
    MAE_VIT,
    SAME_SEED_MAE_VIT,
    from_mae_vit,
    require_classifier_start,
    starts_from_mae_vit,
)
from pfcluster.data.build.options import BuildOptions
from pfcluster.data.labels import NEUTRAL, emotion_or_none, neutral_index
from pfcluster.data.manifest import MANIFEST
from pfcluster.launch.budget_controls import budget_controls
from pfcluster.launch.command_line import parse
from pfcluster.launch.overrides import apply_overrides, override_value
from pfcluster.launch.plan import Command, Plan, Stage, TrainRun, stages_of
from pfcluster.launch.training_options import STUDIES, TRAINING, Options, trained_role
from pfcluster.runs.folder import RESULT_FILE

SHARDS, REPORT = "shards", "report"
"""Names of stages."""
BUILD_COMMAND = "build"


def make_plan(options: Options) -> Plan:
    """The plan of a training command. Raises ValueError subclasses."""
    if options.command in STUDIES:
        return study_plan(options)
    recipe = options.recipe()
    config = apply_overrides(recipe[TRAINING[options.command]], options.overrides)
    if trained_role(options.command, config.model.init) == MAE_VIT:
        mae_vit = recipe[MAE_VIT]
        start = replace(mae_vit, model=replace(mae_vit.model, init=config.model.init))
        config = apply_overrides(start, options.overrides)
    if config.model.init == SAME_SEED_MAE_VIT:
        raise ConfigError(
            f"model.init must name a run: PF-ViT of preset {options.preset} starts from a fine-tuned MAE-ViT; pass"
            " --model.init and --pf-mag.decoder-init, the folders of runs of `pfcluster finetune` and `pfcluster"
            " pretrain`, or train everything with `pfcluster study`"
        )
    stages = tuple(stages_of(_seeded(options, config)))
    return Plan(options.name or config.name, options.output / config.name, stages, options.command_line)


def study_plan(options: Options) -> Plan:
    """A whole study: shards if they are missing, runs from random weights, runs from the MAE's weights, the report.

    The MAE and the judge are trained once, with the first seed; each classifier with every seed. PF-ViT starts from the
    MAE, or seed by seed from MAE-ViT; `model.init` is where the MAE starts. No judge is trained if `evaluate.judge`
    names one, or without a neutral class in the data. Raises ConfigError, DataError, RawDataError, BuildError.
    """
    overrides = options.overrides
    stages: list[Stage] = []
    shards = None
    if options.input is not None:
        shards = Path(override_value(overrides, "--data.shards") or options.output / "data")
        overrides = (*overrides, "--data.shards", str(shards))
        _require_size(options, shards)
        slices = options.cluster.nodes if options.cluster.executor == "slurm" else 1
        stages.append(build_stage(_build_arguments(options, shards), options.output / SHARDS, slices))
    seed_by_seed = starts_from_mae_vit(options.recipe())
    recipe = {role: apply_overrides(config, overrides) for role, config in options.recipe().items()}
    recipe = {role: replace(config, name=role) for role, config in recipe.items()}
    for role in ("scratch", "judge"):  # trained from random weights, whatever the MAE starts from
        recipe[role] = replace(recipe[role], model=replace(recipe[role].model, init=None))
    start = tuple(stage.name for stage in stages)
    first = options.seeds[0]
    mae, judge = (_train_run(options, replace(recipe[role], seed=first)) for role in ("mae", "judge"))
    mae_vit = _from_checkpoint(recipe[MAE_VIT], mae)
    mae_vits = _seeded(options, mae_vit)
    pf_vit = recipe["pf-vit"]
    if not seed_by_seed:
        require_classifier_start(pf_vit, "--pf-vit-start")
        pf_vit = _from_checkpoint(pf_vit, mae)
    once = stages_of([mae], start)
    if pf_vit.evaluate.judge is None and _has_neutral(options, pf_vit, shards):
        pf_vit = replace(pf_vit, evaluate=replace(pf_vit.evaluate, judge=str(judge.folder)))
        once += stages_of([judge], start)
    stages += [*once, *stages_of(_seeded(options, recipe["scratch"]), start)]
    stages += stages_of(mae_vits, ("mae",))
    for config in budget_controls(options.budget_controls, mae_vit, pf_vit, starts_from_mae_vit=seed_by_seed):
        stages += stages_of(_seeded(options, config), ("mae",))
    pf_vits = _seeded(options, pf_vit)
    if seed_by_seed:
        pf_vits = [
            replace(run, config=from_mae_vit(run.config, str(start.folder), str(mae.folder)))
            for run, start in zip(pf_vits, mae_vits, strict=True)
        ]
    stages += stages_of(pf_vits, tuple(stage.name for stage in once), (MAE_VIT,) if seed_by_seed else ())
    stages.append(report_stage(options.output, stages))
    name = options.name or options.output.resolve().name
    return Plan(name, options.output, tuple(stages), options.command_line, continue_on_failure=True)


def build_stage(arguments: Sequence[str], logs: Path, slices: int) -> Stage:
    """A build of shards, divided into slices. `arguments` are those of `pfcluster build`. Raises ConfigError."""
    options = parse(BuildOptions, arguments, prog=f"pfcluster {BUILD_COMMAND}")
    commands = [
        Command(
            f"{SHARDS} {number + 1}/{slices}",
            logs / f"slice-{number}",
            (BUILD_COMMAND, *arguments, *(("--slice", f"{number}/{slices}") if slices > 1 else ())),
            produces=options.output / MANIFEST,
        )
        for number in range(slices)
    ]
    return Stage(SHARDS, tuple(commands), single_process=True)


def report_stage(study: Path, stages: Sequence[Stage]) -> Stage:
    """The report, once all runs have finished."""
    runs = [task for stage in stages for task in stage.tasks if isinstance(task, TrainRun)]
    command = Command(
        REPORT,
        study / REPORT,
        (REPORT, str(study)),
        produces=study / REPORT / "report.html",
        reads=tuple(run.folder / RESULT_FILE for run in runs),
    )
    after = tuple(stage.name for stage in stages if stage.name != SHARDS)
    return Stage(REPORT, (command,), after, single_process=True)


def unbuilt_shards(plan: Plan) -> list[Path]:
    """Manifests that the plan's build will write and that do not exist yet."""
    stages = [stage for stage in plan.stages if stage.name == SHARDS]
    commands = [task for stage in stages for task in stage.tasks if isinstance(task, Command)]
    manifests = [command.produces for command in commands if command.produces is not None]
    return [manifest for manifest in manifests if not manifest.exists()]


def _build_arguments(options: Options, shards: Path) -> tuple[str, ...]:
    return ("--input", str(options.input), "--output", str(shards), *options.build)


def _has_neutral(options: Options, config: RunConfig, shards: Path | None) -> bool:
    """Whether the data has a neutral class, also if its shards are still to be built."""
    from pfcluster.data.dataset import open_dataset
    from pfcluster.data.raw.readers import read_raw

    if shards is None or (shards / MANIFEST).exists():
        return neutral_index(open_dataset(config.data, config.seed).classes) is not None
    build = parse(BuildOptions, _build_arguments(options, shards), prog=f"pfcluster {BUILD_COMMAND}")
    raw = read_raw(build.input, build.read_options(build.images), kind=build.kind)
    return NEUTRAL in {emotion_or_none(label) for label in {photo.label for photo in raw.photos}}


def _require_size(options: Options, shards: Path) -> None:
    """Raises ConfigError if --budget-controls depends on shards that are not built."""
    if options.budget_controls and not (shards / MANIFEST).exists():
        raise ConfigError(
            "--budget-controls: the length of these runs depends on the number of training images, and the shards are"
            f" not built; build them first with `pfcluster build --input {options.input} --output {shards}`, then pass"
            f" --data.shards {shards} instead of --input"
        )


def _seeded(options: Options, config: RunConfig) -> list[TrainRun]:
    return [_train_run(options, replace(config, seed=seed)) for seed in options.seeds]


def _from_checkpoint(config: RunConfig, run: TrainRun) -> RunConfig:
    return replace(config, model=replace(config.model, init=str(run.folder)))


def _train_run(options: Options, config: RunConfig) -> TrainRun:
    return TrainRun(config, options.output / config.name / f"seed-{config.seed}")
