"""The options of tune/sweep.py, and the spec that they make."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pfcluster.config import ConfigError, RunConfig, presets
from pfcluster.data.labels import neutral_index
from pfcluster.launch.options import Cluster, add_cluster_options, cluster_of
from pfcluster.launch.planning import apply_overrides
from pfcluster.sweep.space import MAE, Parameter, named_spaces, parse
from pfcluster.sweep.spec import LEAST, METRICS, ON_CURVES, Spec
from pfcluster.sweep.trials import JUDGE

DEFAULT_SPACE = "loss_weights"
ROLES = ("scratch", "mae-vit", "pf-vit", "judge")
COUNTS = {
    "trials": "configurations, the baseline's among them; with pbt the members of the population",
    "grid_points": "values of each range with --search grid",
    "lag": "TPE proposes a trial from what was known this many trials before it; default: 4, or the runs at once",
    "reduction": "ASHA: one in so many goes on at each rung",
    "rungs": "ASHA: rungs before the end",
    "generations": "PBT: how often members are compared, replaced and changed",
    "confirm": "best configurations that are trained again on fresh seeds; 0: none",
}


@dataclass(frozen=True)
class SweepOptions:
    """What surrounds the spec of one call."""

    spec: Spec
    output: Path
    name: str
    cluster: Cluster
    at_once: int | None
    gpus_per_trial: float | None
    cpus: int | None
    retry_failed: bool
    dry_run: bool


def parser() -> argparse.ArgumentParser:
    """All options but the config's fields."""
    made = argparse.ArgumentParser(
        prog="tune/sweep.py",
        description="Search on validation with few seeds, then train the best and the baseline again on fresh seeds.",
        epilog="Every field of the config is an option too, for all runs: --optim.lr 1e-4 --epochs 5.",
        allow_abbrev=False,
    )
    names = ", ".join(named_spaces())
    made.add_argument(
        "--space",
        action="append",
        default=None,
        metavar="NAME or FIELD=KIND:VALUES",
        help=f"{names}, or a field: optim.lr=loguniform:1e-4,1e-2 (uniform, loguniform, int, choice); repeatable",
    )
    made.add_argument(
        "--spaces", type=Path, default=None, help="a file of named spaces, like pfcluster/sweep/spaces.toml"
    )
    made.add_argument(
        "--role", choices=ROLES, default=None, help="run of the preset that is searched; default: the space's"
    )
    made.add_argument(
        "--preset", default=None, choices=sorted(presets.PRESETS), help="config to start from: the baseline"
    )
    made.add_argument(
        "--search", choices=("tpe", "random", "grid", "each"), default="tpe", help="how values are proposed"
    )
    made.add_argument(
        "--scheduler", choices=("asha", "pbt", "none"), default=None, help="what stops or changes trials early"
    )
    made.add_argument("--metric", choices=METRICS, default="accuracy", help="on validation")
    for name, words in COUNTS.items():
        made.add_argument(f"--{name.replace('_', '-')}", type=int, default=None, help=words)
    made.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="of the exploration: each trial is run with each"
    )
    made.add_argument("--fresh-seeds", type=int, nargs="+", default=[1000, 1001, 1002], help="of the confirmation")
    made.add_argument("--search-seed", type=int, default=0, help="of the proposals")
    made.add_argument("--output", type=Path, default=Path("runs/sweep"), help="the sweep's folder")
    made.add_argument("--job-name", default=None, help="what SLURM's jobs are called; default: the folder's name")
    made.add_argument("--retry-failed", action="store_true", help="try trials again that failed for good")
    made.add_argument("--dry-run", action="store_true", help="check all, print what would be searched, start nothing")
    add_cluster_options(made, "auto")
    trial = made.add_argument_group("what one trial gets")
    trial.add_argument("--at-once", type=int, default=None, help="runs at one time; default: as many as have room")
    trial.add_argument(
        "--gpus-per-trial",
        type=float,
        default=None,
        help="of each process, also a share, as 0.25; default: 1 where there are",
    )
    return made


def read(arguments: Sequence[str]) -> SweepOptions:
    """Options and spec of a call. Raises ConfigError and its kin."""
    known, overrides = parser().parse_known_args(arguments)
    if known.at_once is not None and known.at_once < 1:
        raise ConfigError(f"--at-once must be at least 1, got {known.at_once}")
    cluster = cluster_of(known)
    parameters, role = _space(known)
    shards = any(word.startswith("--data.shards") for word in overrides)
    preset = known.preset or ("small" if shards else "mini")
    recipe = presets.recipe(preset)
    recipe = {name: replace(apply_overrides(config, overrides), name=name) for name, config in recipe.items()}
    config, before = recipe[role], _before(recipe, role)
    if known.metric in ON_CURVES:
        config = replace(config, evaluate=replace(config.evaluate, metric=known.metric))
    counts = {name: getattr(known, name) for name in LEAST if getattr(known, name) is not None}
    counts.setdefault("lag", max(4, known.at_once or 0))
    at_end = known.metric not in ON_CURVES
    spec = Spec(
        config=replace(config, evaluate=replace(config.evaluate, final_split="validation")),
        before=before,
        space=parameters,
        search=known.search,
        scheduler=known.scheduler or ("none" if at_end else "asha"),
        metric=known.metric,
        seed=known.search_seed,
        seeds=tuple(known.seeds),
        fresh_seeds=tuple(known.fresh_seeds),
        preset=preset,
        overrides=tuple(overrides),
        **counts,
    )
    return SweepOptions(
        spec,
        known.output,
        known.job_name or known.output.resolve().name,
        cluster,
        known.at_once,
        known.gpus_per_trial,
        known.cpus_per_task,
        known.retry_failed,
        known.dry_run,
    )


def _space(known: argparse.Namespace) -> tuple[tuple[Parameter, ...], str]:
    """The parameters of all --space, and the run that they are about."""
    spaces = named_spaces() | (named_spaces(known.spaces) if known.spaces is not None else {})
    parameters: list[Parameter] = []
    roles: list[str] = []
    for word in known.space or [DEFAULT_SPACE]:
        if word in spaces:
            parameters += spaces[word].parameters
            roles.append(spaces[word].role)
        elif "=" in word:
            parameters.append(parse(word))
        else:
            raise ConfigError(
                f"--space {word}: no such space; there are {', '.join(spaces)}, or write FIELD=KIND:VALUES"
            )
    last = {one.name: one for one in parameters}  # a field given after a named space takes its place
    if known.role is None and len(set(roles)) > 1:
        raise ConfigError(f"--space: these are about {' and '.join(sorted(set(roles)))}; say which with --role")
    role = known.role or (roles[0] if roles else "pf-vit")
    if role not in ROLES:
        raise ConfigError(f"the space's role must be one of {', '.join(ROLES)}, got {role!r}")
    return tuple(last.values()), role


def _before(recipe: presets.Recipe, role: str) -> dict[str, RunConfig]:
    """Runs that the searched one starts from, unless its config names others."""
    from pfcluster.data.dataset import open_dataset

    config = recipe[role]
    found = {}
    if role in ("mae-vit", "pf-vit") and config.model.init is None:
        found[MAE] = recipe[MAE]
    judged = role == "pf-vit" and config.evaluate.judge is None
    if judged and neutral_index(open_dataset(config.data, config.seed).classes) is not None:
        found[JUDGE] = recipe[JUDGE]
    return {name: replace(one, evaluate=replace(one.evaluate, final_split="validation")) for name, one in found.items()}
