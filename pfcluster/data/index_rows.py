"""Decode the JSON index of a shard into columns.

An index as `write_shard` writes it has a fixed layout, one sample per line, and is decoded as an array of bytes: json
would take ten times as long. Any other JSON of the same content is decoded by json.

Legend: n samples of the index, c samples of a chunk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfcluster.data.manifest import are_strings, is_count

UNLABELLED = -1
"""Label of all samples if the folder was built without labels."""
CHUNK_BYTES = 1 << 20
"""Text that is decoded at once, which bounds the memory of temporary arrays."""
OPENING, CLOSING = b"[\n", b"\n]\n"
SEPARATOR = b"},\n"
FIRST, NEXT, LAST = b'{"key": "', b'"},\n{"key": "', b'"}'
"""Text before the first key, between an identity and the next key, and after the last identity."""
BETWEEN = (b'", "offset": ', b', "size": ', b', "label": "', b'", "identity": "')
"""Text between the values of a row."""
QUOTES = 16
"""Quotation marks of a row."""
WORD = 8
"""Bytes that are compared at once."""
MAX_DIGITS = 18
"""Longer numbers may exceed an int64."""
Positions = NDArray[np.int64]
"""Positions in a text: (c,)."""


@dataclass(frozen=True)
class Texts:
    """Strings, one after the other."""

    text: NDArray[np.uint8]
    """UTF-8."""
    ends: NDArray[np.int64]
    """Where each string ends: (n,)."""


@dataclass(frozen=True)
class Rows:
    """The samples of an index."""

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]
    """Indices into the classes, or UNLABELLED."""
    keys: Texts
    identities: Texts


def decode_rows(data: bytes, classes: Sequence[str]) -> Rows:
    """The samples of an index; without classes all labels are UNLABELLED.

    Raises KeyError or TypeError for an invalid row, ValueError or RecursionError if it is not a list in JSON.
    """
    rows = _decode_layout(data, classes)
    return decode_json(data, classes) if rows is None else rows


def decode_json(data: bytes, classes: Sequence[str]) -> Rows:
    """Any JSON; raises as `decode_rows`."""
    rows: list[Mapping[str, Any]] = json.loads(data)
    if not isinstance(rows, list):
        raise ValueError("it is not a list")
    numbers = {name: number for number, name in enumerate(classes)}
    keys = [row["key"] for row in rows]
    identities = [row["identity"] for row in rows]
    labels = [numbers[row["label"]] if numbers else UNLABELLED for row in rows]
    spans = [(row["offset"], row["size"]) for row in rows]
    if not are_strings(*keys, *identities):
        raise TypeError("keys and identities must be strings")
    if not all(is_count(value) for span in spans for value in span):
        raise TypeError("offsets and sizes must be counts")
    offsets, sizes = np.array(spans, np.int64).reshape(-1, 2).T
    return Rows(offsets, sizes, np.array(labels, np.int64), _texts(keys), _texts(identities))


def _texts(strings: Sequence[str]) -> Texts:
    encoded = [string.encode() for string in strings]
    ends = np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)))
    return Texts(np.frombuffer(b"".join(encoded), np.uint8), ends)


def _decode_layout(data: bytes, classes: Sequence[str]) -> Rows | None:
    """An index in the layout of `write_shard`; None for any other."""
    if not (data.startswith(OPENING) and data.endswith(b"}" + CLOSING)) or b"\\" in data:
        return None
    try:
        data.decode()
    except UnicodeDecodeError:
        return None
    parts, start, end = [], len(OPENING), len(data) - len(CLOSING)
    while start < end:
        stop = end if end - start <= CHUNK_BYTES else data.rfind(SEPARATOR, start, start + CHUNK_BYTES) + 1
        part = _decode_chunk(np.frombuffer(data, np.uint8)[start:stop], classes) if stop > start else None
        if part is None or (stop < end and data[stop - 1 : stop + 2] != SEPARATOR):
            return None
        parts.append(part)
        start = stop + 2
    return _joined(parts)


def _joined(parts: Sequence[Rows]) -> Rows:
    def joined(texts: Sequence[Texts]) -> Texts:
        before = np.cumsum([0, *(len(one.text) for one in texts)])
        ends = [one.ends + start for one, start in zip(texts, before, strict=False)]
        return Texts(np.concatenate([one.text for one in texts]), np.concatenate(ends))

    return Rows(
        np.concatenate([part.offsets for part in parts]),
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.labels for part in parts]),
        joined([part.keys for part in parts]),
        joined([part.identities for part in parts]),
    )


def _decode_chunk(text: NDArray[np.uint8], classes: Sequence[str]) -> Rows | None:
    """Whole rows, from the first's brace to the last's; None if any differs from the layout. text: UTF-8."""
    positions = np.flatnonzero(text == ord('"'))
    if len(positions) == 0 or len(positions) % QUOTES:
        return None
    quotes = positions.reshape(-1, QUOTES)
    if np.count_nonzero(text < ord(" ")) != len(quotes) - 1:  # nothing but the line ends: JSON allows none in strings
        return None
    begins = (quotes[:, 2] + 1, quotes[:, 5] + 3, quotes[:, 7] + 3, quotes[:, 10] + 1, quotes[:, 14] + 1)
    ends = (quotes[:, 3], quotes[:, 6] - 2, quotes[:, 8] - 2, quotes[:, 11], quotes[:, 15])
    if not _is_layout(text, begins, ends):
        return None
    offsets, sizes = (_numbers(text, begins[value], ends[value]) for value in (1, 2))
    labels = _labels(text, begins[3], ends[3], classes)
    if offsets is None or sizes is None or labels is None:
        return None
    return Rows(offsets, sizes, labels, _strings(text, begins[0], ends[0]), _strings(text, begins[4], ends[4]))


def _is_layout(text: NDArray[np.uint8], begins: Sequence[Positions], ends: Sequence[Positions]) -> bool:
    """Whether the text between the values is that of the layout. begins, ends: of the five values, (c,) each."""
    if not (text[: len(FIRST)].tobytes() == FIRST and begins[0][0] == len(FIRST)):
        return False
    if len(text) != ends[-1][-1] + len(LAST) or text[ends[-1][-1] :].tobytes() != LAST:
        return False
    between = [*zip(BETWEEN, ends[:-1], begins[1:], strict=True), (NEXT, ends[-1][:-1], begins[0][1:])]
    return all(
        (begin - end == len(constant)).all() and _equals(text, end, constant).all() for constant, end, begin in between
    )


def _equals(text: NDArray[np.uint8], begins: Positions, constant: bytes) -> NDArray[np.bool_]:
    """Whether the text at each position is `constant`: (c,). No position is too close to the end."""
    size = len(constant)
    if size < WORD:
        return np.asarray(_gathered(text, begins, size).view(f"S{size}") == constant)
    equal = np.ones(len(begins), np.bool_)
    for start in (*range(0, size - WORD, WORD), size - WORD):  # the last word may overlap the one before
        equal &= _words(text, begins + start) == np.frombuffer(constant, np.uint64, 1, start)[0]
    return equal


def _words(text: NDArray[np.uint8], begins: Positions) -> NDArray[np.uint64]:
    """The eight bytes from each position as a number: (c,). No position is too close to the end."""
    words: NDArray[np.uint64] = np.ndarray(len(text) - WORD + 1, np.uint64, text, strides=1)
    return words[begins]


def _gathered(text: NDArray[np.uint8], begins: Positions, width: int) -> NDArray[np.void]:
    """The `width` bytes from each position, as one item: (c,). No position is too close to the end."""
    windows: NDArray[np.void] = np.ndarray(len(text) - width + 1, f"V{width}", text, strides=1)
    return windows[begins]


def _numbers(text: NDArray[np.uint8], begins: Positions, ends: Positions) -> NDArray[np.int64] | None:
    """Numbers in decimal digits: (c,); None if one has other characters, leading zeros or too many digits."""
    lengths = ends - begins
    width = int(lengths.max())
    if lengths.min() < 1 or width > MAX_DIGITS or ((text[begins] == ord("0")) & (lengths > 1)).any():
        return None
    digits = _gathered(text, ends - width, width).view(np.uint8).reshape(-1, width) - ord("0")  # wraps below "0"
    digits[np.arange(width) < (width - lengths)[:, None]] = 0
    if digits.max() > 9:
        return None
    numbers = np.zeros(len(begins), np.int64)
    for place in range(width):
        numbers = 10 * numbers + digits[:, place]
    return numbers


def _labels(
    text: NDArray[np.uint8], begins: Positions, ends: Positions, classes: Sequence[str]
) -> NDArray[np.int64] | None:
    """Indices of the labels in `classes`: (c,); None if one is not among them."""
    labels = np.full(len(begins), UNLABELLED, np.int64)
    if not classes:
        return labels
    for number, name in enumerate(classes):
        encoded = name.encode()
        candidates = np.flatnonzero(ends - begins == len(encoded))
        labels[candidates[_equals(text, begins[candidates], encoded)] if encoded else candidates] = number
    return None if (labels == UNLABELLED).any() else labels


def _strings(text: NDArray[np.uint8], begins: Positions, ends: Positions) -> Texts:
    """Copies of the strings."""
    lengths = ends - begins
    stops = np.cumsum(lengths)
    width = int(lengths[0])
    if width and (lengths == width).all():
        return Texts(_gathered(text, begins, width).view(np.uint8), stops)
    return Texts(text[np.arange(stops[-1]) + np.repeat(begins - (stops - lengths), lengths)], stops)
