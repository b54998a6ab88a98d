"""Optimizers and learning-rate schedules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pfcluster.config.validation import require, require_fraction, require_min, require_positive


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """One optimizer and its learning-rate schedule."""

    algorithm: Literal["adam", "adamw"] = "adamw"
    """"adam" does not support weight decay here."""
    lr: float = 1e-3
    """Peak learning rate. It is not scaled with the batch size."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of Adam's two moments, each in [0, 1)."""
    weight_decay: float = 0.05
    """Decoupled weight decay of matrices; biases, norms and tokens have none. AdamW only."""
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    """After the warm-up: a half cosine to zero; or multiplication by `plateau_factor` after `plateau_patience`
    evaluations without a better validation score; or constant."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    plateau_patience: int = 30
    """Evaluations without improvement before the plateau schedule lowers the rate."""
    plateau_factor: float = 0.1
    """Factor by which the plateau schedule multiplies the learning rate, in (0, 1)."""
    layer_decay: float = 1.0
    """Factor between the learning rates of a block and of the block above it, in fine-tuning (Clark et al. 2020; MAE
    uses 0.65 to 0.75); 1 gives all layers the same rate."""
    encoder_lr_factor: float = 1.0
    """Learning rate of the encoder relative to `lr`. PF-MAG only."""
    clip_norm: float = 0.0
    """Largest global gradient norm; 0 disables clipping."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, in [0, 1). The average is evaluated, and loaded by later
    runs, in place of the weights; 0 keeps none."""

    def check(self, section: str) -> None:
        """Raises ConfigError for an invalid field, which it names as one of `section`: RunConfig has two optimizers."""
        require_fraction(section, self, "ema", below_one=True)
        require_positive(section, self, "lr")
        require(0 < self.layer_decay <= 1, f"{section}.layer_decay", self.layer_decay, "lie in (0, 1]")
        require(all(0 <= beta < 1 for beta in self.betas), f"{section}.betas", self.betas, "lie in [0, 1)")
        require_min(0, section, self, "encoder_lr_factor", "weight_decay", "warmup_steps", "clip_norm")
        require_min(1, section, self, "plateau_patience")
        require(0 < self.plateau_factor < 1, f"{section}.plateau_factor", self.plateau_factor, "lie in (0, 1)")
        none = self.weight_decay == 0 or self.algorithm != "adam"
        require(none, f"{section}.weight_decay", self.weight_decay, "be 0 for adam; adamw has one")


def default_discriminator_optim() -> OptimConfig:
    """Adam at 1e-4 (docs/concepts/method.md, section 3). The paper's text has lost the betas: (0.5, 0.999) is the
    usual choice for GANs.
    """
    return OptimConfig(algorithm="adam", lr=1e-4, betas=(0.5, 0.999), weight_decay=0.0, schedule="constant")
