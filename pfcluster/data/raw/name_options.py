"""Options that say what names mean: --classes and --splits."""

from __future__ import annotations

from collections.abc import Sequence

from pfcluster.data.labels import CANONICAL, UnknownEmotionError, canonical_name
from pfcluster.data.raw.base import NOT_A_LABEL, RawDataError
from pfcluster.data.raw.split_names import IGNORE, NO_SPLIT


def parse_names(option: str, pairs: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE of an option, by name. Raises RawDataError."""
    values: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.rpartition("=")
        if not equals or not value.strip():
            raise RawDataError(f"{option} {pair!r} must have the form NAME=VALUE")
        if name.strip() in values:
            raise RawDataError(f"{option} names {name.strip()!r} twice")
        values[name.strip()] = value.strip()
    return values


def split_options(pairs: Sequence[str]) -> dict[str, str]:
    """The values of --splits: meaning by name. Raises RawDataError."""
    if tuple(pairs) == (IGNORE,):
        return {IGNORE: IGNORE}
    values = parse_names("--splits", pairs)
    allowed = ("train", "validation", "test", NO_SPLIT)
    for name, value in values.items():
        if value not in allowed:
            raise RawDataError(f"--splits {name}={value}: use one of {', '.join(allowed)}")
    return values


def class_options(pairs: Sequence[str]) -> dict[str, str]:
    """The values of --classes: canonical emotion, or NOT_A_LABEL, by label as written. Raises RawDataError."""
    values = parse_names("--classes", pairs)
    for name, value in values.items():
        try:
            values[name] = NOT_A_LABEL if value == NOT_A_LABEL else canonical_name(value)
        except UnknownEmotionError as error:
            raise RawDataError(
                f"--classes {name}={value}: use an emotion of {', '.join(CANONICAL)}, or {NOT_A_LABEL}"
            ) from error
    return values
