"""Damages JSON files as disks, editors and other versions do, and at random places."""

from __future__ import annotations

import json
from collections.abc import Iterator
from random import Random
from typing import Any

WRONG_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 3, 10**30, -0.5, float("nan"), float("inf"), "", "x", "../x", "3",
    [], {}, [[]], [None], {"a": 1}, {"x": {"y": None}}, ["a", 1],
)  # fmt: skip
BROKEN_TEXTS = (
    b"", b" \n", b"null", b"[]", b"{}", b"3", b'"x"', b"\xff\xfe\x00{", b"{" * 100_000, b"[" * 100_000, b"\0" * 64,
    b"9" * 5000, b'{"a": 1e999}', b"NaN", b"{'a': 1}", b"<html>", b"\xef\xbb\xbf{}",
)  # fmt: skip


def damage(data: bytes, random: Random) -> bytes:
    """The content of a JSON file (or of JSON lines), damaged in one place."""
    kind = random.random()
    if kind < 0.15:
        return random.choice(BROKEN_TEXTS)
    if kind < 0.25:
        return data[: random.randrange(len(data))]
    if kind < 0.35:
        place = random.randrange(len(data))
        return data[:place] + bytes([random.randrange(256)]) + data[place + 1 :]
    lines = data.splitlines()
    if data.endswith(b"}\n") and len(lines) > 1 and lines[0].endswith(b"}"):  # JSON lines
        number = random.randrange(len(lines))
        lines[number] = json.dumps(damaged_value(json.loads(lines[number]), random)).encode()
        return b"\n".join(lines) + b"\n"
    return json.dumps(damaged_value(json.loads(data), random)).encode()


def damaged_value(value: Any, random: Random) -> Any:
    """The value with one of its parts replaced, removed, renamed or added."""
    places = list(_places(value))
    if not places:
        return random.choice(WRONG_VALUES)
    container, key = random.choice(places)
    how = random.choice(("replace", "replace", "replace", "remove", "add"))
    if how == "replace":
        container[key] = random.choice(WRONG_VALUES)
    elif how == "remove":
        del container[key]
    elif isinstance(container, dict):
        container[random.choice(("unknown", "", "class"))] = random.choice(WRONG_VALUES)
    else:
        container.insert(key, random.choice(WRONG_VALUES))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """All parts of a value: (container, key or index)."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)
