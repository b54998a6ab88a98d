"""Networks, MAE's masking and the classification loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pfcluster.config.validation import require, require_fraction, require_min, require_positive

CNN_ONLY = 'be "cnn" with model.cnn_widths or model.cnn_convolutions'


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder, and the decoder that MAE, the generator and the discriminator share (docs/concepts/method.md,
    Symbols)."""

    architecture: Literal["vit", "cnn"] = "vit"
    """"cnn" is the small convolutional net used as judge of poker faces; fine-tuning only."""
    patch: int = 6
    """Side of a square patch in pixels."""
    width: int = 128
    """Encoder embedding dimension, D."""
    depth: int = 4
    """Number of encoder blocks."""
    heads: int = 4
    """Number of encoder attention heads."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP over the block's width."""
    patch_gain: float = 1.0
    """Gain of the Xavier initialisation of the encoder's patch embedding; 1 is MAE's. Small nets trained for few steps
    learn sooner with 4, because an expression changes a patch little compared with its brightness and position
    embedding."""
    stem_channels: tuple[int, ...] = ()
    """Channels of the stages of a convolutional stem in place of the linear patch embedding. Each has stride 2, so
    `model.patch` is 2 to the power of their number. MAE masks the convolutions. Not in the paper; small nets learn real
    faces sooner with it (docs/guides/fine-tuning.md)."""
    cnn_widths: tuple[int, ...] = (24, 48, 96, 160)
    """Channels of the stages of the convolutional net, each at half the resolution of the one before; only with
    architecture "cnn"."""
    cnn_convolutions: int = 1
    """Convolutions in each of these stages."""
    drop_path: float = 0.0
    """Stochastic depth in fine-tuning: probability of dropping the last block's residual branches, increasing
    linearly from 0 at the first block (Huang et al. 2016)."""
    decoder_width: int = 96
    """Decoder embedding dimension, d."""
    decoder_depth: int = 2
    """Number of decoder blocks."""
    decoder_heads: int = 4
    """Number of decoder attention heads."""
    init: str | None = None
    """Pre-trained weights: a run folder, a checkpoint folder or file, a folder of the Hugging Face hub, or `timm:NAME`
    (downloaded unless cached); None trains from scratch."""
    init_normalisation: Literal["auto", "imagenet", "half", "unit"] = "auto"
    """Normalisation of the images that weights from elsewhere were trained with. "imagenet": its mean and std; "half":
    images in -1..1; "unit": images in 0..1; "auto" reads it from the weights' config.json, else guesses and says so."""

    def __post_init__(self) -> None:
        integers = (
            "patch", "width", "depth", "heads", "decoder_width", "decoder_depth", "decoder_heads", "cnn_convolutions"
        )  # fmt: skip
        require_min(1, "model", self, *integers)
        for width, heads in (("width", "heads"), ("decoder_width", "decoder_heads")):
            channels, count = getattr(self, width), getattr(self, heads)
            require(channels % 4 == 0, f"model.{width}", channels, "be a multiple of 4 (2-D sin-cos positions)")
            require(channels % count == 0, f"model.{width}", channels, f"be a multiple of model.{heads} = {count}")
        require_fraction("model", self, "drop_path", below_one=True)
        require_positive("model", self, "mlp_ratio", "patch_gain")
        stages = self.stem_channels
        require(min(stages, default=1) >= 1, "model.stem_channels", stages, "be positive")
        fits = not stages or self.patch == 2 ** len(stages)
        require(fits, "model.stem_channels", stages, f"have n stages with 2^n = model.patch = {self.patch}")
        widths = self.cnn_widths
        require(len(widths) > 0 and min(widths) >= 1, "model.cnn_widths", widths, "be one or more positive numbers")
        given = (widths, self.cnn_convolutions) != ((24, 48, 96, 160), 1)
        require(not given or self.architecture == "cnn", "model.architecture", self.architecture, CNN_ONLY)
        unused = not stages or self.architecture == "vit"
        require(unused, "model.stem_channels", stages, 'be empty with model.architecture "cnn"')
        linear = "be 1 with model.stem_channels: it scales the linear patch embedding that the stem replaces"
        require(self.patch_gain == 1 or not stages, "model.patch_gain", self.patch_gain, linear)


@dataclass(frozen=True, kw_only=True)
class MaeConfig:
    """Masked-autoencoder pre-training (He et al. 2021, section 3; docs/concepts/method.md, section 1)."""

    mask_ratio: float = 0.75
    """Fraction of patches hidden from the encoder, in (0, 1)."""
    norm_pixels: bool = True
    """Reconstruct each patch normalised by its own mean and variance."""

    def __post_init__(self) -> None:
        require(0 < self.mask_ratio < 1, "mae.mask_ratio", self.mask_ratio, "lie in (0, 1)")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """The cross-entropy loss of fine-tuning and of PF-MAG."""

    class_balance: Literal["none", "inverse"] = "none"
    """"inverse" weights each class by the inverse of its frequency in the training split."""
    label_smoothing: float = 0.0
    """Label smoothing, in [0, 1)."""

    def __post_init__(self) -> None:
        require_fraction("classifier", self, "label_smoothing", below_one=True)
