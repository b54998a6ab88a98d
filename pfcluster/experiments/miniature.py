"""The experiments on synthetic faces: two datasets, one calm and one wild, as RAF-DB and AffectNet differ.

PF-ViT takes the tokens' cosine for L_ort here: a net on images as φ doubles a step's time, and is a row of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pfcluster.config import RunConfig
from pfcluster.data.labels import CANONICAL
from pfcluster.experiments.cells import SIZES
from pfcluster.experiments.matrix import Settings

SEVEN = tuple(name for name in CANONICAL if name != "contempt")


def _synthetic(**options: Any) -> dict[str, Any]:
    return {f"data.synthetic.{name}": value for name, value in options.items()}


STUDIO: Mapping[str, Any] = _synthetic(
    train=2400, validation=300, test=1000, identities=480, classes=SEVEN, nuisance=0.2, min_intensity=0.7
)
STREET: Mapping[str, Any] = _synthetic(
    train=2400,
    validation=300,
    test=1000,
    identities=480,
    nuisance=0.5,
    min_intensity=0.5,
    imbalance=8.0,
    label_noise=0.1,
    seed=1,
)
PEOPLE: Mapping[str, Any] = {
    **_synthetic(train=3000, validation=100, test=100, identities=150, nuisance=0.2, seed=2),
    "data.target": "identity",
    "data.cache_mode": "stream",
    "data.size": 32,
    "augment.flip": 0.0,
}
ABSENT = "nobody released weights of the miniature's nets"


def miniature(
    output: Path,
    seeds: tuple[int, ...],
    tables: tuple[str, ...],
    cells: tuple[str, ...],
    change: Callable[[RunConfig], RunConfig],
) -> Settings:
    """All of the matrix that needs no weights from elsewhere. Pre-training takes the wild faces, unlabelled."""
    return Settings(
        output,
        seeds,
        ablated=("studio",),
        datasets={"studio": STUDIO, "street": STREET},
        with_neutral=frozenset(("studio", "street")),
        faces=STREET,
        presets={size: f"miniature-{size}" for size in SIZES},
        phi="tokens",
        face_phi="run",
        people=PEOPLE,
        probes=800,
        tables=tables,
        cells=cells,
        missing={
            **dict.fromkeys(("timm", "imagenet-mae", "released-mae"), ABSENT),
            "resnet": "ResNet-50 at 224 px takes hours on two cores",
        },
        change=change,
    )
