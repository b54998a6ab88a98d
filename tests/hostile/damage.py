"""Ways to damage bytes and JSON, as hypothesis strategies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

Damage = Callable[[bytes], bytes]


def says_why(error: Exception, about: str = "") -> None:
    """An error that a person can read: a sentence, about the right thing."""
    assert len(str(error)) > 10
    assert about in str(error)


BYTES = st.binary(min_size=1, max_size=40)
PLACES = st.floats(0, 1, exclude_max=True)
"""A place in a file, as a share of its length."""


@st.composite
def _one_damage(draw: st.DrawFn) -> Damage:
    """A change of a few bytes, an insertion, a cut, or two spans that change places."""
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
    several = draw(st.lists(_one_damage(), min_size=1, max_size=4))

    def damage(data: bytes) -> bytes:
        for one in several:
            data = one(data)
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


def _holders(value: Any) -> Iterator[Any]:
    """Every list and dict within a value that is not empty, itself first."""
    if isinstance(value, list | dict) and value:
        yield value
        for inner in list(value.values() if isinstance(value, dict) else value):
            yield from _holders(inner)


@st.composite
def changed_json(draw: st.DrawFn, value: Any) -> Any:
    """A value of JSON with one to three of its parts replaced, removed, added, doubled or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        holders = list(_holders(value))
        if not holders:
            return draw(VALUES)
        holder = draw(st.sampled_from(holders))
        _change(draw, holder)
    return draw(VALUES) if draw(st.integers(0, 30)) == 0 else value


def _change(draw: st.DrawFn, holder: Any) -> None:
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    key, other = draw(st.sampled_from(keys)), draw(st.sampled_from(keys))
    kind = draw(st.sampled_from(("replace", "nudge", "remove", "add", "copy", "exchange")))
    if kind == "remove":
        del holder[key]
    elif kind == "exchange":
        holder[key], holder[other] = holder[other], holder[key]
    elif kind == "add" and isinstance(holder, dict):
        holder[draw(st.text(max_size=5))] = draw(VALUES)
    elif kind == "add":
        holder.insert(key, copy.deepcopy(holder[other]))
    elif kind == "copy":
        holder[key] = copy.deepcopy(holder[other])
    elif kind == "nudge" and type(holder[key]) is int:
        holder[key] += draw(st.sampled_from((-1, 1, -512, 512, 700, -700)))
    else:
        holder[key] = draw(VALUES)
