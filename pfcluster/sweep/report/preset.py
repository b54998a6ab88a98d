"""The best configuration to take away: a preset to paste, and the commands that train it and repeat the search."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pfcluster.config import RunConfig, presets
from pfcluster.config.io import differences, may_change_on_resume
from pfcluster.launch.overrides import apply_overrides
from pfcluster.launch.training_options import TRAINING
from pfcluster.sweep.report.data import SweepData
from pfcluster.sweep.space import MAE, applied
from pfcluster.sweep.trials import JUDGE, Runs

PLACES = ("data.shards", "model.init", "evaluate.judge", "pf_mag.identity_net_weights", "name", "seed")
"""Fields that name files of one machine, or one run."""
SEEDS = "0 1 2"
WIDTH = 90
"""Letters of a line of code, from which on it is broken."""


@dataclass(frozen=True)
class Taken:
    """What can be taken away of a sweep. Empty strings where there is nothing."""

    name: str
    """The preset's."""
    code: str
    """A function for pfcluster/config/presets.py."""
    module: str
    """The same as a file that stands alone."""
    commands: tuple[str, ...]
    """That train the configuration, each after the one before."""


def taken(data: SweepData) -> Taken:
    """The winner's, or the search's best where nothing was confirmed. Nothing for a population, whose winner is a
    schedule, and where the preset that the sweep started from is not known.
    """
    spec, best = data.spec, data.best
    if best is None or spec.scheduler == "pbt" or spec.preset not in presets.PRESETS:
        return Taken("", "", "", ())
    slug = re.sub(r"\W+", "_", data.folder.resolve().name, flags=re.ASCII).strip("_").lower()
    name = f"{slug}_winner" if slug and not slug[0].isdigit() else f"sweep_{slug}_winner".replace("__", "_")
    code = _code(data, name, best.trial.values, f"trial {best.trial.number}")
    base = presets.PRESETS[spec.preset].__name__
    module = f"from dataclasses import replace\n\nfrom pfcluster.config.presets import Recipe, {base}\n\n\n{code}"
    return Taken(name, code, module, tuple(_commands(data, best.trial.values)))


def _code(data: SweepData, name: str, values: Mapping[str, Any], which: str) -> str:
    spec = data.spec
    role, base = spec.config.name, presets.PRESETS[spec.preset].__name__
    base_recipe = presets.recipe(spec.preset)
    recipe = {one: apply_overrides(config, spec.overrides) for one, config in base_recipe.items()}
    common: dict[str, Any] = {}
    for one, config in recipe.items():
        common |= {field: new for field, (_, new) in _changed(base_recipe[one], config).items()}
    wanted = {role: _own(data, values, None)} | ({MAE: _own(data, values, MAE)} if spec.pretrains_per_trial else {})
    lines = [f"def {name}() -> Recipe:", f'    """{_docstring(data, which)}']
    lines += ["", f"    Command: `python jobs/launch.py study --preset {name.replace('_', '-')}`.", '    """']
    if common:
        lines.append("    recipe = {")
        lines.append(f"        role: {_replaced('config', common, 8)}")
        lines += [f"        for role, config in {base}().items()", "    }"]
    else:
        lines.append(f"    recipe = {base}()")
    for one, config in wanted.items():
        own = {field: new for field, (_, new) in _changed(recipe[one], config).items()}
        fields = {
            p.field: getattr_path(config, p.field) for p in spec.space if p.stage == (MAE if one == MAE else None)
        }
        lines.append(f'    {one.replace("-", "_")} = recipe["{one}"]')
        lines.append(f'    recipe["{one}"] = {_replaced(one.replace("-", "_"), fields | own, 4)}')
    return "\n".join([*lines, "    return recipe", ""])


def _docstring(data: SweepData, which: str) -> str:
    summary = data.winner.summary if data.winner else None
    title = data.folder.resolve().name.replace("\\", "/").replace('"', "'")
    if summary is None:
        return f"Best of the sweep {title} ({which}), not confirmed."
    spread = "" if summary.std is None else f" ± {summary.std:.3f}"
    return (
        f"Winner of {title} ({which}): {data.spec.metric} {summary.mean:.3f}{spread} on validation,"
        f" {summary.n} fresh seeds."
    )


