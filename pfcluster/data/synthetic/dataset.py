"""Synthetic faces with known expression, identity and true poker face, drawn on demand.

    faces = SyntheticFaces(12_000, size=48, seed=1)
    images, labels = faces.images(), faces.labels()
    truth = faces.poker_faces()                      # the same photos, had nobody moved a muscle

    python -m pfcluster.data.synthetic.dataset docs/assets/synthetic_faces.jpg

Every number is a hash of (seed, what it is for, index): nothing depends on order, batch or earlier calls.

Legend: n faces, k classes, h w pixels, a action units, s sides.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from pfcluster.data.labels import CANONICAL
from pfcluster.data.synthetic import facs
from pfcluster.data.synthetic.faces import IDENTITY, NUISANCE, NUISANCE_NAMES, Faces, calmed, concatenate, from_uniforms
from pfcluster.data.synthetic.renderer import LARGEST, SMALLEST, render

Indices = Sequence[int] | range | Tensor | NDArray[np.int64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""2⁶⁴ over the golden ratio: the stride of splitmix64 (Steele, Lea & Flood 2014)."""


def scramble(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finalizer, element by element."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniforms(stream: str, seed: int, counters: NDArray[np.uint64], columns: int) -> Tensor:
    """Random numbers in [0, 1) that depend on (stream, seed, counter, column) alone: n -> n columns, float64."""
    key = np.array([seed], dtype=np.uint64)
    for letter in stream.encode():
        key = scramble(key + GOLDEN + np.uint64(letter))
    rows = scramble(key + counters * GOLDEN)[:, None]
    bits = scramble(rows + np.arange(1, columns + 1, dtype=np.uint64) * GOLDEN)
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) / 2**53)


def identity_parameters(numbers: Tensor) -> Tensor:
    """What people look like: a function of their numbers alone, n -> n i."""
    counters = numbers.numpy().astype(np.uint64)
    return from_uniforms(IDENTITY, uniforms("identity", 0, counters, len(IDENTITY)))


SOURCES = ("faces.py", "facs.py", "features.py", "geometry.py", "renderer.py", "dataset.py")
"""Files beside this one that decide what a photo shows."""


