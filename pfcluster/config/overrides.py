"""Files of config overrides, such as a sweep's winner.json: a base preset and values of fields by their dotted names.

    {"preset": "mini", "overrides": {"epochs": 6.0, "pf-vit:pf_mag.weights.adv": 0.05}}

A field holds for every run of the preset; with `RUN:` before it for that run only. Other keys are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfcluster.config import ConfigError, RunConfig, presets
from pfcluster.config.io import with_values
from pfcluster.config.json_files import JsonFileError, read_json
from pfcluster.config.preset_parts import Recipe

FIELDS_OF_COMMANDS = ("seed", "objective")
"""Fields that every command which trains sets itself."""


@dataclass(frozen=True)
class OverridesFile:
    """The content of a file of overrides."""

    path: Path
    preset: str | None
    """Preset that the values were chosen for; None if the file names none."""
    values: Mapping[str, Any]

    def apply(self, recipe: Recipe) -> Recipe:
        """The configs of a preset's runs with the file's values. Raises ConfigError for an unknown run or field, or an
        invalid value.
        """
        prefixes = {name.partition(":")[0] for name in self.values if ":" in name}
        unknown = sorted(prefixes - set(recipe))
        if unknown:
            raise ConfigError(f"{self.path}: no run {unknown[0]!r}; the runs are {', '.join(recipe)}")
        return {run: self._apply_to(config, run) for run, config in recipe.items()}

    def require_values_of(self, run: str, command: str) -> None:
        """Raises ConfigError if the file has values, but none that holds for this run of the preset, which `command`
        trains.
        """
        others = [name for name in self.values if ":" in name and name.partition(":")[0] != run]
        if self.values and len(others) == len(self.values):
            runs = ", ".join(dict.fromkeys(name.partition(":")[0] for name in others))
            first = others[0].partition(":")[2]
            raise ConfigError(
                f"{self.path} has only values of {runs}, and {command} trains the preset's {run}, which they do not"
                f" change: use `pfcluster study`, or pass the values as options, such as --{first.replace('_', '-')}"
                f" {self.values[others[0]]}"
            )

    def _apply_to(self, config: RunConfig, run: str) -> RunConfig:
        common = {name: value for name, value in self.values.items() if ":" not in name}
        prefix = f"{run}:"
        specific = {name.removeprefix(prefix): one for name, one in self.values.items() if name.startswith(prefix)}
        return with_values(config, common | specific, str(self.path))


def read_overrides(path: Path) -> OverridesFile:
    """Read a file of overrides. Raises ConfigError if it is missing or malformed."""
    try:
        content = read_json(path)
    except FileNotFoundError as error:
        raise ConfigError(f"cannot read the overrides {path}: {error.strerror}") from error
    except JsonFileError as error:
        raise ConfigError(str(error)) from error
    if not isinstance(content, dict) or not isinstance(content.get("overrides"), dict):
        raise ConfigError(f'{path} must be a JSON object with the key "overrides"')
    preset = content.get("preset")
    if preset is not None and preset not in presets.PRESETS:
        raise ConfigError(f"{path}: preset must be one of {', '.join(sorted(presets.PRESETS))}, got {preset!r}")
    for name in content["overrides"]:
        if name.rpartition(":")[2] in FIELDS_OF_COMMANDS:
            raise ConfigError(f"{path}: {name} would have no effect, as commands set it themselves; remove it")
    return OverridesFile(path, preset, content["overrides"])
