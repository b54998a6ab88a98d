"""PF-MAG: PF-ViT, its discriminator and their losses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pfcluster.config.validation import require, require_fraction, require_min, require_positive


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
    anchor: float = 0.0
    """Mean absolute difference between the poker face and the reconstruction, which is held fixed: it keeps what is not
    expression as it is (docs/guides/pf-mag.md). Not in the paper."""

    swap: float = 0.0
    """Swap-cycle term: a neutral photo is given another one's expression by swapped tokens, and the poker face of the
    result is compared with the photo (docs/guides/pf-mag.md). Not in the paper."""

    def __post_init__(self) -> None:
        require_min(0, "pf_mag.weights", self, "cls", "adv", "rec", "ort", "confusion", "anchor", "swap")


@dataclass(frozen=True, kw_only=True)
class PfMagConfig:
    """PF-MAG: PF-ViT and its discriminator (docs/concepts/method.md, section 3)."""

    weights: LossWeights = field(default_factory=LossWeights)
    decoder_init: str | None = None
    """Weights of the MAE whose decoder starts the generator, where `model.init` is a fine-tuned classifier: a run
    folder, a checkpoint folder or file. None takes the decoder of `model.init` if it has one. A classifier in
    `model.init` starts PF-ViT's encoder and classification head."""
    loss_balancing: Literal["auto", "fixed"] = "auto"
    """"auto" divides each loss term by its mean magnitude over the first `loss_balancing_steps` steps after the
    warm-up (the swap cycle by the reconstruction's), then keeps the divisors; "fixed" uses the weights as they are."""
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
    warmup_lr: float | None = None
    """Learning rate during the warm-up, reached after `optim.warmup_steps` and then constant; the schedule of `optim`
    begins after the warm-up. None follows the schedule of `optim` from the first step."""
    warmup_discriminator: bool = True
    """Whether the discriminator trains during the warm-up."""
    generate_every: int = 1
    """Images are generated from every n-th image of a batch; all images of the batch count in the classification
    loss. Divides `batch_size`."""
    encoder_grad_share: float = 1.0
    """Factor, in [0, 1], of the gradient that reaches the encoder from generated images and L_ort; the gradient of
    the classification loss reaches it in full."""
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
    fusion_bias: float | None = None
    """Initial value, at a patch's own position, of a learned relative position bias in the attention of the cross
    fusion; 4 starts with each mask token attending mostly to the token of its own patch. None adds no bias."""
    mask_ratio: float = 0.0
    """Fraction of patches hidden from the encoder in training and replaced by mask tokens, in [0, 1): Multi-Task MAE
    (docs/concepts/method.md, Ablations 4). Only with fusion "self"."""
    fake_class_targets: Literal["ignore", "zero", "source"] = "ignore"
    """Targets of the discriminator's emotion outputs for generated images: left out of the loss, all zero, or the label
    of the photo that the image was generated from. With "source" the discriminator learns to detect residual
    emotion in poker faces."""
    r1: float = 0.0
    """Weight of the R1 gradient penalty on real images (Mescheder et al. 2018); 0 is off. Not with ZeRO-3."""
    r1_every: int = 1
    """Steps between two computations of the R1 penalty, whose weight is multiplied by this number: lazy regularisation
    (Karras et al. 2020)."""
    separator_ratio: float = 0.25
    """Hidden width of the separator's two layers over the encoder's width. 0 removes the separator, and with it the
    poker face and the orthogonality loss (docs/concepts/method.md, Ablations 2)."""
    class_mask_bias: float | None = None
    """Initial value of an additional learned bias in the class token's mask a = σ(...); 3 starts with f_e = 0.95 f for
    the class token, while patch tokens start at 0.5 f. None adds no bias."""
    patch_mask_bias: float | None = None
    """The same for the patch tokens: -2 starts with f_p = 0.88 f for them. None adds no bias."""
    erasure_start: int | None = None
    """Training steps before the erasure of f_p begins, at most `warmup_steps`. An offset computed from the classifier's
    output is subtracted from the identity tokens, so that their mean is the same for every class and no linear
    classifier can predict the emotion (models/erasure.py). None: no erasure. Not in the paper."""
    patch_overlap: int = 0
    """Pixels by which the generator's output for a patch extends over each neighbour; overlapping outputs are added
    up. At most `model.patch`. 0 generates each patch separately."""
    discriminator_init: Literal["decoder", "classifier"] = "decoder"
    """Initial discriminator: a copy of the MAE decoder with a new patch embedding, as in the paper; or a copy of the
    fine-tuned classifier in `model.init`, which recognises emotions from the start, with a real/fake output for each
    patch token, averaged."""
    discriminator_patch_gain: float = 1.0
    """As model.patch_gain, for the patch embedding of a discriminator that starts from the decoder."""
    discriminator_updates: int = 1
    """Discriminator updates per update of PF-ViT, on the same batch and generated images with new augmentation."""
    grad_norms_every: int = 100
    """Steps between two measurements of each loss term's gradient norm at tokens and images (docs/guides/pf-mag.md).
    One costs about two steps and does not change training; 0 is off."""

    def __post_init__(self) -> None:
        require_min(0, "pf_mag", self, "grad_norms_every", "warmup_steps", "warmup_cls", "r1", "separator_ratio")
        require_min(1, "pf_mag", self, "loss_balancing_steps", "discriminator_updates", "r1_every", "generate_every")
        require_min(0, "pf_mag", self, "patch_overlap")
        start = self.erasure_start
        require(start is None or start >= 0, "pf_mag.erasure_start", start, "be None or at least 0")
        require(self.warmup_lr is None or self.warmup_lr > 0, "pf_mag.warmup_lr", self.warmup_lr, "be positive")
        require_fraction("pf_mag", self, "encoder_grad_share")
        require_positive("pf_mag", self, "warmup_rec", "discriminator_patch_gain")
        require_fraction("pf_mag", self, "mask_ratio", below_one=True)
        self._check_model()
        self._check_discriminator()

    def _check_model(self) -> None:
        """Combinations of separator, fusion and identity net."""
        mask_tokens = 'be "self" with pf_mag.mask_ratio: the cross fusion has mask tokens for all patches'
        require(self.mask_ratio == 0 or self.fusion == "self", "pf_mag.fusion", self.fusion, mask_tokens)
        own_bias = 'be None with pf_mag.fusion "self": only the cross fusion has a position bias'
        require(self.fusion_bias is None or self.fusion == "cross", "pf_mag.fusion_bias", self.fusion_bias, own_bias)
        net, weights = self.identity_net, self.identity_net_weights
        unused = 'be "tokens" with pf_mag.separator_ratio 0: without a separator there is no L_ort to use it'
        require(self.separator_ratio > 0 or net == "tokens", "pf_mag.identity_net", net, unused)
        named = 'be "facenet", "resnet" or "run" where pf_mag.identity_net_weights is given'
        require(weights is None or net != "tokens", "pf_mag.identity_net", net, named)
        missing = 'not be "run" without pf_mag.identity_net_weights, the folder of a run'
        require(net != "run" or weights is not None, "pf_mag.identity_net", net, missing)
        all_patches = "be 0 with pf_mag.erasure_start: the erasure is fitted for each place, and needs all patches"
        require(self.erasure_start is None or self.mask_ratio == 0, "pf_mag.mask_ratio", self.mask_ratio, all_patches)
        seen = "be 0 with pf_mag.mask_ratio: swapped tokens are those of all patches"
        require(self.weights.swap == 0 or self.mask_ratio == 0, "pf_mag.weights.swap", self.weights.swap, seen)
        for name, value, off in (
            ("weights.confusion", self.weights.confusion, 0),
            ("weights.anchor", self.weights.anchor, 0),
            ("weights.swap", self.weights.swap, 0),
            ("class_mask_bias", self.class_mask_bias, None),
            ("patch_mask_bias", self.patch_mask_bias, None),
            ("erasure_start", self.erasure_start, None),
        ):
            requirement = f"be {off} with pf_mag.separator_ratio 0: there is no separator"
            require(self.separator_ratio > 0 or value == off, f"pf_mag.{name}", value, requirement)

    def _check_discriminator(self) -> None:
        """Combinations of the discriminator's options."""
        gain, origin = self.discriminator_patch_gain, self.discriminator_init
        own = 'be 1 with pf_mag.discriminator_init "classifier": its patch embedding is that of the classifier'
        require(origin == "decoder" or gain == 1, "pf_mag.discriminator_patch_gain", gain, own)
