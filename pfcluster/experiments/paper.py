"""The paper's results as far as its text states them (Li et al., PF-ViT, arXiv version), and its claims.

Accuracies in % by dataset and cell.
"""

from __future__ import annotations

from dataclasses import dataclass

from pfcluster.config.starts import EQUAL_EPOCHS

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
"""Accuracy in % of a PF-ViT trained on the first dataset and tested on the second."""
FID = {"rafdb": 100.38}
"""FID (InceptionV3) of poker faces. The paper warns that failed de-expression can have a lower FID."""
COSTS = {
    "train_parameters": 145.1e6,
    "test_parameters": 89.7e6,
    "train_gflop": 15.2,
    "test_gflop": 9.0,
}
"""Figures of ViT-B. The paper states neither the image size nor how FLOPs were counted; ours count a multiply-add as
two."""


@dataclass(frozen=True)
class Claim:
    """The claim that cell `better` has a higher test accuracy than cell `worse`."""

    name: str
    text: str
    better: str
    worse: str
    gain: dict[str, float] | None = None
    """The paper's difference in percentage points by dataset; None if it states none."""
    in_paper: bool = True
    """False for comparisons that the paper does not make."""


CLAIMS = (
    Claim(
        "pf-vit beats mae-vit",
        "PF-ViT outperforms MAE-ViT",
        "pf-vit",
        "mae-vit",
        {"rafdb": 1.00, "affectnet8": 1.68, "ferplus": 0.98},
    ),
    Claim(
        "pf-vit beats mae-vit of as many epochs",
        "PF-ViT outperforms MAE-ViT of as many epochs",
        "pf-vit",
        EQUAL_EPOCHS,
        in_paper=False,
    ),
    Claim(
        "mae on faces beats supervised ImageNet",
        "MAE pre-training on faces outperforms supervised pre-training on ImageNet",
        "mae-vit",
        "sl-vit",
        {"rafdb": 3.85, "affectnet8": 4.14, "ferplus": 1.27},
    ),
    Claim(
        "mae on faces beats mae on ImageNet",
        "MAE pre-training on faces outperforms MAE pre-training on ImageNet",
        "mae-vit",
        "mae-vit-imagenet",
    ),
    Claim(
        "mae beats scratch", "MAE pre-training outperforms training from scratch", "mae-vit", "scratch", in_paper=False
    ),
    Claim(
        "augmentation helps",
        "augmentation improves MAE-ViT",
        "mae-vit",
        "mae-vit-plain",
        {"rafdb": 0.85, "affectnet8": 0.69, "ferplus": 1.18},
    ),
    Claim(
        "strong recipe helps",
        "the strong recipe improves MAE-ViT",
        "mae-vit-strong",
        "mae-vit",
        in_paper=False,
    ),
    Claim(
        "separator matters",
        "the separator improves PF-ViT (without it: discriminator with emotions)",
        "pf-vit",
        "no-separator",
        {"rafdb": 1.4, "affectnet8": 3.5, "ferplus": 1.5},
    ),
    Claim(
        "separator matters, real/fake only",
        "the separator improves PF-ViT (without it: discriminator real/fake only)",
        "pf-vit",
        "no-separator-real-fake",
        {"rafdb": 1.4, "affectnet8": 3.5, "ferplus": 1.5},
    ),
    Claim(
        "discriminator with emotions",
        "without a separator, a discriminator with emotions outperforms one without",
        "no-separator",
        "no-separator-real-fake",
    ),
    Claim(
        "face net beats tokens",
        "φ = face net outperforms the cosine of the tokens",
        "identity-net-face",
        "identity-net-tokens",
    ),
    Claim(
        "face net beats ResNet",
        "φ = face net outperforms φ = ResNet-50 of ImageNet",
        "identity-net-face",
        "identity-net-resnet",
    ),
    Claim("mask tokens", "mask tokens improve PF-ViT", "pf-vit", "multi-task-0"),
    Claim("less masking is better", "Multi-Task MAE improves with less masking", "multi-task-0", "multi-task-75"),
    Claim("mae-vit beats multi-task", "MAE-ViT outperforms Multi-Task MAE", "mae-vit", "multi-task-50"),
    Claim("larger is better", "a larger encoder improves PF-ViT", "pf-vit", "pf-vit-t"),
    Claim(
        "adversary helps",
        "the adversarial loss improves accuracy",
        "pf-vit",
        "without-adv",
        in_paper=False,
    ),
)
