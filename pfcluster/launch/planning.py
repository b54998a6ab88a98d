"""The commands of jobs/launch.py that train: from options to a plan."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import tyro

from pfcluster.config import ConfigError, RunConfig, presets
from pfcluster.config.io import with_values
from pfcluster.data.build.options import BuildOptions
from pfcluster.data.labels import canonical_name, neutral_index
from pfcluster.data.manifest import MANIFEST
from pfcluster.data.types import Dataset
from pfcluster.launch import attempts
from pfcluster.launch.options import STUDIES, TRAINING, Cluster, Options, command_text
from pfcluster.launch.plan import Command, Plan, Stage, TrainRun, groups_of
from pfcluster.launch.slurm import client
from pfcluster.launch.slurm.client import SlurmError
from pfcluster.runs.folder import RESULT_FILE, changes_on_resume

T = TypeVar("T")
SHARDS, REPORT = "shards", "report"


def apply_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """A config changed by `--section.field value` pairs; sizes that they leave open are those of others' weights in
    `model.init`. Raises ConfigError in one paragraph of plain words, WeightsError.
    """
    config = _parsed(lambda: tyro.cli(RunConfig, default=config, args=list(overrides)))
    return config if config.model.init is None else _sized(config, config.model.init, overrides)


def _sized(config: RunConfig, init: str, overrides: Sequence[str]) -> RunConfig:
    from pfcluster.models.pretrained import external_sizes

    given = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in overrides if word.startswith("--")}
    cnn = config.model.architecture == "cnn"  # has none of these sizes but the images'
    sizes = {name: value for name, value in external_sizes(init).items() if not cnn or name == "data.size"}
    left = {name: value for name, value in sizes.items() if name not in given}
    return with_values(config, left, f"model.init {init}")


def build_options(arguments: Sequence[str]) -> BuildOptions:
    """Options of shards/build.py. Raises ConfigError in one paragraph of plain words, BuildError."""
    return _parsed(lambda: tyro.cli(BuildOptions, args=list(arguments)))


def _parsed(parse: Callable[[], T]) -> T:
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return parse()
    except SystemExit as stop:
        words = [word.strip("│╭╮╰╯─-") if set(word) <= set("│╭╮╰╯─-") else word for word in said.getvalue().split()]
        raise ConfigError(" ".join(word for word in words if word)) from stop


def make_plan(options: Options) -> Plan:
    """All that a training command runs. Raises ValueError subclasses."""
    if options.command in STUDIES:
        return study_plan(options)
    config = apply_overrides(presets.recipe(options.preset)[TRAINING[options.command]], options.overrides)
    if config.objective == "finetune" and config.model.init is not None and config.name == "scratch":
        config = replace(config, name="mae-vit")
    folder = options.output / config.name
    groups = tuple(groups_of(_seeded(options, config)))
    return Plan(options.name or config.name, folder, groups, command_text())


def study_plan(options: Options) -> Plan:
    """A whole study: shards where they are missing, what starts from nothing, what starts from MAE's weights, a report.

    MAE and the judge run once, with the first seed; each classifier with each seed. Where the data has no neutral class
    nobody is asked to judge poker faces. Raises DataError, RawDataError, BuildError.
    """
    overrides = options.overrides
    groups: list[Stage] = []
    built = None
    if options.input is not None:
        built = _shards_folder(options)
        overrides = (*overrides, "--data.shards", str(built))
        count = options.cluster.nodes if options.cluster.executor == "slurm" else 1
        build = ("--input", str(options.input), "--output", str(built), *options.build)
        groups.append(slices(build, options.output / SHARDS, count))
    recipe = {role: apply_overrides(config, overrides) for role, config in presets.recipe(options.preset).items()}
    recipe = {role: replace(config, name=role) for role, config in recipe.items()}
    start = tuple(group.name for group in groups)
    first = options.seeds[0]
    mae, judge = (_job(options, replace(recipe[role], seed=first)) for role in ("mae", "judge"))
    pf_vit = _from(recipe["pf-vit"], mae)
    once = groups_of([mae], start)
    if _has_neutral(options, pf_vit, built):
        pf_vit = replace(pf_vit, evaluate=replace(pf_vit.evaluate, judge=str(judge.folder)))
        once += groups_of([judge], start)
    groups += [*once, *groups_of(_seeded(options, recipe["scratch"]), start)]
    groups += groups_of(_seeded(options, pf_vit), tuple(group.name for group in once))
    groups += groups_of(_seeded(options, _from(recipe["mae-vit"], mae)), ("mae",))
    groups.append(report_group(options.output, groups))
    name = options.name or options.output.resolve().name
    return Plan(name, options.output, tuple(groups), command_text())


def slices(arguments: Sequence[str], logs: Path, count: int) -> Stage:
    """A build of shards in so many slices. Raises BuildError for options that cannot be."""
    options = build_options(arguments)
    calls = [
        Command(
            f"{SHARDS} {number + 1}/{count}",
            logs / f"slice-{number}",
            (SHARDS, *arguments, *(("--slice", f"{number}/{count}") if count > 1 else ())),
            produces=options.output / MANIFEST,
        )
        for number in range(count)
    ]
    return Stage(SHARDS, tuple(calls), alone=True)


def report_group(study: Path, groups: Sequence[Stage]) -> Stage:
    """The report, once all runs are there."""
    jobs = [task for group in groups for task in group.tasks if isinstance(task, TrainRun)]
    call = Command(
        REPORT,
        study / REPORT,
        (REPORT, str(study)),
        produces=study / REPORT / "report.html",
        reads=tuple(job.folder / RESULT_FILE for job in jobs),
    )
    return Stage(REPORT, (call,), tuple(group.name for group in groups if group.name != SHARDS), alone=True)


def _shards_folder(options: Options) -> Path:
    """Where the shards of `--input` go: --data.shards, else beside the runs."""
    words = list(options.overrides)
    for number, word in enumerate(words):
        if word == "--data.shards" and number + 1 < len(words):
            return Path(words[number + 1])
        if word.startswith("--data.shards="):
            return Path(word.partition("=")[2])
    return options.output / "data"


def _has_neutral(options: Options, config: RunConfig, built: Path | None) -> bool:
    """Whether the data has a neutral class, also where its shards are still to be made."""
    from pfcluster.data.dataset import open_dataset
    from pfcluster.data.raw.readers import read_raw

    if built is None or (built / MANIFEST).exists():
        return neutral_index(open_dataset(config.data, config.seed).classes) is not None
    assert options.input is not None
    build = build_options(("--input", str(options.input), "--output", str(built), *options.build))
    raw = read_raw(build.input, build.reading(), kind=build.kind)
    return "neutral" in {canonical_name(photo.label) for photo in raw.photos}


def _seeded(options: Options, config: RunConfig) -> list[TrainRun]:
    return [_job(options, replace(config, seed=seed)) for seed in options.seeds]


def _from(config: RunConfig, start: TrainRun) -> RunConfig:
    return replace(config, model=replace(config.model, init=str(start.folder)))


def _job(options: Options, config: RunConfig) -> TrainRun:
    return TrainRun(config, options.output / config.name / f"seed-{config.seed}")


def preflight(plan: Plan, cluster: Cluster) -> None:
    """Find out within seconds what would go wrong after hours. Raises ValueError subclasses.

    What takes a second to import is imported where a run needs it.
    """
    from pfcluster.data.batch import require_even_micro_batch
    from pfcluster.data.dataset import open_dataset, require_labels
    from pfcluster.engine.factory import check

    jobs = [job for wave in plan.jobs() for job in wave]
    if cluster.executor != "slurm":
        _alone([job for job in jobs if not job.finished()])
    coming = {str(job.folder) for job in jobs}
    made = {str(path.parent) for path in coming_shards(plan)}
    seen: set[tuple[str, str]] = set()
    for job in jobs:
        config = job.config
        if (job.study, config.name) in seen or job.finished():
            continue
        seen.add((job.study, config.name))
        world_size = cluster.size_of(config.name)
        if config.batch_size % (world_size * config.engine.grad_accumulation_steps):
            raise ConfigError(
                f"batch_size must be a multiple of the processes of a run, {world_size}, times"
                f" engine.grad_accumulation_steps {config.engine.grad_accumulation_steps},"
                f" got {config.batch_size} for {config.name}"
            )
        require_even_micro_batch(config, world_size)
        check(config.engine, world_size)
        changes_on_resume(job.folder, config)
        _recognition(config, coming)
        if config.data.shards in made:
            continue
        dataset = open_dataset(config.data, config.seed)
        require_labels(dataset, config.objective)
        if config.model.init is not None and config.model.init not in coming:
            from pfcluster.models import factory

            factory.build(config, len(dataset.classes))
        _instruments(config, dataset, coming)


def _recognition(config: RunConfig, coming: Container[str]) -> None:
    """φ's weights are there, or a run of this plan trains them. Raises RecognitionError, ConfigError."""
    wanted = config.pf_mag.identity_net
    if config.objective != "pf_mag" or wanted == "tokens":
        return
    if wanted != "run":
        from pfcluster.models.identity_net import find_weights

        find_weights(wanted, config.pf_mag.identity_net_weights)
    elif config.pf_mag.identity_net_weights not in coming:
        from pfcluster.models.from_runs import load_classifier

        load_classifier(Path(str(config.pf_mag.identity_net_weights)), "pf_mag.identity_net_weights")


