"""Synthetic faces with known expression, identity and ground-truth poker face, rendered on demand.

    faces = SyntheticFaces(12_000, size=48, seed=1)
    images, labels = faces.images(), faces.labels()
    poker_faces = faces.poker_faces()                # the same images with neutral expressions

Random numbers are counter-based, hashes of (stream, seed, index), so samples do not depend on order, batches or earlier
calls.

Legend: n faces, k classes, h w pixels, a action units, s sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfcluster.data.labels import CANONICAL
from pfcluster.data.synthetic import facs
from pfcluster.data.synthetic.faces import IDENTITY, NUISANCE, Faces, from_uniforms, shrink_nuisance
from pfcluster.data.synthetic.renderer import LARGEST, SMALLEST, render

Indices = Sequence[int] | range | Tensor | NDArray[np.int64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2⁶⁴ divided by the golden ratio: the increment of splitmix64 (Steele, Lea & Flood 2014)."""


def scramble(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finalizer, elementwise."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniforms(stream: str, seed: int, counters: NDArray[np.uint64], columns: int) -> Tensor:
    """Random numbers in [0, 1), a function of (stream, seed, counter, column): n -> float64 n columns."""
    key = np.array([seed], dtype=np.uint64)
    for letter in stream.encode():
        key = scramble(key + GOLDEN + np.uint64(letter))
    rows = scramble(key + counters * GOLDEN)[:, None]
    bits = scramble(rows + np.arange(1, columns + 1, dtype=np.uint64) * GOLDEN)
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) / 2**53)


def identity_parameters(numbers: Tensor) -> Tensor:
    """Identity parameters, a function of the identity numbers alone: n -> n i."""
    counters = numbers.numpy().astype(np.uint64)
    return from_uniforms(IDENTITY, uniforms("identity", 0, counters, len(IDENTITY)))


SOURCES = ("faces.py", "facs.py", "features.py", "geometry.py", "renderer.py", "dataset.py")
"""Files of this folder that determine the rendered images."""