def _own(data: SweepData, values: Mapping[str, Any], stage: str | None) -> RunConfig:
    return applied(data.spec.stages()[stage], data.spec.space, values, stage)


def getattr_path(config: Any, field: str) -> Any:
    """The value of a field by its dotted name."""
    for part in field.split("."):
        config = getattr(config, part)
    return config


def _changed(base: RunConfig, config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Fields that differ and that belong into a preset: not where files are, not how a run is executed."""
    return {
        field: values
        for field, values in differences(base, config).items()
        if field not in PLACES and not may_change_on_resume(field)
    }


def _replaced(source: str, fields: Mapping[str, Any], indent: int) -> str:
    """`replace(config, epochs=6.0, optim=replace(config.optim, lr=0.001))` for dotted names."""
    tree: dict[str, Any] = {}
    for field, value in fields.items():
        *path, last = field.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = _Value(value)
    return _replace_call(source, tree, indent)


@dataclass(frozen=True)
class _Value:
    value: Any


def _replace_call(source: str, tree: Mapping[str, Any], indent: int) -> str:
    """Over several lines where one is too long. indent: of the line that it begins in, in spaces."""
    parts = [source]
    for name, one in tree.items():
        inner = f"{source}.{name}"
        value = _literal(one.value) if isinstance(one, _Value) else _replace_call(inner, one, indent + 4)
        parts.append(f"{name}={value}")
    line = f"replace({', '.join(parts)})"
    if len(line) <= WIDTH - indent and "\n" not in line:
        return line
    space = " " * (indent + 4)
    return "replace(\n" + "".join(f"{space}{part},\n" for part in parts) + " " * indent + ")"


def _literal(value: Any) -> str:
    """A plain value as Python, in this project's quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _commands(data: SweepData, values: Mapping[str, Any]) -> list[str]:
    spec, role = data.spec, data.spec.config.name
    shared = Runs(spec, data.folder).shared
    output = f"runs/{data.folder.resolve().name}-winner"
    commands = []
    config = _own(data, values, None)
    if MAE in spec.before:
        start = str(shared[MAE].folder) if MAE in shared else f"{output}/{MAE}/seed-0"
        if spec.pretrains_per_trial:
            commands.append(_command("pretrain", data, _own(data, values, MAE), output, "0"))
        config = replace(config, model=replace(config.model, init=start))
    if JUDGE in shared:
        config = replace(config, evaluate=replace(config.evaluate, judge=str(shared[JUDGE].folder)))
    command = next((name for name, one in TRAINING.items() if one == role), "finetune")
    return [*commands, _command(command, data, config, output, SEEDS)]


def _command(command: str, data: SweepData, config: RunConfig, output: str, seeds: str) -> str:
    """A call of jobs/launch.py that trains this config, the test split measured at its end."""
    base = presets.recipe(data.spec.preset)[TRAINING[command]]
    words = ["python", "jobs/launch.py", command, "--preset", data.spec.preset]
    for field, (_, value) in differences(base, config).items():
        if field not in ("name", "seed", "evaluate.final_split"):
            words += option(field, value)
    return shlex.join([*words, "--output", output, "--seeds", *seeds.split()])


def option(field: str, value: Any) -> list[str]:
    """A field as an option of the command line."""
    name = field.replace("_", "-")
    if isinstance(value, bool):
        section, _, last = name.rpartition(".")
        return [f"--{name}" if value else f"--{section}{'.' if section else ''}no-{last}"]
    if isinstance(value, list | tuple):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", str(value)]


def without_code(data: SweepData) -> str:
    """Why there is no preset to paste; empty where there is one."""
    if data.best is None:
        return "No trial but the baseline was trained whole, so there is no preset to paste."
    if data.spec.scheduler == "pbt":
        return (
            "A population's winner is a schedule: its values changed as it trained, each generation going on from the "
            "one before. No preset can say that; these are its values, oldest first."
        )
    if data.spec.preset not in presets.PRESETS:
        return "The sweep did not write down which preset it started from, so there is no preset to paste."
    return ""
