"""The complete description of a sweep: the runs, the search space, how it is searched and confirmed. The same spec
gives the same trials on any executor.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pfcluster.config import ConfigError, RunConfig, presets
from pfcluster.config.json_files import JsonFileError, read_object, record_of
from pfcluster.config.starts import MAE_VIT
from pfcluster.sweep.space import MAE, Parameter, applied, baseline, check
from pfcluster.system.atomic_files import write_atomically

Search = Literal["tpe", "random", "grid", "one-at-a-time"]
"""`one-at-a-time`: the baseline with one value changed in each trial."""
Scheduler = Literal["asha", "pbt", "none"]
SPEC = "sweep.json"
MINIMUM = {"trials": 2, "lag": 1, "reduction": 2, "rungs": 1, "generations": 2, "confirm": 0, "grid_points": 1}
CURVE_METRICS = ("accuracy", "macro_f1")
"""Metrics that are measured at every evaluation."""
FINAL_METRICS = (
    "neutral_rate",
    "neutralised_rate",
    "neutralised_x_agreement",
    "identity_cosine",
    "mse_inside",
    "mse_outside",
)
"""Metrics of poker faces, measured only at the end of a trial."""
METRICS = (*CURVE_METRICS, *FINAL_METRICS)
LOWER_IS_BETTER = ("mse_inside", "mse_outside")
CHANGEABLE = (
    "optim.",
    "discriminator_optim.",
    "pf_mag.weights.",
    "pf_mag.r1",
    "pf_mag.fake_class_targets",
    "classifier.",
    "augment.",
)
"""Fields that population-based training may change between generations."""
DRAWS = 100
"""Draws of a trial's values, of which one must be a valid config."""
SWITCHES = ("optim.ema", "pf_mag.weights.confusion")
"""Fields whose value 0 leaves tensors out of the checkpoint that other values need."""
BALANCED_SWITCHES = ("pf_mag.weights.anchor", "pf_mag.weights.swap")
"""With automatic loss balancing, fields whose value 0 leaves a term's magnitude out of the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A sweep. It cannot change once its folder exists: another spec needs another folder."""

    config: RunConfig
    """The run that is searched, with the baseline's values."""
    before: dict[str, RunConfig]
    """"mae" and "judge" where the run needs them; each is trained once, except for a pre-training that the space
    changes. "mae-vit" where PF-ViT starts from it; trained once for each seed.
    """
    space: tuple[Parameter, ...]
    search: Search = "tpe"
    trials: int = 12
    """Configurations, including the baseline. With pbt: members of the population."""
    grid_points: int = 3
    """Values of each range in a grid."""
    lag: int = 4
    """TPE proposes trial i from the results of the trials up to i - lag, whatever else has ended by then, which makes
    a sweep reproducible. At least the number of trials that run in parallel."""
    scheduler: Scheduler = "asha"
    reduction: int = 3
    """ASHA: a fraction of 1 / reduction continues at each rung."""
    rungs: int = 2
    """ASHA: rungs before the end."""
    generations: int = 4
    """PBT: number of generations; members are compared, replaced and perturbed between them."""
    metric: str = "accuracy"
    """On the validation split."""
    seed: int = 0
    """Seed of the search."""
    seeds: tuple[int, ...] = (0,)
    """Every configuration is trained with each of these seeds."""
    confirm: int = 2
    """Number of best configurations that are trained again together with the baseline; 0 skips the confirmation."""
    fresh_seeds: tuple[int, ...] = (1000, 1001, 1002)
    """Seeds of the confirmation, which the search did not use."""
    preset: str = ""
    """What the configs were made from, for the report: the preset's name ..."""
    overrides: tuple[str, ...] = ()
    """... and the `--section.field value` pairs of the command line, for all runs."""

    def __post_init__(self) -> None:
        for name, minimum in MINIMUM.items():
            if getattr(self, name) < minimum:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least {minimum}, got {getattr(self, name)}")
        if not self.space:
            raise ConfigError("--space: nothing to search; name a space or a field")
        self._check_metric()
        if self.config.evaluate.selection_split != "validation":
            raise ConfigError(
                "evaluate.selection_split must be validation in a sweep: the test split must not influence the search,"
                f" got {self.config.evaluate.selection_split!r}"
            )
        self._check_seeds()
        check(self.space, self.stages())
        if self.scheduler == "pbt":
            self._check_population()

    def _check_metric(self) -> None:
        if self.metric not in METRICS:
            raise ConfigError(f"--metric must be one of {', '.join(METRICS)}, got {self.metric!r}")
        if self.metric not in FINAL_METRICS:
            return
        if self.config.objective != "pf_mag":
            raise ConfigError(
                f"--metric {self.metric} is measured on poker faces, and {self.config.objective} generates none"
            )
        if self.scheduler != "none":
            raise ConfigError(f"--metric {self.metric} is known only at the end of a trial: add --scheduler none")

    def _check_seeds(self) -> None:
        if self.confirm and (both := set(self.seeds) & set(self.fresh_seeds)):
            raise ConfigError(f"--fresh-seeds: seed {min(both)} is one of --seeds; a confirmation needs unused seeds")
        if self.confirm and not self.fresh_seeds:
            raise ConfigError("--fresh-seeds: a confirmation needs at least one; --confirm 0 skips it")
        if not self.seeds:
            raise ConfigError("--seeds: a search needs at least one")
        for option, seeds in (("--seeds", self.seeds), ("--fresh-seeds", self.fresh_seeds)):
            if len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**31 for seed in seeds):
                given = " ".join(map(str, seeds))
                raise ConfigError(f"{option} must differ from each other and lie in 0..2^31-1, got {given}")

    def _check_population(self) -> None:
        fixed = [one.name for one in self.space if not one.name.startswith(CHANGEABLE)]
        if fixed:
            raise ConfigError(
                f"--scheduler pbt changes values during training, and {fixed[0]} cannot be changed: use asha"
            )
        own = baseline(self.space, self.stages())
        switches = (*SWITCHES, *(BALANCED_SWITCHES if self.config.pf_mag.loss_balancing == "auto" else ()))
        for one in self.space:
            if one.name in switches and len({value > 0 for value in (*one.grid(2), own[one.name])}) > 1:
                raise ConfigError(
                    f"--scheduler pbt: {one.name} is 0 (off) in some members of {one.text()} and the config's"
                    f" {own[one.name]:g}, and a checkpoint of one does not fit the other: search it with asha, or on in"
                    " all of them"
                )
        if self.search in ("grid", "one-at-a-time"):
            raise ConfigError(f"--scheduler pbt draws its own values: remove --search {self.search}")
        if self.trials < 4:
            raise ConfigError(f"--trials: a population needs at least 4 members, got {self.trials}")

    def require_valid(self, values: Mapping[str, Any]) -> None:
        """Raises ConfigError if the values of a trial together are not a valid config."""
        for stage, config in self.stages().items():
            applied(config, self.space, values, stage)

    def valid_draw(self, draw: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
        """The first of `draw(0)`, `draw(1)`, ... that is a valid config: the ends of all ranges are, but not every
        value between them, nor every combination. Raises ConfigError after `DRAWS`.
        """
        reason = ""
        for number in range(DRAWS):
            values = draw(number)
            try:
                self.require_valid(values)
            except ConfigError as error:
                reason = str(error)
                continue
            return values
        raise ConfigError(
            f"--space: {DRAWS} draws in a row were not valid configs, the last one because of {reason}; list the values"
            " that are valid, as choice:..."
        )

    def stages(self) -> dict[str | None, RunConfig]:
        """The configs that hold the parameters' fields, by `Parameter.stage`."""
        return {None: self.config} | ({MAE: self.before[MAE]} if MAE in self.before else {})

    @property
    def pretrains_per_trial(self) -> bool:
        """Whether every trial has a pre-training of its own, because the space changes it."""
        return any(one.stage == MAE for one in self.space)

    @property
    def sign(self) -> int:
        """+1 if a higher metric is better, else -1."""
        return -1 if self.metric in LOWER_IS_BETTER else 1

    @property
    def uses_asha(self) -> bool:
        """Whether ASHA stops trials: it needs a metric that is measured during training."""
        return self.scheduler == "asha" and self.metric not in FINAL_METRICS

    def shared(self) -> dict[str, RunConfig]:
        """Runs that all trials start from."""
        own = {MAE_VIT, MAE} if self.pretrains_per_trial else {MAE_VIT}
        return {name: config for name, config in self.before.items() if name not in own}


def save(spec: Spec, folder: Path) -> None:
    """Write the spec into its folder. Raises ConfigError as `require_same`."""
    require_same(spec, folder)
    if not (folder / SPEC).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / SPEC, json.dumps(_as_json(spec), indent=1) + "\n")


