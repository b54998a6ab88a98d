"""PF-MAG: PF-ViT, its discriminator and their losses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pfcluster.config.validation import require, require_fraction, require_min, require_positive

DiscriminatorTransform = Literal["flip", "colour", "translation", "cutout"]


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights λ of the terms of PF-ViT's loss (docs/concepts/method.md, Losses). With automatic loss balancing the
    terms are normalised to equal magnitude first.
    """

    cls: float = 1.0
    """Classification of the emotion tokens."""
    adv: float = 0.1
    """Adversarial term."""
    rec: float = 3.0
    """Reconstruction of the input, and of neutral inputs by their poker face."""
    ort: float = 0.1
    """Orthogonality of the emotion view and the poker face."""
    confusion: float = 0.0
    """Domain confusion against an auxiliary net that classifies the emotion from f_p (docs/guides/pf-mag.md); 0
    builds no such net. Not in the paper."""

    def __post_init__(self) -> None:
        require_min(0, "pf_mag.weights", self, "cls", "adv", "rec", "ort", "confusion")


@dataclass(frozen=True, kw_only=True)
class PfMagConfig:
    """PF-MAG: PF-ViT and its discriminator (docs/concepts/method.md, section 3)."""

    weights: LossWeights = field(default_factory=LossWeights)
    loss_balancing: Literal["auto", "fixed"] = "auto"
    """"auto" divides each loss term by its mean magnitude over the first `loss_balancing_steps` steps after the
    warm-up, then keeps the divisors; "fixed" uses the weights as they are."""
    loss_balancing_steps: int = 20
    """Steps over which automatic loss balancing averages the magnitudes."""
    warmup_steps: int = 0
    """First steps in which PF-ViT trains on reconstruction and classification only, so that the generator's new pixel
    head produces images before the adversarial loss begins. The discriminator trains on real and generated images
    meanwhile."""
    warmup_rec: float = 10.0
    """Weight of the reconstruction loss (mean squared error) during the warm-up."""
    warmup_cls: float = 0.3
    """Weight of the classification loss during the warm-up."""
    adv_ramp_steps: int = 0
    """Steps after the warm-up over which the adversarial weight grows linearly from 0; 0 applies it in full at once."""
    identity_net: Literal["facenet", "resnet", "run", "tokens"] = "tokens"
    """Frozen feature extractor φ of the orthogonality loss: InceptionResnetV1 trained on VGGFace2 ("facenet"), timm's
    ResNet-50 trained on ImageNet ("resnet"), or a classifier trained with pfcluster ("run"), best on identities
    (data.target). "tokens" uses none: the cosine of the tokens themselves."""
    identity_net_weights: str | None = None
    """State-dict file of the identity net; None downloads facenet-pytorch's (107 MB) or timm's (102 MB) once. The run
    folder for identity_net "run"."""
    identity_net_layer: Literal["feature_map", "embedding"] = "feature_map"
    """Features of the identity net: the flattened last feature map before pooling, or the pooled embedding."""
    discriminator_emotions: bool = True
    """Whether the discriminator also classifies emotions; otherwise it only separates real from generated images
    (docs/concepts/method.md, Ablations 2)."""
    fusion: Literal["cross", "self"] = "cross"
    """"self" replaces the generator's cross-attention from mask tokens with self-attention over the encoder's tokens
    (docs/concepts/method.md, Ablations 3)."""
    mask_ratio: float = 0.0
    """Fraction of patches hidden from the encoder in training and replaced by mask tokens, in [0, 1): Multi-Task MAE
    (docs/concepts/method.md, Ablations 4). Only with fusion "self"."""
    fake_class_targets: Literal["ignore", "zero", "source"] = "ignore"
    """Targets of the discriminator's emotion outputs for generated images: left out of the loss, all zero, or the label
    of the photo that the image was generated from. With "source" the discriminator learns to detect residual
    emotion in poker faces."""
    r1: float = 0.0
    """Weight of the R1 gradient penalty on real images (Mescheder et al. 2018); 0 is off. Not with ZeRO-3."""
    separator_ratio: float = 0.25
    """Hidden width of the separator's two layers over the encoder's width. 0 removes the separator, and with it the
    poker face and the orthogonality loss (docs/concepts/method.md, Ablations 2)."""
    class_mask_bias: float | None = None
    """Initial value of an additional learned bias in the class token's mask a = σ(...); 3 starts with f_e = 0.95 f for
    the class token, while patch tokens start at 0.5 f. None adds no bias."""
    refine_channels: int = 0
    """Hidden channels of a residual 3x3 convolution over the generated image, which sees across patch borders and
    is initialised to the identity; 0 has none."""
    discriminator_patch_gain: float = 1.0
    """As model.patch_gain, for the discriminator's patch embedding."""
    discriminator_emotion_weight: float = 1.0
    """Weight of each emotion output for real images in the discriminator's loss, relative to 1 for their real/fake
    output."""
    discriminator_pretrain_steps: int = 0
    """First steps of the warm-up in which the discriminator trains only on the emotions of real images."""
    discriminator_updates: int = 1
    """Discriminator updates per update of PF-ViT, on the same batch and generated images with new noise and
    augmentation."""
    real_label_smoothing: float = 0.0
    """One-sided label smoothing, in [0, 1): the real/fake target of real images is 1 minus this (Salimans et al.
    2016)."""
    discriminator_augment: tuple[DiscriminatorTransform, ...] = ()
    """DiffAugment transforms of the discriminator's inputs, real and generated alike (Zhao et al. 2020)."""
    instance_noise: float = 0.0
    """Standard deviation of Gaussian noise added to the discriminator's inputs, which lie in -1..1 (Sønderby et al.
    2017)."""
    grad_norms_every: int = 100
    """Steps between two measurements of each loss term's gradient norm at tokens and images (docs/guides/pf-mag.md).
    One costs about two steps and does not change training; 0 is off."""

    def __post_init__(self) -> None:
        require_min(0, "pf_mag", self, "grad_norms_every", "warmup_steps", "warmup_cls", "r1", "separator_ratio")
        require_min(1, "pf_mag", self, "loss_balancing_steps", "discriminator_updates")
        require_min(0, "pf_mag", self, "adv_ramp_steps", "refine_channels", "discriminator_pretrain_steps")
        require_min(0, "pf_mag", self, "instance_noise")
        require_positive("pf_mag", self, "warmup_rec", "discriminator_patch_gain", "discriminator_emotion_weight")
        require_fraction("pf_mag", self, "mask_ratio", "real_label_smoothing", below_one=True)
        unique = len(set(self.discriminator_augment)) == len(self.discriminator_augment)
        require(unique, "pf_mag.discriminator_augment", self.discriminator_augment, "name each transform once")
        self._check_model()
        self._check_discriminator()

    def _check_model(self) -> None:
        """Combinations of separator, fusion and identity net."""
        mask_tokens = 'be "self" with pf_mag.mask_ratio: the cross fusion has mask tokens for all patches'
        require(self.mask_ratio == 0 or self.fusion == "self", "pf_mag.fusion", self.fusion, mask_tokens)
        net, weights = self.identity_net, self.identity_net_weights
        unused = 'be "tokens" with pf_mag.separator_ratio 0: without a separator there is no L_ort to use it'
        require(self.separator_ratio > 0 or net == "tokens", "pf_mag.identity_net", net, unused)
        named = 'be "facenet", "resnet" or "run" where pf_mag.identity_net_weights is given'
        require(weights is None or net != "tokens", "pf_mag.identity_net", net, named)
        missing = 'not be "run" without pf_mag.identity_net_weights, the folder of a run'
        require(net != "run" or weights is not None, "pf_mag.identity_net", net, missing)
        for name, value, off in (
            ("weights.confusion", self.weights.confusion, 0),
            ("class_mask_bias", self.class_mask_bias, None),
        ):
            requirement = f"be {off} with pf_mag.separator_ratio 0: there is no separator"
            require(self.separator_ratio > 0 or value == off, f"pf_mag.{name}", value, requirement)

    def _check_discriminator(self) -> None:
        """Combinations of the discriminator's options."""
        unused = "with pf_mag.discriminator_emotions off: there are no emotion outputs"
        for name, off in (("discriminator_emotion_weight", 1), ("discriminator_pretrain_steps", 0)):
            value = getattr(self, name)
            require(self.discriminator_emotions or value == off, f"pf_mag.{name}", value, f"be {off} {unused}")
        steps = self.discriminator_pretrain_steps
        within = f"be at most pf_mag.warmup_steps = {self.warmup_steps}: they are part of the warm-up"
        require(steps <= self.warmup_steps, "pf_mag.discriminator_pretrain_steps", steps, within)

    @property
    def transforms_discriminator_input(self) -> bool:
        """Whether the discriminator's inputs are augmented or noisy."""
        return bool(self.discriminator_augment) or self.instance_noise > 0
