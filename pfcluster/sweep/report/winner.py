"""The best configuration of a sweep as a file of overrides, and the commands that train it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pfcluster.config import RunConfig, presets
from pfcluster.config.io import differences, may_change_on_resume
from pfcluster.config.overrides import OverridesFile
from pfcluster.config.starts import MAE_VIT, starts_from_mae_vit
from pfcluster.launch.overrides import apply_overrides
from pfcluster.launch.training_options import TRAINING, trained_role
from pfcluster.sweep.report.data import SweepData
from pfcluster.sweep.report.rows import Row
from pfcluster.sweep.space import MAE, applied
from pfcluster.sweep.trials import JUDGE, Runs

WINNER_FILE = "winner.json"
LOCAL_FIELDS = ("data.shards", "model.init", "evaluate.judge", "pf_mag.identity_net_weights", "name", "seed")
"""Fields that name files of one machine, or one run: given on the command line."""
SEEDS = (0, 1, 2)
"""Seeds of the commands."""


@dataclass(frozen=True)
class Winner:
    """The best configuration."""

    name: str
    preset: str
    overrides: Mapping[str, Any]
    """Dotted field -> value; with `RUN:` before it for that run only, else for all."""
    trial: int
    metric: str
    confirmed: bool
    seeds: tuple[int, ...]
    score: float
    """Mean over `seeds` of the metric on validation, fresh seeds if confirmed."""
    std: float | None
    """Over `seeds`, n - 1; None for one seed and without confirmation."""
    commands: tuple[str, ...]
    """Train the configuration and measure the test split, in order."""

    def to_json(self) -> str:
        """The content of winner.json, which `pfcluster study --overrides` and the training commands read."""
        values = {
            "name": self.name,
            "preset": self.preset,
            "overrides": dict(self.overrides),
            "trial": self.trial,
            "metric": self.metric,
            "confirmed": self.confirmed,
            "seeds": list(self.seeds),
            "score": self.score,
            "std": self.std,
            "commands": list(self.commands),
        }
        return json.dumps(values, indent=2) + "\n"


def winner_of(data: SweepData) -> Winner | None:
    """The winner, or the search's best if nothing was confirmed. None for a population, whose winner is a schedule, and
    if the preset of the sweep is not recorded.
    """
    spec, best = data.spec, data.best
    if best is None or best.score is None or no_winner_reason(data):
        return None
    summary = data.winner.summary if data.winner is not None else None
    overrides = _overrides(data, best)
    return Winner(
        name=f"{data.folder.resolve().name}-winner",
        preset=spec.preset,
        overrides=overrides,
        trial=best.trial.number,
        metric=spec.metric,
        confirmed=summary is not None,
        seeds=spec.seeds if data.winner is None else tuple(data.winner.scores),
        score=best.score if summary is None else summary.mean,
        std=None if summary is None else summary.std,
        commands=tuple(_commands(data, best, overrides)),
    )


def no_winner_reason(data: SweepData) -> str:
    """Why there is no winner.json; empty if there is one."""
    if data.best is None:
        return "No trial except the baseline was completed, so there is no winner.json."
    if data.spec.scheduler == "pbt":
        return (
            "A population's winner is a schedule: its values changed during training, each generation continuing from "
            "the previous one. A file of overrides cannot express that; these are its values, oldest first."
        )
    if data.spec.preset not in presets.PRESETS:
        return "The sweep did not record which preset it started from, so there is no winner.json."
    return ""


def _overrides(data: SweepData, best: Row) -> dict[str, Any]:
    """All fields in which the winner's runs differ from the preset, except `LOCAL_FIELDS` and how runs are executed."""
    spec = data.spec
    base = presets.recipe(spec.preset)
    with_options = {run: apply_overrides(config, spec.overrides) for run, config in base.items()}
    common: dict[str, Any] = {}
    for run, config in with_options.items():
        common |= _changed(base[run], config)
    overrides = dict(common)
    for run, config in _winning_configs(data, best).items():
        searched = {p.field: _value(config, p.field) for p in spec.space if p.stage == (MAE if run == MAE else None)}
        changed = searched | _changed(with_options[run], config)
        overrides |= {f"{run}:{field}": value for field, value in changed.items()}
    return overrides