class SyntheticFaces:
    """`count` faces: samples first_index .. first_index + count - 1 of an infinite sequence.

    Raises ValueError, which names the argument, if an argument is invalid.
    """

    def __init__(
        self,
        count: int,
        *,
        size: int = 64,
        classes: Sequence[str] = CANONICAL,
        identities: int = 1000,
        first_identity: int = 0,
        imbalance: float = 1.0,
        label_noise: float = 0.0,
        annotators: int = 10,
        nuisance: float = 1.0,
        min_intensity: float = facs.MIN_INTENSITY,
        seed: int = 0,
        first_index: int = 0,
    ) -> None:
        """size: pixels. identities: their number, counted from first_identity. imbalance: ratio of the frequencies of
        the first and the last class. label_noise: error rate of each of the `annotators`. nuisance: fraction of the
        range of pose, light, background and so on. min_intensity: intensity of the weakest expressions.
        """
        _at_least("count", count, 1)
        _at_least("identities", identities, 1)
        _at_least("annotators", annotators, 1)
        for name, value in (("first_identity", first_identity), ("seed", seed), ("first_index", first_index)):
            _at_least(name, value, 0)
        _at_least("imbalance", imbalance, 1)
        if not SMALLEST <= size <= LARGEST:
            raise ValueError(f"size must lie in {SMALLEST}..{LARGEST} pixels, got {size}")
        if not 0 <= label_noise < 1:
            raise ValueError(f"label_noise must lie in [0, 1), got {label_noise}")
        for name, share in (("nuisance", nuisance), ("min_intensity", min_intensity)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {share}")
        _check_classes(classes)
        self.classes = tuple(classes)
        self.size = size
        self._indices = np.arange(first_index, first_index + count, dtype=np.uint64)
        self._identities = (first_identity, identities)
        self._imbalance = imbalance
        self._label_noise = label_noise
        self._annotators = annotators
        self._nuisance = nuisance
        self._min_intensity = min_intensity
        self._seed = seed
        self._sequence = (first_index, count)

    def fingerprint(self) -> str:
        """Hash of the arguments and of the code that renders the images, in hexadecimal."""
        arguments = {name: value for name, value in vars(self).items() if name != "_indices"}
        digest = hashlib.sha256(repr((sorted(arguments.items()), torch.__version__)).encode())
        for name in SOURCES:
            digest.update((Path(__file__).parent / name).read_bytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._indices)

    def true_labels(self) -> Tensor:
        """Classes of the rendered expressions, without label noise: long (n,). The share of each class is fixed."""
        return self._true_labels(self._indices)

    def votes(self) -> Tensor:
        """Number of annotators that chose each class: long n k."""
        classes = len(self.classes)
        uniform = uniforms("votes", self._seed, self._indices, 2 * self._annotators)
        errs, which = uniform[:, ::2] < self._label_noise, uniform[:, 1::2]
        other = 1 + (which * (classes - 1)).long().clamp(max=max(classes - 2, 0))
        chosen = (self.true_labels()[:, None] + errs * other) % classes
        return torch.nn.functional.one_hot(chosen, classes).sum(1)

    def labels(self) -> Tensor:
        """The class with most votes, the first one in a tie: long (n,)."""
        return self.votes().argmax(1)

    def identities(self) -> Tensor:
        """Identity numbers: long (n,)."""
        return self._identity_numbers(self._indices)

    def faces(self, indices: Indices) -> Faces:
        """All parameters of the faces at the given positions of this dataset."""
        rows = self._rows(indices)
        emotions = torch.tensor([CANONICAL.index(name) for name in self.classes])[self._true_labels(rows)]
        return Faces(
            identity=identity_parameters(self._identity_numbers(rows)),
            nuisance=shrink_nuisance(
                from_uniforms(NUISANCE, uniforms("nuisance", self._seed, rows, len(NUISANCE))), self._nuisance
            ),
            action_units=facs.intensities(
                emotions, uniforms("units", self._seed, rows, facs.UNIFORMS), self._min_intensity
            ),
        )

    def images(self, indices: Indices | None = None) -> Tensor:
        """Rendered images: uint8 n 3 size size. All faces if no indices are given."""
        return render(self.faces(range(len(self)) if indices is None else indices), self.size)

    def poker_faces(self, indices: Indices | None = None) -> Tensor:
        """The same images with neutral expressions: uint8 n 3 size size."""
        return render(self.faces(range(len(self)) if indices is None else indices).neutral_twin(), self.size)

    def action_units(self, indices: Indices) -> Tensor:
        """Action unit intensities in [0, 1], in the order of facs.ACTION_UNITS: n a s."""
        return self.faces(indices).action_units

    def _rows(self, indices: Indices) -> NDArray[np.uint64]:
        positions = np.asarray(indices, dtype=np.int64).reshape(-1)
        invalid = positions[(positions < 0) | (positions >= len(self))]
        if len(invalid):
            raise ValueError(f"indices must lie in 0..{len(self) - 1}, got {invalid[0]}")
        return self._indices[positions]

    def _true_labels(self, rows: NDArray[np.uint64]) -> Tensor:
        start = scramble(np.array([self._seed], dtype=np.uint64) + GOLDEN)
        place = torch.from_numpy(((start + rows * GOLDEN) >> np.uint64(11)).astype(np.float64) / 2**53)
        steps = max(len(self.classes) - 1, 1)
        weights = torch.tensor([self._imbalance ** (-k / steps) for k in range(len(self.classes))], dtype=torch.float64)
        ends = weights.cumsum(0) / weights.sum()
        return torch.searchsorted(ends[:-1].contiguous(), place, right=True)

    def _identity_numbers(self, rows: NDArray[np.uint64]) -> Tensor:
        first, number = self._identities
        return first + (uniforms("people", self._seed, rows, 1)[:, 0] * number).long()


def _at_least(name: str, value: float, least: int) -> None:
    if not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _check_classes(classes: Sequence[str]) -> None:
    unknown = [name for name in classes if name not in CANONICAL]
    if unknown:
        raise ValueError(f"classes must be among {', '.join(CANONICAL)}, got {unknown[0]!r}")
    if not classes or len(set(classes)) < len(classes):
        raise ValueError(f"classes must name at least one expression, each once, got {tuple(classes)}")
