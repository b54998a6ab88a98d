"""`pfcluster demo | study | pipeline | pretrain | finetune | pf-mag | judge`: plan the runs and execute the plan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from rich.console import Console
from rich.table import Table

from pfcluster.launch.launcher_lock import require_kind
from pfcluster.launch.local import run_plan
from pfcluster.launch.options import Cluster
from pfcluster.launch.plan import Plan, Stage, TrainRun
from pfcluster.launch.preflight import preflight
from pfcluster.launch.study_plan import make_plan, unbuilt_shards
from pfcluster.launch.training_options import TRAINING, Options, parse_training
from pfcluster.runs.folder import RESULT_FILE
from pfcluster.system.terminal import plain_console, print_warnings

INTERRUPTED = 130
"""Exit code after SIGINT or SIGTERM."""


def train(command: str, arguments: list[str]) -> int:
    """Run a study or one of its stages; with --dry-run print what would run. Raises ValueError, LaunchError."""
    options = parse_training(command, arguments)
    plan = make_plan(options)
    if options.dry_run:
        from pfcluster.cli.dry_run import dry_run

        require_kind(plan.folder, grows=False)
        if not unbuilt_shards(plan):
            dry_run(plan.train_runs(), options, plain_console())
        print_plan(plan, options.cluster, plain_console())
        return 0
    return execute(command, plan, options, plain_console())


pipeline, demo, study = partial(train, "pipeline"), partial(train, "demo"), partial(train, "study")
pretrain, finetune = partial(train, "pretrain"), partial(train, "finetune")
pf_mag, judge = partial(train, "pf-mag"), partial(train, "judge")


def execute(
    command: str, plan: Plan, options: Options, console: Console, before: Callable[[], None] = lambda: None
) -> int:
    """Check a plan, call `before`, and run the plan with its executor; returns the exit code."""
    cluster = options.cluster
    print_warnings(preflight(plan, cluster), console)
    before()
    if cluster.executor == "slurm":
        from pfcluster.cli.submit import submit

        return submit(plan, cluster, console)
    if cluster.executor == "ray":
        from pfcluster.launch.ray.run import run_plan as run_on_ray

        completed = run_on_ray(plan, cluster, options.max_parallel, console)
    else:
        if cluster.nodes > 1:
            console.print(
                f"--nodes {cluster.nodes}: {cluster.nodes} groups of {cluster.per_node} processes on this machine"
                f" ({cluster.reason})",
            )
        completed = run_plan(plan, processes=cluster.world_size, max_parallel=options.max_parallel)
    if not completed:
        return INTERRUPTED
    if command in TRAINING:  # a study has printed its report instead
        for run in plan.train_runs()[-1]:
            console.print(f"{run.label}: {run.folder / RESULT_FILE}", soft_wrap=True)
    return 0


def _predecessors(stage: Stage) -> str:
    return " ".join([*stage.after, *(f"{name} (same seed)" for name in stage.same_seed)])


def print_plan(plan: Plan, cluster: Cluster, console: Console) -> None:
    """Print the stages of a plan, and its batch scripts for SLURM."""
    table = Table(
        "stage", "tasks", "after", "folders", title=f"plan {plan.name}: {cluster.executor} ({cluster.reason})"
    )
    for stage in plan.stages:
        folders = sorted(
            {str(task.folder.parent if isinstance(task, TrainRun) else task.folder) for task in stage.tasks}
        )
        todo = f"{sum(not task.finished() for task in stage.tasks)} of {len(stage.tasks)} to do"
        table.add_row(stage.name, todo, _predecessors(stage), "\n".join(folders))
    console.print(table)
    if cluster.executor != "slurm":
        return
    from pfcluster.launch.slurm.script import script_of

    if not cluster.slurm_answers:
        console.print(
            "SLURM cannot be queried here: the scripts assume that the partition has enough nodes and allows the time",
            style="yellow",
            soft_wrap=True,
        )
    for stage in plan.stages:
        console.rule(stage.name)
        print(script_of(plan, stage, cluster))