def _winning_configs(data: SweepData, best: Row) -> dict[str, RunConfig]:
    """The configs that the space changes, with the best trial's values, by the run's name in the preset."""
    spec = data.spec
    configs = {spec.config.name: applied(spec.config, spec.space, best.trial.values, None)}
    if spec.pretrains_per_trial:
        configs[MAE] = applied(spec.before[MAE], spec.space, best.trial.values, MAE)
    return configs


def _value(config: Any, field: str) -> Any:
    for part in field.split("."):
        config = getattr(config, part)
    return config


def _changed(base: RunConfig, config: RunConfig) -> dict[str, Any]:
    return {
        field: value
        for field, (_, value) in differences(base, config).items()
        if field not in LOCAL_FIELDS and not may_change_on_resume(field)
    }


def _commands(data: SweepData, best: Row, overrides: Mapping[str, Any]) -> list[str]:
    spec, run = data.spec, data.spec.config.name
    configs = _winning_configs(data, best)
    config, shared = configs[run], Runs(spec, data.folder).shared
    file = OverridesFile(data.folder / "report" / WINNER_FILE, spec.preset, overrides)
    output = Path("runs") / f"{data.folder.resolve().name}-winner"
    if MAE_VIT in spec.before:
        return [_study_command(file, config)]
    commands = []
    if MAE in spec.before:
        if MAE in configs:
            commands.append(_command("pretrain", file, configs[MAE], output, (0,)))
        start = str(shared[MAE].folder if MAE in shared else output / MAE / "seed-0")
        config = replace(config, model=replace(config.model, init=start))
    if JUDGE in shared:
        config = replace(config, evaluate=replace(config.evaluate, judge=str(shared[JUDGE].folder)))
    command = next((name for name, trained in TRAINING.items() if trained == run), "finetune")
    return [*commands, _command(command, file, config, output, SEEDS)]


def _study_command(file: OverridesFile, config: RunConfig) -> str:
    """The study that trains PF-ViT of each seed from its MAE-ViT."""
    assert file.preset is not None
    words = ["pfcluster", "study", "--overrides", str(file.path)]
    if not starts_from_mae_vit(presets.recipe(file.preset)):
        words += ["--pf-vit-start", MAE_VIT]
    if config.data.shards is not None:
        words += option("data.shards", config.data.shards)
    if config.pf_mag.identity_net_weights is not None:
        words += option("pf_mag.identity_net_weights", config.pf_mag.identity_net_weights)
    output = Path("runs") / f"{file.path.resolve().parents[1].name}-winner"
    return shlex.join([*words, "--output", str(output), "--seeds", *map(str, SEEDS)])


def _command(command: str, file: OverridesFile, config: RunConfig, output: Path, seeds: tuple[int, ...]) -> str:
    """A training command for a config: the file of overrides, and options for what the file leaves out."""
    assert file.preset is not None
    base = file.apply(presets.recipe(file.preset))[trained_role(command, config.model.init)]
    words = ["pfcluster", command, "--overrides", str(file.path)]
    for field, (_, value) in differences(base, config).items():
        if field not in ("name", "seed", "evaluate.final_split"):
            words += option(field, value)
    return shlex.join([*words, "--output", str(output), "--seeds", *map(str, seeds)])


def option(field: str, value: Any) -> list[str]:
    """A field as an option of the command line."""
    name = field.replace("_", "-")
    if isinstance(value, bool):
        section, _, last = name.rpartition(".")
        return [f"--{name}" if value else f"--{section}{'.' if section else ''}no-{last}"]
    if isinstance(value, list | tuple):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)]
