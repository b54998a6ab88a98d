"""Configs as JSON, for launchers, job arrays, sweep trials and run folders. Does not import torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfcluster.config import ConfigError, RunConfig
from pfcluster.config.json_files import JsonFileError, parse_json, record_of
from pfcluster.system.os_errors import is_transient, retry_transient


def to_json(config: RunConfig) -> str:
    """The config as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str | bytes, source: str = "config") -> RunConfig:
    """Parse the output of `to_json`. Raises ConfigError that names the unknown field, wrong type or invalid value."""
    try:
        values = parse_json(text, source)
    except JsonFileError as error:
        raise ConfigError(str(error)) from error
    return _config_of(values, source)


def load(path: Path) -> RunConfig:
    """Read a config file. Raises ConfigError if the file is missing or invalid, OSError if the storage fails."""
    try:
        text = retry_transient(path.read_bytes)
    except OSError as error:
        if is_transient(error):
            raise
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
    return from_json(text, str(path))


def differences(a: RunConfig, b: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted names of the fields in which two configs differ, with both values."""
    left, right = flatten(dataclasses.asdict(a)), flatten(dataclasses.asdict(b))
    return {name: (left[name], right[name]) for name in left if left[name] != right[name]}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted names: {"model": {"depth": 4}} -> {"model.depth": 4}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def with_values(config: RunConfig, values: Mapping[str, Any], source: str = "config") -> RunConfig:
    """The config with some fields replaced, by their dotted names. Raises ConfigError as `from_json`."""
    tree = json.loads(json.dumps(dataclasses.asdict(config)))
    for name, value in values.items():
        *path, last = name.split(".")
        section = tree
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None
        if not isinstance(section, dict) or last not in section:
            raise ConfigError(f"{source}: no field {name}; `pfcluster finetune --help` lists them all")
        section[last] = _split_list(value) if isinstance(section[last], list) else value
    return _config_of(tree, source)


def _split_list(value: Any) -> Any:
    """A list from "tensorboard+mlflow"; an empty list from None."""
    if value is None:
        return []
    return value.split("+") if isinstance(value, str) else value


def may_change_on_resume(name: str) -> bool:
    """Whether a field may change when a run resumes: execution, logging and checkpoints, but not precision."""
    changeable = (
        "tracker",
        "profile",
        "data.cache_mode",
        "data.workers",
        "data.cache",
        "evaluate.final_split",
        "evaluate.grid_every",
        "pf_mag.grad_norms_every",
    )
    return name in changeable or (name.startswith(("engine.", "checkpoint.")) and name != "engine.precision")


def _config_of(values: object, source: str) -> RunConfig:
    try:
        return record_of(RunConfig, values, source)
    except JsonFileError as error:
        raise ConfigError(str(error)) from error
