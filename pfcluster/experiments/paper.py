"""The paper's own figures, as far as its text states them (Li et al., PF-ViT; sections are the arXiv version's).

Accuracies in % by dataset and cell. Most of its tables' cells are lost with the tables; what the text says of a
difference is a claim.
"""

from __future__ import annotations

from dataclasses import dataclass

ACCURACY: dict[str, dict[str, float]] = {
    "rafdb": {
        "pf-vit": 92.07,
        "mae-vit": 91.07,
        "mae-vit-plain": 90.22,
        "sl-vit": 87.22,
        "sl-vit-plain": 86.87,
        "mae-vit-t": 88.72,
        "mae-vit-s": 90.03,
    },
    "affectnet7": {"pf-vit": 67.23},
    "affectnet8": {
        "pf-vit": 64.10,
        "mae-vit": 62.42,
        "mae-vit-plain": 61.73,
        "sl-vit": 58.28,
        "sl-vit-plain": 57.96,
    },
    "ferplus": {
        "pf-vit": 91.16,
        "mae-vit": 90.18,
        "mae-vit-plain": 89.00,
        "sl-vit": 88.91,
        "sl-vit-plain": 86.49,
    },
}
CROSS: dict[tuple[str, str], float] = {("affectnet8", "rafdb"): 73.0, ("rafdb", "affectnet8"): 47.8}
"""Accuracy in % of a PF-ViT trained on the first and tested on the second."""
FID = {"rafdb": 100.38}
"""Of poker faces, InceptionV3's. The paper warns: a failed de-expression can score better."""
COSTS = {
    "train_parameters": 145.1e6,
    "test_parameters": 89.7e6,
    "train_gflop": 15.2,
    "test_gflop": 9.0,
}
"""Of ViT-B at 112 px, a multiplication and an addition counted as one."""


@dataclass(frozen=True)
class Claim:
    """That `better` recognises more than `worse`."""

    name: str
    text: str
    better: str
    worse: str
    gain: dict[str, float] | None = None
    """Points the paper reports, by dataset; None where it states none."""
    of_the_paper: bool = True
    """False for what the paper takes for granted and we look at nevertheless."""


CLAIMS = (
    Claim(
        "pf-vit beats mae-vit",
        "PF-ViT recognises more than MAE-ViT",
        "pf-vit",
        "mae-vit",
        {"rafdb": 1.00, "affectnet8": 1.68, "ferplus": 0.98},
    ),
    Claim(
        "mae on faces beats supervised ImageNet",
        "MAE pre-training on faces beats supervised pre-training on ImageNet",
        "mae-vit",
        "sl-vit",
        {"rafdb": 3.85, "affectnet8": 4.14, "ferplus": 1.27},
    ),
    Claim(
        "mae on faces beats mae on ImageNet",
        "MAE pre-training on faces beats MAE pre-training on ImageNet",
        "mae-vit",
        "mae-vit-imagenet",
    ),
    Claim("mae beats scratch", "MAE pre-training beats none", "mae-vit", "scratch", of_the_paper=False),
    Claim(
        "augmentation helps",
        "augmentation helps MAE-ViT",
        "mae-vit",
        "mae-vit-plain",
        {"rafdb": 0.85, "affectnet8": 0.69, "ferplus": 1.18},
    ),
    Claim(
        "strong recipe helps",
        "the strong recipe helps MAE-ViT",
        "mae-vit-strong",
        "mae-vit",
        of_the_paper=False,
    ),
    Claim(
        "separator matters",
        "the separator matters (without it, Δ checks emotions)",
        "pf-vit",
        "no-separator",
        {"rafdb": 1.4, "affectnet8": 3.5, "ferplus": 1.5},
    ),
    Claim(
        "separator matters, blind",
        "the separator matters (without it, Δ tells real from fake)",
        "pf-vit",
        "no-separator-blind",
        {"rafdb": 1.4, "affectnet8": 3.5, "ferplus": 1.5},
    ),
    Claim(
        "Δ that checks emotions",
        "without a separator, a Δ that checks emotions beats one that does not",
        "no-separator",
        "no-separator-blind",
    ),
    Claim("φ beats tokens", "a face net as φ beats the cosine of the tokens", "phi-face", "phi-tokens"),
    Claim("φ beats ResNet", "a face net as φ beats a ResNet of ImageNet", "phi-face", "phi-resnet"),
    Claim("mask tokens", "mask tokens matter", "pf-vit", "multi-task-0"),
    Claim("less hidden is better", "Multi-Task MAE recognises more with less hidden", "multi-task-0", "multi-task-75"),
    Claim("mae-vit beats multi-task", "MAE-ViT beats Multi-Task MAE", "mae-vit", "multi-task-50"),
    Claim("larger is better", "a larger encoder recognises more", "pf-vit", "pf-vit-t"),
    Claim(
        "adversary helps",
        "the adversary helps to recognise",
        "pf-vit",
        "without-adv",
        of_the_paper=False,
    ),
)
