"""Errors of an invalid config, and the checks that raise them."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from math import isfinite

LARGEST = 1e12
"""Largest number of epochs and seconds, whose products with counts are converted to integers."""


class ConfigError(ValueError):
    """An invalid configuration. The message names the field, its value and the values that are allowed."""


def require(condition: bool, name: str, value: object, requirement: str) -> None:
    """Raises ConfigError "<name> must <requirement>, got <value>" unless the condition holds."""
    if not condition:
        raise ConfigError(f"{name} must {requirement}, got {value!r}")


def is_folder_name(name: str) -> bool:
    """Whether a name can be that of a folder, which is not hidden: letters, digits, - _ . only."""
    return bool(name) and name[0] != "." and all(letter.isalnum() or letter in "-_." for letter in name)


def require_finite(config: object, section: str = "") -> None:
    """Require that all floats of a dataclass are finite, also in tuples and in sections, whose name is `section`."""
    assert is_dataclass(config)
    for field in fields(config):
        name, value = f"{section}.{field.name}".lstrip("."), getattr(config, field.name)
        if is_dataclass(value):
            require_finite(value, name)
        for number in value if isinstance(value, tuple) else (value,):
            require(not isinstance(number, float) or isfinite(number), name, value, "be finite")


def require_min(minimum: float, section: str, config: object, *fields: str) -> None:
    """Require that each of these numeric fields of a section is at least `minimum`."""
    for field in fields:
        value = getattr(config, field)
        require(value >= minimum, f"{section}.{field}", value, f"be at least {minimum}")


def require_not_huge(section: str, config: object, *fields: str) -> None:
    """Require that each of these float fields of a section is finite and at most LARGEST."""
    for field in fields:
        value = getattr(config, field)
        require(value <= LARGEST, f"{section}.{field}".lstrip("."), value, f"be finite, at most {LARGEST:g}")


def require_positive(section: str, config: object, *fields: str) -> None:
    """Require that each of these numeric fields of a section is greater than 0."""
    for field in fields:
        value = getattr(config, field)
        require(value > 0, f"{section}.{field}", value, "be positive")


def require_fraction(section: str, config: object, *fields: str, below_one: bool = False) -> None:
    """Require that each of these fields lies in [0, 1], or in [0, 1) with `below_one`."""
    for field in fields:
        value = getattr(config, field)
        upper = value < 1 if below_one else value <= 1
        require(value >= 0 and upper, f"{section}.{field}", value, "lie in [0, 1)" if below_one else "lie in [0, 1]")