def _instruments(config: RunConfig, dataset: Dataset, coming: Container[str]) -> None:
    """What measures the run can be loaded, or is trained by this plan. Raises ConfigError."""
    from pfcluster.distributed.process_group import world
    from pfcluster.evaluate.evaluators import load_evaluators

    def there(place: str | None) -> str | None:
        return None if place is None or place in coming else place

    wanted = config.evaluate
    there_now = replace(
        wanted, judge=there(wanted.judge), identity_net=there(wanted.identity_net), fid=there(wanted.fid)
    )
    with world("cpu") as alone:
        load_evaluators(replace(config, evaluate=there_now), dataset, None, alone)


def _alone(jobs: Sequence[TrainRun]) -> None:
    """Raises ConfigError for a run that a job of SLURM trains, or will: two trainers would spoil its folder."""
    known = {attempts.submitted(job.folder).job: job for job in jobs}
    known.pop("", None)
    if not known:
        return
    try:
        seen = client.states(known)
    except SlurmError:  # no cluster here, or a silent one
        return
    for number, found in seen.items():
        if found.alive:
            raise ConfigError(
                f"{known[number].folder} is SLURM's: job {number} is {found.state.lower()}; cancel it first"
                " (`jobs/launch.py cancel NAME`), or give the same command to SLURM"
            )


def coming_shards(plan: Plan) -> list[Path]:
    """Manifests that the plan makes and that are not there yet."""
    calls = [task for group in plan.groups if group.name == SHARDS for task in group.tasks if isinstance(task, Command)]
    return [call.produces for call in calls if call.produces is not None and not call.produces.exists()]