class SyntheticFaces:
    """`count` faces, samples first_index .. first_index + count - 1 of an endless sequence.

    Raises ValueError, naming the argument, for anything that makes no dataset.
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
        min_intensity: float = facs.WEAKEST,
        seed: int = 0,
        first_index: int = 0,
    ) -> None:
        """size: pixels. identities: how many people, numbered from first_identity. imbalance: how many times more
        frequent the first class is than the last. label_noise: how often each of the `annotators` errs. nuisance: how
        much of the range of pose, light, background and so on is used. weakest: strength of the weakest showing."""
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
        for name, share in (("nuisance", nuisance), ("weakest", min_intensity)):
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
        """Of the photos, in hexadecimal: what they are drawn from, and the code that draws them."""
        kept = {name: value for name, value in vars(self).items() if name != "_indices"}
        drawn = hashlib.sha256(repr((sorted(kept.items()), torch.__version__)).encode())
        for name in SOURCES:
            drawn.update((Path(__file__).parent / name).read_bytes())
        return drawn.hexdigest()

    def __len__(self) -> int:
        return len(self._indices)

    def true_labels(self) -> Tensor:
        """What is shown: n long, indices into `classes`. Class by class a fixed share of the samples, evenly spread."""
        return self._true_labels(self._indices)

    def votes(self) -> Tensor:
        """How many annotators chose each class: n k long."""
        classes = len(self.classes)
        drawn = uniforms("votes", self._seed, self._indices, 2 * self._annotators)
        errs, which = drawn[:, ::2] < self._label_noise, drawn[:, 1::2]
        other = 1 + (which * (classes - 1)).long().clamp(max=max(classes - 2, 0))
        chosen = (self.true_labels()[:, None] + errs * other) % classes
        return torch.nn.functional.one_hot(chosen, classes).sum(1)

    def labels(self) -> Tensor:
        """What most annotators chose, the first such class where several are even: n long."""
        return self.votes().argmax(1)

    def identities(self) -> Tensor:
        """Whose face each is: n long."""
        return self._people(self._indices)

    def faces(self, indices: Indices) -> Faces:
        """Everything there is to know about the faces at the given positions of this dataset."""
        rows = self._rows(indices)
        emotions = torch.tensor([CANONICAL.index(name) for name in self.classes])[self._true_labels(rows)]
        return Faces(
            identity=identity_parameters(self._people(rows)),
            nuisance=calmed(
                from_uniforms(NUISANCE, uniforms("nuisance", self._seed, rows, len(NUISANCE))), self._nuisance
            ),
            action_units=facs.intensities(
                emotions, uniforms("units", self._seed, rows, facs.UNIFORMS), self._min_intensity
            ),
        )

    def images(self, indices: Indices | None = None) -> Tensor:
        """The photos: uint8 n 3 size size; all of them where no indices are given."""
        return render(self.faces(range(len(self)) if indices is None else indices), self.size)

    def poker_faces(self, indices: Indices | None = None) -> Tensor:
        """The same photos with neutral faces: uint8 n 3 size size."""
        return render(self.faces(range(len(self)) if indices is None else indices).neutral_twin(), self.size)

    def action_units(self, indices: Indices) -> Tensor:
        """Intensities in [0, 1], units as in facs.ACTION_UNITS: n a s."""
        return self.faces(indices).action_units

    def _rows(self, indices: Indices) -> NDArray[np.uint64]:
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        wrong = wanted[(wanted < 0) | (wanted >= len(self))]
        if len(wrong):
            raise ValueError(f"indices must lie in 0..{len(self) - 1}, got {wrong[0]}")
        return self._indices[wanted]

    def _true_labels(self, rows: NDArray[np.uint64]) -> Tensor:
        start = scramble(np.array([self._seed], dtype=np.uint64) + GOLDEN)
        place = torch.from_numpy(((start + rows * GOLDEN) >> np.uint64(11)).astype(np.float64) / 2**53)
        steps = max(len(self.classes) - 1, 1)
        weights = torch.tensor([self._imbalance ** (-k / steps) for k in range(len(self.classes))], dtype=torch.float64)
        ends = weights.cumsum(0) / weights.sum()
        return torch.searchsorted(ends[:-1].contiguous(), place, right=True)

    def _people(self, rows: NDArray[np.uint64]) -> Tensor:
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


def plain(faces: Faces) -> Faces:
    """The same people and expressions in a studio: frontal, even light, nothing in the way."""
    calm = {"ambient": 0.6, "exposure": 1.0, "light_x": -0.3, "light_y": -0.3, "scale": 1.0, "lids": 1.0}
    hidden = {"blur": -1.0, "noise": -1.0, "occluder": -1.0}
    kept = ("clothes_red", "clothes_green", "clothes_blue")
    for name in NUISANCE_NAMES:
        if name not in kept:
            grey = 0.72 if name.startswith("background_") and name.split("_")[1] in ("red", "green", "blue") else 0.0
            faces = faces.with_parameter(name, {**calm, **hidden}.get(name, grey))
    return faces


def expression_rows(people: int) -> Faces:
    """Each of some people showing the canonical expressions clearly, then their neutral twin: (people · 9) faces."""
    emotions = torch.arange(len(CANONICAL)).repeat(people)
    draws = uniforms("sheet", 3, np.arange(len(emotions), dtype=np.uint64), facs.UNIFORMS)
    draws[:, 0] = 0.85
    draws[:, 2] = 0.0
    draws[:, 3 : 3 + len(facs.ACTION_UNITS)] = 0.0
    who = torch.arange(people).repeat_interleave(len(CANONICAL))
    nuisance = from_uniforms(NUISANCE, uniforms("sheet", 5, who.numpy().astype(np.uint64), len(NUISANCE)))
    shown = plain(Faces(identity_parameters(who + 21), nuisance, facs.intensities(emotions, draws)))
    rows = []
    for person in range(people):
        row = shown[slice(person * len(CANONICAL), (person + 1) * len(CANONICAL))]
        rows += [row, row[1:2].neutral_twin()]
    return concatenate(rows)


def contact_sheet(path: str | Path, size: int = 96, people: int = 6, wild_rows: int = 4) -> None:
    """Writes a picture: rows of people showing each expression and their neutral twin, then samples as the dataset has
    them.

    size: pixels of one face, 32..224.
    """
    columns = (*CANONICAL, "neutral twin")
    wild = SyntheticFaces(wild_rows * len(columns), size=size, seed=2)
    images = torch.cat([render(expression_rows(people), size), wild.images()])
    heading, gap = 18, 10
    height = heading + people * size + gap + heading + wild_rows * size
    sheet = Image.new("RGB", (len(columns) * size, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(columns):
        draw.text((column * size + size / 2, heading / 2), name, fill="black", anchor="mm")
    captions = [wild.classes[label] for label in wild.true_labels()]
    draw.text((4, heading + people * size + gap + 2), "as in the dataset:", fill="black")
    for number, image in enumerate(images):
        row, column = divmod(number, len(columns))
        below = 0 if row < people else gap + heading
        place = (column * size, heading + row * size + below)
        sheet.paste(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()), place)
        if row >= people:
            draw.text((place[0] + 3, place[1] + size - 13), captions[number - people * len(columns)], fill="white")
    sheet.save(path, quality=88)


if __name__ == "__main__":
    contact_sheet(sys.argv[1] if len(sys.argv) > 1 else "docs/assets/synthetic_faces.jpg")