def require_same(spec: Spec, folder: Path) -> None:
    """Raise ConfigError if the folder holds another sweep, naming the first difference."""
    if not (folder / SPEC).exists():
        return
    saved, new = _as_json(load(folder)), _as_json(spec)
    for name in (one for one in new if one != "overrides"):  # already contained in the configs
        if saved[name] != new[name]:
            there, here = _first_difference(saved[name], new[name], name)
            raise ConfigError(
                f"{folder} holds another sweep: {there} there, {here} here; use another --output, or remove that folder"
            )


def load(folder: Path) -> Spec:
    """The sweep of a folder. Raises ConfigError if there is none, JsonFileError if its file is damaged."""
    path = folder / SPEC
    try:
        values = read_object(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} holds no sweep: it has no {path.name}") from error
    spec: Spec = record_of(Spec, values, str(path))
    runs = presets.recipe(spec.preset) if spec.preset in presets.PRESETS else {}
    unknown = [name for name in (spec.config.name, *spec.before) if spec.preset and name not in runs]
    if unknown:
        raise JsonFileError(f"{path}: the preset {spec.preset!r} has no run {unknown[0]!r}")
    return spec


def _as_json(spec: Spec) -> dict[str, Any]:
    """The spec with JSON types only."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(spec)))
    return values


def _first_difference(old: Any, new: Any, name: str) -> tuple[str, str]:
    """The first leaf in which two values differ: "NAME is OLD", and the new value."""
    if isinstance(old, Mapping) and isinstance(new, Mapping) and set(old) == set(new):
        for key in old:
            if old[key] != new[key]:
                return _first_difference(old[key], new[key], f"{name}.{key}")
    return f"{name} is {_shortened(old)}", _shortened(new)


def _shortened(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else text[:77] + "..."
