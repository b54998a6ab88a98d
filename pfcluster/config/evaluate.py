"""Evaluation during and after training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pfcluster.config.validation import require, require_fraction, require_min, require_not_huge

SHORTEST_INTERVAL = 1e-6
"""Smallest evaluate.every_epochs, by which numbers of epochs are divided. An interval is at least one step."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is measured, when, and which score selects the checkpoint."""

    every_epochs: float = 1.0
    """Epochs between two evaluations on the selection split; at least one step."""
    batch_size: int = 256
    """Images per forward pass and process."""
    metric: Literal["accuracy", "macro_f1"] = "accuracy"
    """Score that selects the checkpoint."""
    selection_split: Literal["validation", "test"] = "validation"
    """Split that selects the checkpoint. "test" is the paper's protocol and optimistic; reports label such runs."""
    select_from: float = 0.0
    """Fraction of the steps, in [0, 1), before which evaluations select no checkpoint; for PF-MAG of those after the
    warm-up. From a fine-tuned start the accuracy of PF-ViT hardly changes while its poker faces still improve."""
    final_split: Literal["test", "validation"] = "test"
    """Split that is measured at the end. "validation" does not touch the test split, as a sweep requires; the same run
    continued with "test" measures it without further training."""
    judge: str | None = None
    """Run folder of a separately trained classifier that rates how neutral poker faces are; None skips this."""
    identity_net: str | None = None
    """Run folder of an identity classifier (data.target identity) that measures how much of the identity poker faces
    keep; None takes FaceNet if that is the run's pf_mag.identity_net, else skips this."""
    fid: str | None = None
    """Features for the Fréchet distance between poker faces and photos: "inception" (downloads its weights), a file
    with them, or a run folder, whose distance is not an FID; None skips this."""
    n_poker_faces: int = 1000
    """Images of the final split whose poker faces are measured."""
    n_probe_images: int = 0
    """Training images on whose tokens linear probes for emotion, and for identity if it is known, are fitted; 0 skips
    the probes."""
    n_probe_identities: int = 40
    """Largest number of classes of the identity probes: the identities with the most images."""
    mask_ratios: tuple[float, ...] = ()
    """Fractions of hidden patches, each in [0, 1), at which a run with pf_mag.fusion "self" is tested as well."""
    grid_every: float = 1.0
    """Epochs between two image grids of the same validation faces (pictures/steps); PF-MAG only. 0 draws none."""

    def __post_init__(self) -> None:
        require_min(SHORTEST_INTERVAL, "evaluate", self, "every_epochs")
        require_not_huge("evaluate", self, "every_epochs", "grid_every")
        require_min(1, "evaluate", self, "batch_size", "n_poker_faces")
        require_min(0, "evaluate", self, "n_probe_images", "grid_every")
        require_min(2, "evaluate", self, "n_probe_identities")
        require_fraction("evaluate", self, "select_from", below_one=True)
        valid = all(0 <= ratio < 1 for ratio in self.mask_ratios)
        require(valid, "evaluate.mask_ratios", self.mask_ratios, "lie in [0, 1)")
        require(
            self.final_split == "test" or self.selection_split == "validation",
            "evaluate.selection_split",
            self.selection_split,
            'be "validation" with evaluate.final_split validation, which must not touch the test split',
        )
