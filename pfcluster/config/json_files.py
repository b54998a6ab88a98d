"""JSON files, read and checked: whatever is wrong with one, the error names the file, the field and the reason.

A record is a dataclass that was written as a JSON object; its fields' type hints are the schema.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pfcluster.system.os_errors import is_transient, retry_transient

T = TypeVar("T")


class JsonFileError(ValueError):
    """A JSON file that cannot be read, or whose content is not what it should be: names the file and the reason."""


def parse_json(text: str | bytes, source: str) -> Any:
    """The value of a JSON text. Raises JsonFileError that names `source`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise JsonFileError(f"{source} is not JSON: {reason}") from error


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises FileNotFoundError, OSError if the storage fails, and JsonFileError if the file
    cannot be read for another reason or is not JSON.
    """
    try:
        data = retry_transient(path.read_bytes)
    except FileNotFoundError:
        raise
    except OSError as error:
        if is_transient(error):
            raise
        raise JsonFileError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_json(data, str(path))


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises as `read_json`."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise JsonFileError(f"{path} must hold an object, got {_shown(values)}")
    return values


def try_read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object; None if the file is missing or damaged. Raises OSError if the storage fails."""
    try:
        return read_object(path)
    except (FileNotFoundError, JsonFileError):
        return None


def read_record(kind: type[T], path: Path) -> T:
    """A record. Raises as `read_json`, and JsonFileError for a missing or unknown field or a value of another type."""
    return record_of(kind, read_json(path), str(path))


def try_read_record(kind: type[T], path: Path) -> T | None:
    """A record; None if the file is missing or damaged. Raises OSError if the storage fails."""
    try:
        return read_record(kind, path)
    except (FileNotFoundError, JsonFileError):
        return None


def record_of(kind: type[T], values: object, source: str) -> T:
    """A record from a JSON value. Raises JsonFileError that names `source` and the field."""
    record: T = convert(kind, values, source, "")
    return record


def convert(hint: Any, value: Any, source: str, field: str = "") -> Any:
    """A JSON value as the type of a hint: dataclasses, tuples, lists, mappings, literals, unions of these and None, and
    the types of JSON. Raises JsonFileError that names `source` and `field`.
    """
    origin = get_origin(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _dataclass(hint, value, source, field)
    if origin in (Union, UnionType):
        return _union(hint, value, source, field)
    if origin is tuple and isinstance(value, list | tuple):
        parts = get_args(hint)
        parts = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        if len(parts) == len(value):
            items = enumerate(zip(parts, value, strict=True))
            return tuple(convert(part, item, source, f"{field}[{number}]") for number, (part, item) in items)
    elif origin is list and isinstance(value, list):
        (part,) = get_args(hint)
        return [convert(part, item, source, f"{field}[{number}]") for number, item in enumerate(value)]
    elif isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, dict):
        part = get_args(hint)[1]
        return {name: convert(part, item, source, f"{field}.{name}".lstrip(".")) for name, item in value.items()}
    elif origin is Literal:
        if any(value == one and type(value) is type(one) for one in get_args(hint)):
            return value
        raise JsonFileError(
            f"{source}: {field or 'the value'} must be one of {', '.join(map(str, get_args(hint)))}, got"
            f" {_shown(value)}"
        )
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _float(value, source, field)
    elif hint in (int, str, bool, dict, list, NoneType) and type(value) is hint:
        return value
    raise JsonFileError(f"{source}: {field or 'the value'} must be {_name(hint)}, got {_shown(value)}")


def _dataclass(kind: Any, value: Any, source: str, field: str) -> Any:
    if not isinstance(value, dict):
        raise JsonFileError(f"{source}: {field or 'the value'} must be an object, got {_shown(value)}")
    prefix, hints = f"{field}." if field else "", _hints(kind)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise JsonFileError(f"{source}: unknown field {prefix}{unknown[0]}; the fields are {', '.join(hints)}")
    missing = [
        one.name
        for one in dataclasses.fields(kind)
        if one.name not in value and one.default is one.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise JsonFileError(f"{source}: the field {prefix}{missing[0]} is missing")
    try:
        return kind(**{name: convert(hints[name], item, source, f"{prefix}{name}") for name, item in value.items()})
    except JsonFileError:
        raise
    except ValueError as error:  # of the dataclass's own checks
        raise JsonFileError(f"{source}: {error}") from error


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """The types of a dataclass's fields; getting them takes longer than reading a record."""
    return get_type_hints(kind)


def _union(hint: Any, value: Any, source: str, field: str) -> Any:
    if value is None and NoneType in get_args(hint):
        return None
    error: JsonFileError | None = None
    for part in (part for part in get_args(hint) if part is not NoneType):
        try:
            return convert(part, value, source, field)
        except JsonFileError as raised:
            error = error or raised
    assert error is not None
    raise error


def _float(value: float, source: str, field: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise JsonFileError(f"{source}: {field or 'the value'} is too large for a number") from error


def _name(hint: Any) -> str:
    names = {int: "an integer", float: "a number", str: "a string", bool: "true or false", NoneType: "null"}
    if get_origin(hint) is tuple and Ellipsis not in get_args(hint):
        return f"a list of {len(get_args(hint))} values"
    return names.get(hint) or ("a list" if (get_origin(hint) or hint) in (tuple, list) else "an object")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
