"""Near-duplicate search: difference hashes of images, all pairs of similar hashes, and correlation of thumbnails.

Legend: n images, h w pixels, p pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

HASH_BITS = 64
MAX_HASH_DISTANCE = 4
"""Pairs of hashes that differ in at most this many bits are candidates. Re-encoded or brightened copies are, but so are
some pairs of different faces in the same pose; therefore the candidates' thumbnails are compared."""
MIN_CORRELATION = 0.93
"""Correlation of thumbnails from which on a pair counts as near-duplicates. Chosen on 2,569 pairs of FER2013: of the
pairs inspected by eye, all above it were duplicates, and half of those between 0.90 and 0.93."""
BAND_BITS = (13, 13, 13, 13, 12)
"""MAX_HASH_DISTANCE + 1 bands: hashes that differ in at most MAX_HASH_DISTANCE bits agree in at least one band."""
MIN_RANGE = 4.0
"""Images whose cells differ by less than this in each of the 8 rows (of 255 levels) are flat: their hash is noise."""
MAX_PAIRS = 1_000_000
"""The search stops at this many pairs, because a folder of copies has quadratically many."""
MAX_CANDIDATES = 100_000_000
"""The search stops after comparing the thumbnails of this many pairs with near hashes, which takes some minutes."""
BLOCK = 1 << 14
"""Pairs whose thumbnails are compared at a time: 32 MB."""

THUMBNAIL_SIDE = 16
_ROWS, _COLUMNS = 8, 9
_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_ODD, _PAIRS, _NIBBLES, _SUM = (
    np.uint64(bits) for bits in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F, 0x0101010101010101)
)


def grey(images: np.ndarray) -> np.ndarray:
    """Brightness in 0..255: uint8 n h w 3 -> float32 n h w."""
    return images.astype(np.float32) @ _GREY


