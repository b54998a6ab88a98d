"""Settings of the experiments on synthetic faces: a controlled and an in-the-wild dataset, like RAF-DB and AffectNet.

L_ort uses the cosine of the tokens: an identity net on images doubles the time of a step and is a cell of its own.
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
IDENTITIES: Mapping[str, Any] = {
    **_synthetic(train=3000, validation=100, test=100, identities=150, nuisance=0.2, seed=2),
    "data.target": "identity",
    "data.cache_mode": "stream",
    "data.size": 32,
    "augment.flip": 0.0,
}
NO_WEIGHTS = "no released weights for models of this size"


def miniature(
    output: Path,
    seeds: tuple[int, ...],
    tables: tuple[str, ...],
    cells: tuple[str, ...],
    change: Callable[[RunConfig], RunConfig],
) -> Settings:
    """Settings of all cells that need no external weights. Pre-training uses the images of the street dataset."""
    return Settings(
        output,
        seeds,
        ablated=("studio",),
        datasets={"studio": STUDIO, "street": STREET},
        with_neutral=frozenset(("studio", "street")),
        pretraining_data=STREET,
        presets={size: f"miniature-{size}" for size in SIZES},
        identity_net="tokens",
        face_net="run",
        identity_data=IDENTITIES,
        n_probe_images=800,
        tables=tables,
        cells=cells,
        unavailable={
            **dict.fromkeys(("timm", "imagenet-mae", "released-mae"), NO_WEIGHTS),
            "resnet": "ResNet-50 at 224 px takes hours on two cores",
        },
        change=change,
    )
