"""Search spaces: fields of the config, each with a distribution, from `spaces.toml` by name or from the command line.

    optim.lr=loguniform:1e-4,1e-2        pf_mag.r1=choice:0,0.1,1        mae:optim.lr=loguniform:1e-4,1e-2

`mae:` marks a field of the pre-training, which every trial then runs with its own value; fields of the section `mae`
always belong to it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from pfcluster.config import ConfigError, RunConfig
from pfcluster.config.io import with_values

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Kind = Literal["uniform", "loguniform", "int", "choice"]
KINDS = ("uniform", "loguniform", "int", "choice")
SPACES = Path(__file__).with_name("spaces.toml")
MAE = "mae"
DIGITS = 4
"""Significant digits of a drawn number."""


@dataclass(frozen=True)
class Parameter:
    """One field and the values that it may take."""

    name: str
    """Dotted name of the field; prefixed by `mae:` for a field of the pre-training."""
    kind: Kind
    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()

    @property
    def stage(self) -> str | None:
        """ "mae" for a field of the pre-training, None for a field of the run that is searched."""
        return MAE if self.name.startswith((f"{MAE}:", f"{MAE}.")) else None

    @property
    def field(self) -> str:
        """Dotted name of the field in its config."""
        return self.name.removeprefix(f"{MAE}:")

    def text(self) -> str:
        """The distribution as written on the command line."""
        if self.kind == "choice":
            return "choice:" + ",".join(_shown(choice) for choice in self.choices)
        low, high = (int(self.low), int(self.high)) if self.kind == "int" else (self.low, self.high)
        return f"{self.kind}:{low:g},{high:g}"

    def draw(self, random: Random) -> Any:
        """Draw a value."""
        if self.kind == "choice":
            return random.choice(self.choices)
        if self.kind == "int":
            return random.randint(int(self.low), int(self.high))
        if self.kind == "uniform":
            return self.rounded(random.uniform(self.low, self.high))
        return self.rounded(math.exp(random.uniform(math.log(self.low), math.log(self.high))))

    def rounded(self, value: Any) -> Any:
        """The value with `DIGITS` significant digits, inside the bounds."""
        if self.kind in ("uniform", "loguniform"):
            return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)
        return value

    def holds(self, value: Any) -> bool:
        """Whether a value lies in the space; the baseline's need not."""
        if self.kind == "choice":
            return value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high

    def grid(self, points: int) -> list[Any]:
        """`points` evenly spaced values including both ends; for choices all of them."""
        if self.kind == "choice":
            return list(self.choices)
        if points == 1:
            return [self.at_fraction(0.5)]
        return list(dict.fromkeys(self.at_fraction(number / (points - 1)) for number in range(points)))

    def at_fraction(self, fraction: float) -> Any:
        """The value at a fraction of the range, 0 being the low and 1 the high end, on the parameter's own scale."""
        if self.kind == "loguniform":
            return self.rounded(self.low * (self.high / self.low) ** fraction)
        value = self.low + (self.high - self.low) * fraction
        return round(value) if self.kind == "int" else self.rounded(value)

    def fraction_of(self, value: Any) -> float:
        """The inverse of `at_fraction`; choices are spread evenly over 0..1. NaN for a value without a position."""
        if self.kind == "choice":
            return self.choices.index(value) / max(1, len(self.choices) - 1) if value in self.choices else math.nan
        if self.kind == "loguniform":
            return math.log(value / self.low) / math.log(self.high / self.low) if value > 0 else math.nan
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class NamedSpace:
    """A space of a TOML file."""

    name: str
    about: str
    """What it searches, as a phrase."""
    role: str
    """Which run of a preset is searched."""
    parameters: tuple[Parameter, ...]


def parse(text: str) -> Parameter:
    """Parse `FIELD=KIND:VALUES`. Raises ConfigError that shows the expected form."""
    name, equals, words = text.partition("=")
    kind, colon, values = words.partition(":")
    name = name.strip().replace("-", "_").removeprefix("__")
    if not (name and equals and colon and values):
        raise ConfigError(
            f"--space {text}: expected FIELD=KIND:VALUES, such as optim.lr=loguniform:1e-4,1e-2, or the name of a space"
        )
    return _parameter(name, kind.strip(), values, f"--space {text}")


