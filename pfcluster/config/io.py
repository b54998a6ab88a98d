"""Configs as JSON, for launchers, job arrays, sweep trials and run folders. Does not import torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pfcluster.config import ConfigError, RunConfig

T = TypeVar("T")


def to_json(config: RunConfig) -> str:
    """The config as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str, source: str = "config") -> RunConfig:
    """Parse the output of `to_json`. Raises ConfigError that names the unknown field, wrong type or invalid value."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{source} is not JSON: {error}") from error
    return _build(RunConfig, values, "", source)


def load(path: Path) -> RunConfig:
    """Read a config file. Raises ConfigError if the file is missing or invalid."""
    try:
        text = path.read_text()
    except OSError as error:
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
    return _build(RunConfig, tree, "", source)


def _split_list(value: Any) -> Any:
    """A list from "flip+colour"; an empty list from None."""
    if value is None:
        return []
    return value.split("+") if isinstance(value, str) else value


def may_change_on_resume(name: str) -> bool:
    """Whether a field may change when a run resumes: execution, logging and checkpoints, but not precision."""
    changeable = (
        "data.cache_mode",
        "data.workers",
        "data.cache",
        "evaluate.final_split",
        "evaluate.grid_every",
        "pf_mag.grad_norms_every",
    )
    return name in changeable or (name.startswith(("engine.", "checkpoint.")) and name != "engine.precision")


def _build(cls: type[T], values: object, prefix: str, source: str) -> T:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{source}: {prefix.rstrip('.') or 'the config'} must be an object, got {values!r}")
    hints = get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"{source}: unknown field {prefix}{unknown[0]}; the fields here are {', '.join(hints)}")
    converted = {name: _convert(hints[name], value, f"{prefix}{name}", source) for name, value in values.items()}
    return cls(**converted)


def _convert(hint: Any, value: Any, name: str, source: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{name}.", source)  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        if isinstance(value, list | tuple) and parts[-1] is Ellipsis:
            parts = parts[:1] * len(value)
        if isinstance(value, list | tuple) and len(value) == len(parts):
            return tuple(_convert(part, item, name, source) for part, item in zip(parts, value, strict=True))
    elif get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise ConfigError(f"{source}: {name} must be one of {', '.join(map(str, get_args(hint)))}, got {value!r}")
    elif get_origin(hint) in (Union, UnionType):
        if value is None:
            return None
        return _convert(get_args(hint)[0], value, name, source)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{source}: {name} must be {getattr(hint, '__name__', hint)}, got {value!r}")
