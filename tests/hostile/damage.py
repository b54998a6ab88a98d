"""Hypothesis strategies that damage bytes and JSON."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

Damage = Callable[[bytes], bytes]


def assert_explains(error: Exception, about: str = "") -> None:
    """The error message is a sentence, and contains `about`."""
    assert len(str(error)) > 10
    assert about in str(error)


BYTES = st.binary(min_size=1, max_size=40)
PLACES = st.floats(0, 1, exclude_max=True)
"""A position in a file, as a fraction of its length."""


@st.composite
def _one_damage(draw: st.DrawFn) -> Damage:
    """Replace, insert or delete a few bytes, truncate, or swap two spans."""
    kind = draw(st.sampled_from(("change", "flip", "insert", "delete", "cut", "swap", "zeros")))
    place, other, new, bit = draw(PLACES), draw(PLACES), draw(BYTES), draw(st.integers(0, 7))

    def damage(data: bytes) -> bytes:
        at, to, length = int(place * len(data)), int(other * len(data)), len(new)
        if kind == "change":
            return data[:at] + new + data[at + length :]
        if kind == "flip" and data:
            return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
        if kind == "insert":
            return data[:at] + new + data[at:]
        if kind == "delete":
            return data[:at] + data[at + length :]
        if kind == "zeros":
            return data[:at] + bytes(length) + data[at + length :]
        first, second = sorted((at, to))
        if kind == "swap" and first + length <= second:
            parts = (data[:first], data[second : second + length], data[first + length : second])
            return b"".join((*parts, data[first : first + length], data[second + length :]))
        return data[:at]

    return damage


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """One to four changes of a file's bytes."""
    changes = draw(st.lists(_one_damage(), min_size=1, max_size=4))

    def damage(data: bytes) -> bytes:
        for change in changes:
            data = change(data)
        return data

    return damage


NUMBERS = st.sampled_from((0, 1, -1, 2, 3, 511, 512, 2**31, 2**63 - 1, 2**63, 2**70, 10**40, -(2**70)))
ODD_NUMBERS = st.sampled_from((0.0, 1.0, 1.5, -0.5, 1e300, float("inf"), float("nan"), True, False))
NAMES = st.sampled_from(
    (
        *("../train-00000.tar", "/etc/passwd", "pipe:touch outside", "..", ".", "", "a/b.tar", "train-00000.tar\n"),
        *("train-00001.tar", "validation-00000.tar", "\0.tar", "-.tar", "x" * 300 + ".tar", "\ud800", "http://x/y.tar"),
        *("happiness", "sadness", "boredom", "Happiness", "f" * 64, "0" * 64, "../../outside"),
    )
)
NESTED = st.integers(1, 60).map(lambda depth: _nested(depth))
VALUES: st.SearchStrategy[Any] = st.one_of(
    *(st.none(), NUMBERS, ODD_NUMBERS, NAMES, NESTED, st.text(max_size=8)),
    *(st.lists(NUMBERS | NAMES, max_size=3), st.dictionaries(NAMES, NUMBERS, max_size=2)),
)


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def _containers(value: Any) -> Iterator[Any]:
    """All non-empty lists and dicts within a value, the value itself first."""
    if isinstance(value, list | dict) and value:
        yield value
        for inner in list(value.values() if isinstance(value, dict) else value):
            yield from _containers(inner)


@st.composite
def changed_json(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one to three parts replaced, removed, added, duplicated or swapped."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        containers = list(_containers(value))
        if not containers:
            return draw(VALUES)
        container = draw(st.sampled_from(containers))
        _change(draw, container)
    return draw(VALUES) if draw(st.integers(0, 30)) == 0 else value


def _change(draw: st.DrawFn, container: Any) -> None:
    keys = list(container) if isinstance(container, dict) else list(range(len(container)))
    key, other = draw(st.sampled_from(keys)), draw(st.sampled_from(keys))
    kind = draw(st.sampled_from(("replace", "nudge", "remove", "add", "copy", "exchange")))
    if kind == "remove":
        del container[key]
    elif kind == "exchange":
        container[key], container[other] = container[other], container[key]
    elif kind == "add" and isinstance(container, dict):
        container[draw(st.text(max_size=5))] = draw(VALUES)
    elif kind == "add":
        container.insert(key, copy.deepcopy(container[other]))
    elif kind == "copy":
        container[key] = copy.deepcopy(container[other])
    elif kind == "nudge" and type(container[key]) is int:
        container[key] += draw(st.sampled_from((-1, 1, -512, 512, 700, -700)))
    else:
        container[key] = draw(VALUES)
