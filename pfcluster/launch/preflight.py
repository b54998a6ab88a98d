"""Checks before a plan starts: errors that a run would otherwise raise after the runs before it, hours later."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path

from pfcluster.config import ConfigError, RunConfig
from pfcluster.config.io import with_values
from pfcluster.data.build.options import BuildOptions
from pfcluster.data.fingerprints import changed_starts, check_inputs
from pfcluster.data.types import Dataset
from pfcluster.launch import slurm_client
from pfcluster.launch.command_line import parse
from pfcluster.launch.job_record import read_job
from pfcluster.launch.launcher_lock import require_kind
from pfcluster.launch.options import Cluster
from pfcluster.launch.plan import Command, Plan, TrainRun
from pfcluster.launch.slurm_client import SlurmError
from pfcluster.launch.study_plan import BUILD_COMMAND, SHARDS, unbuilt_shards
from pfcluster.tracking.trackers import require_trackers
from pfcluster.training.schedule import schedule_warnings, total_steps


def preflight(plan: Plan, cluster: Cluster) -> list[str]:
    """Check a plan's folder, and every unfinished run once per name: layout, engine, data, weights; -> warnings. Raises
    ValueError subclasses.

    Packages that take a second to import are imported only where a run needs them.
    """
    require_kind(plan.folder, grows=plan.grows)
    runs = [run for wave in plan.train_runs() for run in wave]
    if cluster.executor != "slurm":
        _require_not_queued([run for run in runs if not run.finished()])
    planned = {str(run.folder) for run in runs}
    unbuilt = {str(path.parent) for path in unbuilt_shards(plan)}
    _require_same_input(plan)
    checked: set[tuple[str, str]] = set()
    warnings: list[str] = []
    for run in runs:
        finished = run.finished()
        check_inputs(run.folder, run.config, finished=finished or run.config.data.shards in unbuilt)
        if finished:
            warnings += changed_starts(run.folder, run.config)
        if (run.study, run.config.name) in checked or finished:
            continue
        checked.add((run.study, run.config.name))
        require_trackers(run.config)
        _check_layout(run.config, cluster.size_of(run.config.name))
        _check_identity_net(run.config, planned)
        if run.config.data.shards not in unbuilt:
            found = _check_data_and_weights(run.config, planned)
            warnings += [warning for warning in found if warning not in warnings]
    return warnings


def _require_same_input(plan: Plan) -> None:
    """Raises BuildError if the plan's shards exist and were built from another input than its build now names."""
    commands = [task for stage in plan.stages if stage.name == SHARDS for task in stage.tasks]
    for command in commands[:1]:
        assert isinstance(command, Command)
        if command.finished():
            from pfcluster.data.build.pipeline import require_same_listing

            require_same_listing(parse(BuildOptions, command.arguments[1:], prog=f"pfcluster {BUILD_COMMAND}"))


def _check_layout(config: RunConfig, world_size: int) -> None:
    """Raises ConfigError for a batch or an engine that does not fit the number of processes."""
    from pfcluster.data.batch import require_fitting_micro_batch
    from pfcluster.engine.factory import check_backend

    if config.batch_size % (world_size * config.engine.grad_accumulation_steps):
        raise ConfigError(
            f"batch_size must be a multiple of the processes of a run, {world_size}, times"
            f" engine.grad_accumulation_steps {config.engine.grad_accumulation_steps},"
            f" got {config.batch_size} for {config.name}"
        )
    require_fitting_micro_batch(config, world_size)
    check_backend(config.engine, world_size)


def _check_data_and_weights(config: RunConfig, planned: Container[str]) -> list[str]:
    """Open the data and load the weights that exist already; -> warnings. Raises DataError, ConfigError,
    WeightsError.
    """
    from pfcluster.data.dataset import missing_test_split, open_dataset, require_labels

    dataset = open_dataset(config.data, config.seed)
    require_labels(dataset, config)
    existing = _without_planned_starts(config, planned)
    if existing.model.init is not None or existing.pf_mag.decoder_init is not None:
        from pfcluster.models import factory

        factory.build(existing, len(dataset.classes))
    _check_evaluators(config, dataset, planned)
    found = schedule_warnings(config, total_steps(config, len(dataset.train)))
    missing = missing_test_split(dataset, config)
    return [*(f"{config.name}: {warning}" for warning in found), *([] if missing is None else [missing])]


def check_local_starts(config: RunConfig, classes: int, planned: Container[str]) -> list[str]:
    """Load the initial weights that are on this machine already, and download none; -> those that are not, by option.
    Raises WeightsError.
    """
    from pfcluster.models import factory, pretrained

    existing, absent = _without_planned_starts(config, planned), []
    starts = {"model.init": existing.model.init, "pf_mag.decoder_init": existing.pf_mag.decoder_init}
    for option, source in starts.items():
        if source is not None and not Path(source).exists():
            existing = with_values(existing, {option: None})
            absent += [] if source.startswith(pretrained.TIMM) else [f"{option} {source}"]
    if existing.model.init is not None or existing.pf_mag.decoder_init is not None:
        factory.build(existing, classes)
    return absent


def _without_planned_starts(config: RunConfig, planned: Container[str]) -> RunConfig:
    """The config without the initial weights that runs of this plan are to write."""
    if config.model.init is not None and config.model.init in planned:
        config = replace(config, model=replace(config.model, init=None))
    if config.pf_mag.decoder_init is not None and config.pf_mag.decoder_init in planned:
        config = replace(config, pf_mag=replace(config.pf_mag, decoder_init=None))
    return config


def _check_identity_net(config: RunConfig, planned: Container[str]) -> None:
    """Raises IdentityNetError, ConfigError if the identity net's weights neither exist nor come from this plan."""
    name = config.pf_mag.identity_net
    if config.objective != "pf_mag" or name == "tokens":
        return
    if name != "run":
        from pfcluster.models.identity_net import find_weights

        find_weights(name, config.pf_mag.identity_net_weights)
    elif config.pf_mag.identity_net_weights not in planned:
        from pfcluster.models.from_runs import load_classifier

        load_classifier(Path(str(config.pf_mag.identity_net_weights)), "pf_mag.identity_net_weights")


def _check_evaluators(config: RunConfig, dataset: Dataset, planned: Container[str]) -> None:
    """Load the judge and the other evaluation nets, except those that this plan trains. Raises ConfigError."""
    from pfcluster.distributed.process_group import world
    from pfcluster.evaluate.evaluators import load_evaluators

    def unless_planned(place: str | None) -> str | None:
        return None if place is None or place in planned else place

    evaluate = replace(
        config.evaluate,
        judge=unless_planned(config.evaluate.judge),
        identity_net=unless_planned(config.evaluate.identity_net),
        fid=unless_planned(config.evaluate.fid),
    )
    with world("cpu") as single_process:
        load_evaluators(replace(config, evaluate=evaluate), dataset, None, single_process)


def _require_not_queued(runs: Sequence[TrainRun]) -> None:
    """Raises ConfigError for a run that a SLURM job trains or will train: two trainers would corrupt its folder."""
    by_job = {read_job(run.folder).job: run for run in runs}
    by_job.pop("", None)
    if not by_job:
        return
    try:
        jobs = slurm_client.job_states(by_job)
    except SlurmError:  # SLURM is absent or does not answer
        return
    for number, job in jobs.items():
        if job.alive:
            raise ConfigError(
                f"{by_job[number].folder} belongs to SLURM: job {number} is {job.state.lower()}; cancel it first"
                " (`pfcluster cancel NAME`), or run the same command with --executor slurm"
            )
