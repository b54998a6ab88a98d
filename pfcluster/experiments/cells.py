"""The paper's experiments as values: a cell is a role of a preset and the options in which it differs.

Every ablation is a set of dotted config options; no code branches on a cell's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pfcluster.config.presets import PLAIN, STRONG
from pfcluster.config.starts import EQUAL_EPOCHS

SIZES = ("t", "s", "b")
DEFAULT_SIZE = "b"
MASK_RATIOS = (0.0, 0.3, 0.5, 0.75)
"""Fractions of masked patches of Multi-Task MAE, in training and at test."""


@dataclass(frozen=True)
class Cell:
    """One row of a table: a training run for each dataset and seed."""

    name: str
    """Name of its runs and of their folder."""
    title: str
    table: str
    """Key of `TABLES`."""
    role: str
    """Role of the preset: scratch, mae-vit or pf-vit."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Config options by dotted name."""
    size: str = DEFAULT_SIZE
    init: str = "mae"
    """Initial weights: "mae" (pre-trained here, same size), "timm", "imagenet-mae", "released-mae" or "nothing"."""
    identity_net: str = "default"
    """Identity net φ: "default" (the reproduction's, in the paper "face"), "face", "resnet" or "tokens"."""
    equal_epochs: bool = False
    """Trained for as many epochs as PF-ViT and the MAE-ViT that it starts from; only where it starts from one."""

    def canonical_name(self, identity_net: str) -> str:
        """The cell whose runs this one shares if the reproduction's identity net is `identity_net`; else its name."""
        return "pf-vit" if self.identity_net == identity_net and not self.changes else self.name


TABLES = {
    "baselines": "Baselines and PF-ViT",
    "sizes": "Encoder size",
    "identity-net": "Identity net φ of the orthogonality loss",
    "separator": "Separator, and emotion outputs of the discriminator",
    "losses": "Loss terms, loss weights and class targets",
    "multi-task": "Multi-Task MAE",
}
REFERENCE = {
    "baselines": "mae-vit",
    "sizes": "pf-vit",
    "identity-net": "pf-vit",
    "separator": "pf-vit",
    "losses": "pf-vit",
    "multi-task": "pf-vit",
}
"""The cell with which a table's other cells are compared."""


def _baselines() -> list[Cell]:
    return [
        Cell("scratch", "ViT from scratch", "baselines", "scratch", init="nothing"),
        Cell("sl-vit-plain", "SL-ViT, no augmentation", "baselines", "mae-vit", PLAIN, init="timm"),
        Cell("sl-vit", "SL-ViT", "baselines", "mae-vit", init="timm"),
        Cell("sl-vit-strong", "SL-ViT, strong recipe", "baselines", "mae-vit", STRONG, init="timm"),
        Cell("mae-vit-released", "MAE-ViT, the authors' MAE", "baselines", "mae-vit", init="released-mae"),
        Cell("mae-vit-imagenet", "MAE-ViT, ImageNet MAE", "baselines", "mae-vit", init="imagenet-mae"),
        Cell("mae-vit-plain", "MAE-ViT, no augmentation", "baselines", "mae-vit", PLAIN),
        Cell("mae-vit", "MAE-ViT", "baselines", "mae-vit"),
        Cell("mae-vit-strong", "MAE-ViT, strong recipe", "baselines", "mae-vit", STRONG),
        Cell(EQUAL_EPOCHS, "MAE-ViT, as many epochs as PF-ViT", "baselines", "mae-vit", equal_epochs=True),
        Cell("pf-vit", "PF-ViT", "baselines", "pf-vit"),
    ]


def _sizes() -> list[Cell]:
    names = {"t": "Tiny", "s": "Small"}
    return [
        Cell(f"{role}-{size}", f"{title}, {names[size]}", "sizes", role, size=size)
        for size in names
        for role, title in (("mae-vit", "MAE-ViT"), ("pf-vit", "PF-ViT"))
    ]


def _identity_nets() -> list[Cell]:
    def cell(name: str, title: str, identity_net: str, **options: Any) -> Cell:
        changes = {f"pf_mag.{option}": value for option, value in options.items()}
        return Cell(f"identity-net-{name}", title, "identity-net", "pf-vit", changes, identity_net=identity_net)

    return [
        cell("face", "φ: face net, last feature map", "face"),
        cell("embedding", "φ: face net, embedding", "face", identity_net_layer="embedding"),
        cell("resnet", "φ: ResNet-50 (ImageNet)", "resnet"),
        cell("tokens", "φ: none, cosine of the tokens", "tokens"),
        Cell(
            "without-ort",
            "without L_ort",
            "identity-net",
            "pf-vit",
            {"pf_mag.weights.ort": 0.0},
            identity_net="tokens",
        ),
    ]


def _separator() -> list[Cell]:
    def cell(name: str, title: str, changes: Mapping[str, Any]) -> Cell:
        needs_it = {
            "pf_mag.weights.anchor": 0.0,
            "pf_mag.weights.swap": 0.0,
            "pf_mag.class_mask_bias": None,
            "pf_mag.patch_mask_bias": None,
            "pf_mag.erasure_start": None,
        }
        options = {"pf_mag.separator_ratio": 0.0, **needs_it, **changes}
        return Cell(name, f"no separator, {title}", "separator", "pf-vit", options, identity_net="tokens")

    return [
        cell("no-separator", "discriminator with emotions", {}),
        cell("no-separator-real-fake", "discriminator real/fake only", {"pf_mag.discriminator_emotions": False}),
    ]


def _losses() -> list[Cell]:
    def cell(name: str, title: str, **options: Any) -> Cell:
        return Cell(name, title, "losses", "pf-vit", {f"pf_mag.{option}": value for option, value in options.items()})

    return [
        cell("fake-targets-zero", "class targets of fakes all 0", fake_class_targets="zero"),
        cell("without-adv", "without L_adv", **{"weights.adv": 0.0}),
        cell("without-rec", "without L_rec", **{"weights.rec": 0.0}),
        cell("without-cls", "without L_cls", **{"weights.cls": 0.0, "warmup_cls": 0.0}),
        cell("fixed-weights", "fixed loss weights, no balancing", loss_balancing="fixed"),
    ]


def _multi_task() -> list[Cell]:
    """With ratio 0 there are no mask tokens at all (docs/concepts/method.md, Ablations 3)."""
    return [
        Cell(
            f"multi-task-{round(100 * ratio)}",
            f"Multi-Task MAE, {round(100 * ratio)} % masked in training",
            "multi-task",
            "pf-vit",
            {
                "pf_mag.fusion": "self",
                "pf_mag.fusion_bias": None,
                "pf_mag.erasure_start": None,
                "pf_mag.weights.swap": 0.0,
                "pf_mag.mask_ratio": ratio,
                "evaluate.mask_ratios": MASK_RATIOS,
            },
        )
        for ratio in MASK_RATIOS
    ]


CELLS = (*_baselines(), *_sizes(), *_identity_nets(), *_separator(), *_losses(), *_multi_task())


def mae_vit_name(size: str) -> str:
    """Name of the MAE-ViT of a size."""
    return "mae-vit" if size == DEFAULT_SIZE else f"mae-vit-{size}"


def cell_by_name(name: str) -> Cell:
    """Raises KeyError."""
    return {cell.name: cell for cell in CELLS}[name]
