"""Errors of an invalid config, and the checks that raise them."""

from __future__ import annotations


class ConfigError(ValueError):
    """An invalid configuration. The message names the field, its value and the values that are allowed."""


def require(condition: bool, name: str, value: object, requirement: str) -> None:
    """Raises ConfigError "<name> must <requirement>, got <value>" unless the condition holds."""
    if not condition:
        raise ConfigError(f"{name} must {requirement}, got {value!r}")


def require_min(minimum: int, section: str, config: object, *fields: str) -> None:
    """Require that each of these numeric fields of a section is at least `minimum`."""
    for field in fields:
        value = getattr(config, field)
        require(value >= minimum, f"{section}.{field}", value, f"be at least {minimum}")


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
