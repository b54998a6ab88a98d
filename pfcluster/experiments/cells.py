"""The paper's experiments as values: a cell is a role of a preset and the options in which it differs.

Every ablation is a set of dotted options, as a user would give them on the command line; no code asks which one it is
running.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pfcluster.config.presets import PLAIN, STRONG

SIZES = ("t", "s", "b")
DEFAULT_SIZE = "b"
RATIOS = (0.0, 0.3, 0.5, 0.75)
"""Shares of hidden patches of Multi-Task MAE, in training and at test."""


@dataclass(frozen=True)
class Cell:
    """One row of a table, for each dataset and seed a run."""

    name: str
    """Of its runs and folder."""
    title: str
    table: str
    """Key of `TABLES`."""
    role: str
    """Of the preset: scratch, mae-vit or pf-vit."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    size: str = DEFAULT_SIZE
    start: str = "mae"
    """Weights it starts from: our own "mae" of its size, "timm", "imagenet-mae", "released-mae", or "nothing"."""
    phi: str = "default"
    """Recognition net: "default" (the reproduction's: the paper's is "face"), "face", "resnet", "tokens"."""

    def same_as(self, phi: str) -> str:
        """The cell that this one is, where the reproduction's own φ is `phi` ("face" or "tokens"); else itself."""
        return "pf-vit" if self.phi == phi and not self.changes else self.name


TABLES = {
    "baselines": "Baselines and PF-ViT",
    "sizes": "Sizes of the encoder",
    "phi": "φ of the orthogonality loss",
    "separator": "The separator, and what Δ looks at",
    "game": "Fusion, targets of Δ, terms of the loss",
    "multi-task": "Multi-Task MAE",
}
REFERENCE = {
    "baselines": "mae-vit",
    "sizes": "pf-vit",
    "phi": "pf-vit",
    "separator": "pf-vit",
    "game": "pf-vit",
    "multi-task": "pf-vit",
}
"""The row that a table's others are compared with."""


def _sizes() -> list[Cell]:
    named = {"t": "Tiny", "s": "Small"}
    return [
        Cell(f"{role}-{size}", f"{title}, {named[size]}", "sizes", role, size=size)
        for size in named
        for role, title in (("mae-vit", "MAE-ViT"), ("pf-vit", "PF-ViT"))
    ]


def _multi_task() -> list[Cell]:
    return [
        Cell(
            f"multi-task-{round(100 * ratio)}",
            f"Multi-Task MAE, {round(100 * ratio)} % hidden in training",
            "multi-task",
            "pf-vit",
            {"pf_mag.fusion": "self", "pf_mag.mask_ratio": ratio, "evaluate.mask_ratios": RATIOS},
        )
        for ratio in RATIOS
    ]


def _game() -> list[Cell]:
    def changed(name: str, title: str, **changes: Any) -> Cell:
        return Cell(name, title, "game", "pf-vit", {key.replace("__", "."): value for key, value in changes.items()})

    return [
        changed("fakes-zero", "Δ wants no emotion of fakes (all targets 0)", pf_mag__fake_emotions="zero"),
        changed("without-adv", "without L_adv", pf_mag__weights__adv=0.0),
        changed("without-rec", "without L_rec", pf_mag__weights__rec=0.0),
        changed("without-cls", "without L_cls", pf_mag__weights__cls=0.0),
        changed("fixed-weights", "fixed λ instead of balanced terms", pf_mag__balance="fixed"),
    ]


CELLS = (
    Cell("scratch", "ViT from scratch", "baselines", "scratch", start="nothing"),
    Cell("sl-vit-plain", "SL-ViT, not augmented", "baselines", "mae-vit", PLAIN, start="timm"),
    Cell("sl-vit", "SL-ViT", "baselines", "mae-vit", start="timm"),
    Cell("sl-vit-strong", "SL-ViT, strong recipe", "baselines", "mae-vit", STRONG, start="timm"),
    Cell("mae-vit-released", "MAE-ViT of the authors' file", "baselines", "mae-vit", start="released-mae"),
    Cell("mae-vit-imagenet", "MAE-ViT of ImageNet", "baselines", "mae-vit", start="imagenet-mae"),
    Cell("mae-vit-plain", "MAE-ViT, not augmented", "baselines", "mae-vit", PLAIN),
    Cell("mae-vit", "MAE-ViT", "baselines", "mae-vit"),
    Cell("mae-vit-strong", "MAE-ViT, strong recipe", "baselines", "mae-vit", STRONG),
    Cell("pf-vit", "PF-ViT", "baselines", "pf-vit"),
    *_sizes(),
    Cell("phi-face", "φ: a face net, its last map", "phi", "pf-vit", phi="face"),
    Cell(
        "phi-embedding",
        "φ: a face net, its embedding",
        "phi",
        "pf-vit",
        {"pf_mag.identity_net_layer": "embedding"},
        phi="face",
    ),
    Cell("phi-resnet", "φ: ResNet-50 of ImageNet", "phi", "pf-vit", phi="resnet"),
    Cell("phi-tokens", "φ: none, cosine of the tokens", "phi", "pf-vit", phi="tokens"),
    Cell("without-ort", "without L_ort", "phi", "pf-vit", {"pf_mag.weights.ort": 0.0}, phi="tokens"),
    Cell(
        "no-separator",
        "no separator, Δ checks emotions",
        "separator",
        "pf-vit",
        {"pf_mag.separator_ratio": 0.0},
        phi="tokens",
    ),
    Cell(
        "no-separator-blind",
        "no separator, Δ tells real from fake alone",
        "separator",
        "pf-vit",
        {"pf_mag.separator_ratio": 0.0, "pf_mag.discriminator_emotions": False},
        phi="tokens",
    ),
    *_game(),
    *_multi_task(),
)
"""No mask tokens at all (docs/concepts/method.md, Ablations 3) is Multi-Task MAE with nothing hidden."""


def cell(name: str) -> Cell:
    """A cell by its name. Raises KeyError."""
    return {each.name: each for each in CELLS}[name]