def _parameter(name: str, kind: str, values: str, source: str) -> Parameter:
    if kind == "choice":
        choices = tuple(dict.fromkeys(_value(word.strip()) for word in values.split(",")))
        if len(choices) < 2:
            raise ConfigError(f"{source}: choice needs at least two values, got {values!r}")
        return Parameter(name, "choice", choices=choices)
    if kind not in KINDS:
        raise ConfigError(f"{source}: the distribution must be one of {', '.join(KINDS)}, got {kind!r}")
    try:
        low, high = (float(word) for word in values.split(","))
    except ValueError as error:
        raise ConfigError(
            f"{source}: {kind} needs a low and a high end, such as {kind}:1,10, got {values!r}"
        ) from error
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{source}: the low end must be below the high one, got {values!r}")
    if kind == "loguniform" and low <= 0:
        raise ConfigError(f"{source}: loguniform needs positive ends, got {values!r}")
    if kind == "int" and not (low.is_integer() and high.is_integer()):
        raise ConfigError(f"{source}: int needs whole numbers as ends, got {values!r}")
    return Parameter(name, kind, low, high)  # type: ignore[arg-type]


def _value(word: str) -> Any:
    constants: dict[str, Any] = {"true": True, "false": False, "none": None}
    if word.lower() in constants:
        return constants[word.lower()]
    for convert in (int, float):
        try:
            return convert(word)
        except ValueError:
            continue
    return word


def _shown(choice: Any) -> str:
    return str(choice).lower() if choice is None or isinstance(choice, bool) else str(choice)


def named_spaces(path: Path = SPACES) -> dict[str, NamedSpace]:
    """The spaces of a TOML file. Raises ConfigError that names the space and the entry at fault."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the spaces {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    spaces = {}
    for name, values in content.items():
        wrong = {"about", "role", "space"} ^ set(values) if isinstance(values, Mapping) else {"space"}
        if wrong:
            raise ConfigError(f"{path}: [{name}] needs about, role and space, and nothing else ({sorted(wrong)[0]})")
        parameters = tuple(
            _parameter(field, words.partition(":")[0], words.partition(":")[2], f"{path}: {name}.{field}")
            for field, words in values["space"].items()
        )
        spaces[name] = NamedSpace(name, values["about"], values["role"], parameters)
    return spaces


def check(parameters: Sequence[Parameter], configs: Mapping[str | None, RunConfig]) -> None:
    """Build the config at both ends of every range and with every choice. Raises ConfigError for the first invalid
    one.
    """
    for parameter in parameters:
        source = f"--space {parameter.name}={parameter.text()}"
        config = configs.get(parameter.stage)
        if config is None:
            raise ConfigError(f"{source}: the searched run has no pre-training in this sweep")
        for value in parameter.grid(2):
            with_values(config, {parameter.field: value}, source)
    duplicates = [one.name for one in parameters if sum(one.name == other.name for other in parameters) > 1]
    if duplicates:
        raise ConfigError(f"--space names {duplicates[0]} twice; name it once")


def applied(
    config: RunConfig, parameters: Sequence[Parameter], values: Mapping[str, Any], stage: str | None
) -> RunConfig:
    """The config with those of a trial's values that belong to `stage`."""
    fields = {one.field: values[one.name] for one in parameters if one.stage == stage and one.name in values}
    return with_values(config, fields, "a trial")


def baseline(parameters: Sequence[Parameter], configs: Mapping[str | None, RunConfig]) -> dict[str, Any]:
    """The configs' own values of the parameters; tuples of names joined by "+", as in a choice."""
    values = {}
    for parameter in parameters:
        value: Any = configs[parameter.stage]
        for part in parameter.field.split("."):
            value = getattr(value, part)
        values[parameter.name] = ("+".join(map(str, value)) or None) if isinstance(value, tuple) else value
    return values