def hashes(brightness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Difference hashes: n h w -> uint64 (n,), and bool (n,), false for images too flat to be compared by hash."""
    cells = _area(brightness.shape[1], _ROWS) @ brightness @ _area(brightness.shape[2], _COLUMNS).T
    bits = (cells[:, :, 1:] > cells[:, :, :-1]).reshape(len(cells), HASH_BITS)
    values = np.packbits(bits, axis=1).view(">u8").astype(np.uint64).reshape(-1)
    usable = (np.ptp(cells, axis=2).max(axis=1) >= MIN_RANGE) & bits.any(axis=1) & ~bits.all(axis=1)
    return values, usable


def thumbnails(brightness: np.ndarray) -> np.ndarray:
    """Images reduced to 16 x 16 cells, relative to their mean: n h w -> int8 n 256."""
    side = THUMBNAIL_SIDE
    cells = _area(brightness.shape[1], side) @ brightness @ _area(brightness.shape[2], side).T
    flat = cells.reshape(len(cells), -1)
    return ((flat - flat.mean(axis=1, keepdims=True)) / 2).round().clip(-127, 127).astype(np.int8)


def correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Correlation of thumbnails, row by row: int8 n 256 twice -> float32 (n,). Sums of products of int8 are exact."""
    a, b = one.astype(np.float32), other.astype(np.float32)
    norms = np.sqrt(np.einsum("nd,nd->n", a, a) * np.einsum("nd,nd->n", b, b))
    return np.einsum("nd,nd->n", a, b) / np.maximum(norms, 1e-9)


def are_similar(small: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Whether the thumbnails of pairs correlate: int8 n 256 and indices p 2 -> bool (p,)."""
    blocks = [pairs[start : start + BLOCK] for start in range(0, len(pairs), BLOCK)]
    parts = [correlation(small[block[:, 0]], small[block[:, 1]]) >= MIN_CORRELATION for block in blocks]
    return np.concatenate([np.zeros(0, dtype=bool), *parts])


def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Hamming distances of uint64 hashes: int64 (n,)."""
    bits = one ^ other
    bits = bits - ((bits >> np.uint64(1)) & _ODD)
    bits = (bits & _PAIRS) + ((bits >> np.uint64(2)) & _PAIRS)
    bits = (bits + (bits >> np.uint64(4))) & _NIBBLES
    return ((bits * _SUM) >> np.uint64(56)).astype(np.int64)


class NearPairs(NamedTuple):
    """Result of a search."""

    pairs: np.ndarray
    """Indices p 2, the lower one first, sorted."""
    distances: np.ndarray
    """Hamming distances of their hashes: int64 (p,)."""
    complete: bool
    """False if the search stopped at a limit, so that there may be more pairs."""


def near_pairs(
    values: np.ndarray,
    keep: Callable[[np.ndarray], np.ndarray] = lambda pairs: np.ones(len(pairs), dtype=bool),
    *,
    max_pairs: int = MAX_PAIRS,
    max_candidates: int = MAX_CANDIDATES,
) -> NearPairs:
    """Pairs of hashes (n,) at most MAX_HASH_DISTANCE apart that `keep` (p 2 -> bool (p,)) accepts. Memory grows with n
    and p. The search stops at `max_pairs` accepted pairs and after `max_candidates` pairs were given to `keep`.
    """
    collected: list[np.ndarray] = [np.zeros((0, 2), dtype=np.int64)]
    count = candidates = 0
    complete = True
    for new in _new_pairs(values):
        if candidates + len(new) > max_candidates:
            complete = False
            break
        candidates += len(new)
        accepted = new[keep(new)]
        collected.append(accepted[: max_pairs - count])
        count += len(accepted)
        if count > max_pairs:
            complete = False
            break
    pairs = np.sort(np.concatenate(collected), axis=1)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    return NearPairs(pairs, distances(values[pairs[:, 0]], values[pairs[:, 1]]), complete)


def _new_pairs(values: np.ndarray) -> Iterator[np.ndarray]:
    """All pairs of near hashes, each once: p 2 at a time."""
    shift = 0
    for number, width in enumerate(BAND_BITS):
        bands = (values >> np.uint64(shift)) & np.uint64((1 << width) - 1)
        shift += width
        for pairs in _pairs_in_bands(values, bands):
            yield pairs[~_agree_in_earlier_band(values, pairs, number)]


def _pairs_in_bands(values: np.ndarray, bands: np.ndarray) -> Iterator[np.ndarray]:
    """Near pairs of hashes with equal bands, p 2 at a time. Sorts by band, then compares each hash with the next one,
    the one after it and so on, to the end of its band.
    """
    order = np.argsort(bands, kind="stable")
    ends = np.searchsorted(bands[order], bands[order], side="right")
    in_order = values[order]
    active = np.arange(len(order))
    step = 1
    while len(active := active[active + step < ends[active]]):
        near = active[distances(in_order[active], in_order[active + step]) <= MAX_HASH_DISTANCE]
        if len(near):
            yield np.stack([order[near], order[near + step]], axis=1)
        step += 1


def _agree_in_earlier_band(values: np.ndarray, pairs: np.ndarray, number: int) -> np.ndarray:
    """Whether a pair agrees in a band before `number`, where it has been collected already: p 2 -> bool (p,)."""
    differing = values[pairs[:, 0]] ^ values[pairs[:, 1]]
    agree, shift = np.zeros(len(pairs), dtype=bool), 0
    for width in BAND_BITS[:number]:
        agree |= (differing >> np.uint64(shift)) & np.uint64((1 << width) - 1) == 0
        shift += width
    return agree


def _area(side: int, cells: int) -> np.ndarray:
    """Matrix that averages `side` pixels into `cells` cells of equal width: float32 cells side."""
    edges = np.linspace(0, side, cells + 1)
    pixels = np.arange(side)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.clip(overlap, 0, None) * (cells / side)).astype(np.float32)
