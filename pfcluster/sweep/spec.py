"""What a sweep is, whole: the runs, the space, how it is searched and confirmed. The same spec gives the same trials on
any executor.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pfcluster.config import ConfigError, RunConfig
from pfcluster.config.io import from_json
from pfcluster.runs.atomic_files import write_atomically
from pfcluster.sweep.space import MAE, Parameter, check

Search = Literal["tpe", "random", "grid", "each"]
"""`each`: the baseline with one value changed at a time."""
Scheduler = Literal["asha", "pbt", "none"]
SPEC = "sweep.json"
LEAST = {"trials": 2, "lag": 1, "reduction": 2, "rungs": 1, "generations": 2, "confirm": 0, "grid_points": 1}
ON_CURVES = ("accuracy", "macro_f1")
AT_END = ("neutral_rate", "neutralised_rate", "neutralised_x_agreement", "identity_cosine", "mse_inside", "mse_outside")
"""Figures of poker faces, known only once a trial has ended."""
METRICS = (*ON_CURVES, *AT_END)
LOWER_IS_BETTER = ("mse_inside", "mse_outside")
WHILE_TRAINING = (
    "optim.",
    "discriminator_optim.",
    "pf_mag.weights.",
    "pf_mag.r1",
    "pf_mag.fake_class_targets",
    "classifier.",
    "augment.",
)
"""Fields that a population may change in mid-training."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A sweep. Frozen with its folder: another spec needs another folder."""

    config: RunConfig
    """The run that is searched, with the baseline's values."""
    before: dict[str, RunConfig]
    """"mae" and "judge" where the run wants them; made once, but for a pre-training that the space changes."""
    space: tuple[Parameter, ...]
    search: Search = "tpe"
    trials: int = 12
    """Configurations, the baseline's among them. With pbt: members of the population."""
    grid_points: int = 3
    """Values of each range in a grid."""
    lag: int = 4
    """TPE proposes trial i from the results of the trials up to i - lag, whatever else has ended by then: so a sweep
    repeats. At least the trials that run at once."""
    scheduler: Scheduler = "asha"
    reduction: int = 3
    """ASHA: the share 1 / reduction goes on at each rung."""
    rungs: int = 2
    """ASHA: rungs before the end."""
    generations: int = 4
    """PBT: how often members are compared, replaced and changed."""
    metric: str = "accuracy"
    """On validation."""
    seed: int = 0
    """Of the search."""
    seeds: tuple[int, ...] = (0,)
    """Every configuration is trained with each."""
    confirm: int = 2
    """Best configurations that are trained again, beside the baseline; 0 leaves the confirmation out."""
    fresh_seeds: tuple[int, ...] = (1000, 1001, 1002)
    """Seeds of that, which the search never saw."""
    preset: str = ""
    """What the configs were made from, for the report: the preset's name ..."""
    overrides: tuple[str, ...] = ()
    """... and the `--section.field value` pairs of the command line, for all runs."""

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")
        if not self.space:
            raise ConfigError("--space: nothing to search; name a space or a field")
        if self.metric not in METRICS:
            raise ConfigError(f"--metric must be one of {', '.join(METRICS)}, got {self.metric!r}")
        if self.metric in AT_END and self.config.objective != "pf_mag":
            raise ConfigError(
                f"--metric {self.metric} is a figure of poker faces, and {self.config.objective} makes none"
            )
        if self.metric in AT_END and self.scheduler != "none":
            raise ConfigError(f"--metric {self.metric} is known at a trial's end only: add --scheduler none")
        if self.config.evaluate.selection_split != "validation":
            raise ConfigError(
                "evaluate.selection_split must be validation in a sweep: what is searched on the test split is lost"
            )
        if self.confirm and (both := set(self.seeds) & set(self.fresh_seeds)):
            raise ConfigError(f"--fresh-seeds: seed {min(both)} is one of --seeds; a confirmation needs seeds unseen")
        if self.confirm and not self.fresh_seeds:
            raise ConfigError("--fresh-seeds: a confirmation needs some; --confirm 0 leaves it out")
        if len(set(self.seeds)) < len(self.seeds) or not self.seeds:
            raise ConfigError("--seeds must be some that differ from each other")
        check(self.space, self.stages())
        if self.scheduler == "pbt":
            self._check_population()

    def _check_population(self) -> None:
        late = [one.name for one in self.space if not one.name.startswith(WHILE_TRAINING)]
        if late:
            raise ConfigError(f"--scheduler pbt changes values in mid-training, and {late[0]} cannot be: take asha")
        if self.search in ("grid", "each"):
            raise ConfigError(f"--scheduler pbt draws its own values: leave --search {self.search} out")
        if self.trials < 4:
            raise ConfigError(f"--trials: a population needs at least 4 members, got {self.trials}")

    def stages(self) -> dict[str | None, RunConfig]:
        """The configs that parameters are fields of, by `Parameter.stage`."""
        return {None: self.config} | ({MAE: self.before[MAE]} if MAE in self.before else {})

    @property
    def own_mae(self) -> bool:
        """Whether every trial makes a pre-training of its own."""
        return any(one.stage == MAE for one in self.space)

    @property
    def sign(self) -> int:
        """+1 where more of the metric is better."""
        return -1 if self.metric in LOWER_IS_BETTER else 1

    def shared(self) -> dict[str, RunConfig]:
        """Runs that all trials start from."""
        return {name: config for name, config in self.before.items() if not (name == MAE and self.own_mae)}


def save(spec: Spec, folder: Path) -> None:
    """Make a folder this sweep's. Raises ConfigError where it is another's, naming the first difference."""
    path = folder / SPEC
    if path.exists():
        known = _plain(load(folder))
        mine = _plain(spec)
        for name in (one for one in mine if one != "overrides"):  # the configs say it, too
            if known[name] != mine[name]:
                old, new = _differing(known[name], mine[name], name)
                raise ConfigError(
                    f"{folder} holds another sweep: {old} there, {new} here; take another --output, or remove that one"
                )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(_plain(spec), indent=1) + "\n")


def load(folder: Path) -> Spec:
    """The sweep of a folder. Raises ConfigError."""
    path = folder / SPEC
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{folder} holds no sweep: cannot read {path.name} ({error.strerror})") from error
    config = from_json(json.dumps(values.pop("config")), str(path))
    before = {name: from_json(json.dumps(one), str(path)) for name, one in values.pop("before").items()}
    space = tuple(Parameter(**{**one, "choices": tuple(one["choices"])}) for one in values.pop("space"))
    for name in ("seeds", "fresh_seeds", "overrides"):
        values[name] = tuple(values.get(name, ()))
    return Spec(config=config, before=before, space=space, **values)


def _plain(spec: Spec) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(spec)))
    return values


def _differing(old: Any, new: Any, name: str) -> tuple[str, str]:
    """The first part in which two values differ, named."""
    if isinstance(old, Mapping) and isinstance(new, Mapping) and set(old) == set(new):
        for key in old:
            if old[key] != new[key]:
                return _differing(old[key], new[key], f"{name}.{key}")
    return f"{name} is {_short(old)}", _short(new)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else text[:77] + "..."
