"""Perceptual hashes of images, and all pairs of hashes that nearly agree. Legend: `n` images of h w pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

HASH_BITS = 64
MAX_HASH_DISTANCE = 4
"""Hashes that differ in at most so many of their 64 bits may be near-duplicates: a re-encoded or brightened copy stays
below. So do some pairs of different, equally posed faces: their cells are then compared."""
MIN_CORRELATION = 0.93
"""Correlation of two images' cells from which on they are one photo. Chosen on 2,569 pairs of FER2013: those looked at
above it all were, between 0.90 and 0.93 half."""
BAND_BITS = (13, 13, 13, 13, 12)
"""One band more than MAX_HASH_DISTANCE: hashes that differ in MAX_HASH_DISTANCE bits agree wholly in one of them at least."""
SMALLEST_RANGE = 4.0
"""An image none of whose 8 rows of cells differ by more (of 255 levels) is flat: its hash is noise."""
MAX_PAIRS = 1_000_000
"""The search stops there: a folder of copies has quadratically many pairs."""

SIDE_CELLS = 16
_ROWS, _COLUMNS = 8, 9
_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_ODD, _PAIRS, _NIBBLES, _SUM = (
    np.uint64(bits) for bits in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F, 0x0101010101010101)
)


def grey(images: np.ndarray) -> np.ndarray:
    """Brightness 0..255 of uint8 n h w 3: float32 n h w."""
    return images.astype(np.float32) @ _GREY


def hashes(brightness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Difference hashes of n h w: uint64 (n,), and which of them say something: bool (n,)."""
    cells = _area(brightness.shape[1], _ROWS) @ brightness @ _area(brightness.shape[2], _COLUMNS).T
    bits = (cells[:, :, 1:] > cells[:, :, :-1]).reshape(len(cells), HASH_BITS)
    values = np.packbits(bits, axis=1).view(">u8").astype(np.uint64).reshape(-1)
    telling = (np.ptp(cells, axis=2).max(axis=1) >= SMALLEST_RANGE) & bits.any(axis=1) & ~bits.all(axis=1)
    return values, telling


def cells(brightness: np.ndarray) -> np.ndarray:
    """Each image of n h w as 16 x 16 cells, in shades around its own mean: int8 n 256."""
    shades = _area(brightness.shape[1], SIDE_CELLS) @ brightness @ _area(brightness.shape[2], SIDE_CELLS).T
    flat = shades.reshape(len(shades), -1)
    return ((flat - flat.mean(axis=1, keepdims=True)) / 2).round().clip(-127, 127).astype(np.int8)


def correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Correlation of cells, n 256 twice -> float64 (n,)."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    size = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.maximum(size, 1e-9)


def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Number of bits in which uint64 hashes differ: int64 (n,)."""
    bits = one ^ other
    bits = bits - ((bits >> np.uint64(1)) & _ODD)
    bits = (bits & _PAIRS) + ((bits >> np.uint64(2)) & _PAIRS)
    bits = (bits + (bits >> np.uint64(4))) & _NIBBLES
    return ((bits * _SUM) >> np.uint64(56)).astype(np.int64)


def near_pairs(values: np.ndarray, max_pairs: int = MAX_PAIRS) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of hashes (n,) at most MAX_HASH_DISTANCE apart: places p 2, lower first and sorted, and distances (p,). Memory grows
    with n and the pairs found. The search stops at `max_pairs` pairs.
    """
    found: list[np.ndarray] = [np.zeros((0, 2), dtype=np.int64)]
    count, shift = 0, 0
    for number, width in enumerate(BAND_BITS):
        bands = (values >> np.uint64(shift)) & np.uint64((1 << width) - 1)
        shift += width
        for pairs in _agreeing(values, bands):
            new = pairs[~_agree_before(values, pairs, number)][: max_pairs - count]
            found.append(new)
            count += len(new)
            if count >= max_pairs:
                break
        if count >= max_pairs:
            break
    pairs = np.sort(np.concatenate(found), axis=1)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    return pairs, distances(values[pairs[:, 0]], values[pairs[:, 1]])


def _agreeing(values: np.ndarray, bands: np.ndarray) -> Iterator[np.ndarray]:
    """Near pairs among hashes of the same band, p 2 at a time: sorted by band, each is compared with the next one, then
    with the one after it, until its band ends.
    """
    order = np.argsort(bands, kind="stable")
    ends = np.searchsorted(bands[order], bands[order], side="right")
    ordered = values[order]
    active = np.arange(len(order))
    step = 1
    while len(active := active[active + step < ends[active]]):
        near = active[distances(ordered[active], ordered[active + step]) <= MAX_HASH_DISTANCE]
        if len(near):
            yield np.stack([order[near], order[near + step]], axis=1)
        step += 1


def _agree_before(values: np.ndarray, pairs: np.ndarray, number: int) -> np.ndarray:
    """Whether an earlier band has found the pair: bool (p,)."""
    differing = values[pairs[:, 0]] ^ values[pairs[:, 1]]
    known, shift = np.zeros(len(pairs), dtype=bool), 0
    for width in BAND_BITS[:number]:
        known |= (differing >> np.uint64(shift)) & np.uint64((1 << width) - 1) == 0
        shift += width
    return known


def _area(side: int, cells: int) -> np.ndarray:
    """Weights that average `side` pixels into `cells` of equal width: float32 cells side."""
    edges = np.linspace(0, side, cells + 1)
    pixels = np.arange(side)
    shared = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.clip(shared, 0, None) * (cells / side)).astype(np.float32)
