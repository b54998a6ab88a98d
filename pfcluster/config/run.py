"""A run is a value: `RunConfig` says everything that decides what a run computes.

Frozen dataclasses of plain values, checked where they are made. Launchers, arrays and trials carry them as JSON
(config/io.py); command lines are built from them at the edge (`jobs/launch.py pretrain --model.depth 6`). No torch
in this file: reading a config must cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Objective = Literal["mae", "finetune", "pf_mag"]
Backend = Literal["auto", "ddp", "fsdp2", "zero1", "zero2", "zero3"]
DiscriminatorTransform = Literal["flip", "colour", "translation", "cutout"]


class ConfigError(ValueError):
    """A configuration that cannot be run: says which field, which value, and what would do."""


def _require(condition: bool, name: str, value: object, wanted: str) -> None:
    if not condition:
        raise ConfigError(f"{name} must {wanted}, got {value!r}")


def _require_share(name: str, value: float, *, below_one: bool = False) -> None:
    upper = value < 1 if below_one else value <= 1
    _require(value >= 0 and upper, name, value, "lie in [0, 1)" if below_one else "lie in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """The embedded data: procedurally rendered faces (`data/synthetic/dataset.py`). Splits have disjoint identities."""

    train: int = 6000
    """Training faces."""
    validation: int = 1000
    """Faces that choose checkpoints."""
    test: int = 2000
    """Faces looked at once, at the end."""
    identities: int = 1000
    """People in the training split; validation and test have people of their own, in proportion to their faces."""
    classes: tuple[str, ...] = ()
    """Expressions shown; none names all eight."""
    imbalance: float = 1.0
    """Faces of the most frequent class for each face of the rarest; 1 is balanced. Training split only."""
    label_noise: float = 0.0
    """Chance that one of the annotators errs on a training face; the majority's vote is the label."""
    annotators: int = 10
    """Annotators a face."""
    nuisance: float = 1.0
    """Share of the range of pose, light, background, blur, noise and occlusion that is used; 0 is a studio."""
    min_intensity: float = 0.3
    """Strength of the weakest expression shown; the strongest has 1."""
    seed: int = 0
    """Of the faces, not of the training."""

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test", "identities", "annotators"):
            _require(getattr(self, name) >= 1, f"data.synthetic.{name}", getattr(self, name), "be at least 1")
        _require(self.imbalance >= 1, "data.synthetic.imbalance", self.imbalance, "be at least 1")
        _require_share("data.synthetic.label_noise", self.label_noise, below_one=True)
        _require_share("data.synthetic.nuisance", self.nuisance)
        _require_share("data.synthetic.min_intensity", self.min_intensity)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which faces, at which size."""

    shards: str | None = None
    """Folder made by shards/build.py, or its URL (http, https, s3, gs); None takes the embedded synthetic faces."""
    size: int = 48
    """Side of the square input in pixels; shards of another size are resized."""
    expected_name: str | None = None
    """Name that the shards' manifest must bear: guards against training on another dataset's folder."""
    limit: int | None = None
    """Use only so many training samples, drawn by the run's seed; None uses all."""
    target: Literal["emotion", "identity"] = "emotion"
    """What the classes are. "identity" trains and validates on the training split's people, every eighth of whose faces
    is kept out to validate, and has no test split: for a net that tells people apart."""
    max_bad_share: float = 0.01
    """A run stops once more than this share of a split's samples turned out unreadable."""
    sampling: Literal["uniform", "balanced"] = "uniform"
    """"balanced" shows every class equally often, rare samples therefore more than once an epoch."""
    order: Literal["auto", "full", "blocks"] = "auto"
    """"full" shuffles the whole split; "blocks" reads neighbouring samples together, for disks that seek; "auto" takes
    blocks for shards at a URL. Which it is changes the order of samples, not their number."""
    block: int = 512
    """Neighbouring samples of a block; a shard's, best."""
    shuffle_window: int = 8
    """Blocks that are shuffled into each other."""
    cache_mode: Literal["stream", "host", "device"] = "stream"
    """Decode each batch when it is wanted; or the training split once, into a file in `cache` that all processes of a
    machine map, or onto the device (3 · size² bytes a sample: 270,000 at 224 px are 41 GB)."""
    augment_on: Literal["device", "host"] = "device"
    """Where augmentation crops, turns and flips: the whole batch at once in floats on the device; or each image in
    bytes by the threads that read it, faster where the device is a CPU, or slow beside its CPUs. Rounding differs."""
    workers: int = 2
    """Threads that read ahead, a batch each; 0 reads when a step asks."""
    cache: str | None = None
    """Folder for what is fetched from a URL, and for data.cache_mode host; None: $PFCLUSTER_CACHE or
    ~/.cache/pfcluster."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self) -> None:
        _require(8 <= self.size <= 1024, "data.size", self.size, "lie in 8..1024 pixels")
        _require(self.limit is None or self.limit >= 1, "data.limit", self.limit, "be at least 1 or left out")
        _require_share("data.max_bad_share", self.max_bad_share)
        for name in ("block", "shuffle_window"):
            _require(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "be at least 1")
        late = 'be "device" with data.cache_mode device: the images are there already'
        _require(self.cache_mode != "device" or self.augment_on == "device", "data.augment_on", self.augment_on, late)
        emotions = 'be "emotion" with data.cache_mode host, whose file holds the samples as the shards label them'
        _require(self.cache_mode != "host" or self.target == "emotion", "data.target", self.target, emotions)
        _require(0 <= self.workers <= 256, "data.workers", self.workers, "lie in 0..256")
        together = 'be "auto" or "full" with data.sampling balanced: it goes round each class\'s own samples'
        _require(self.sampling == "uniform" or self.order != "blocks", "data.order", self.order, together)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of the training images, drawn anew for each sample and step, applied in one batch on the
    device.
    """

    flip: float = 0.5
    """Chance of a horizontal flip."""
    crop_scale: tuple[float, float] = (0.7, 1.0)
    """Range of the random resized crop's share of the image's area; (1, 1) crops nothing."""
    crop_ratio: tuple[float, float] = (0.9, 1.1)
    """Range of the crop's aspect ratio, width over height."""
    rotation: float = 8.0
    """Largest rotation in degrees, either way."""
    jitter: float = 0.2
    """Largest relative change of brightness, contrast and saturation."""
    erasing: float = 0.0
    """Chance that a random rectangle (2-20 % of the area) is greyed out (Zhong et al. 2017)."""
    mixup: float = 0.0
    """Both parameters of the Beta distribution of which share of a partner is blended in (Zhang et al. 2018); 0 blends
    none. Fine-tuning only. Partners are neighbours of the batch, the share is one for the whole step."""
    cutmix: float = 0.0
    """The same for a rectangle that is pasted in from the partner (Yun et al. 2019). With both each step takes one of
    them, by even chance."""

    def __post_init__(self) -> None:
        _require_share("augment.flip", self.flip)
        low, high = self.crop_scale
        _require(0 < low <= high <= 1, "augment.crop_scale", self.crop_scale, "be 0 < low <= high <= 1")
        low, high = self.crop_ratio
        _require(0 < low <= high, "augment.crop_ratio", self.crop_ratio, "be 0 < low <= high")
        _require(0 <= self.rotation <= 180, "augment.rotation", self.rotation, "lie in 0..180 degrees")
        _require_share("augment.jitter", self.jitter, below_one=True)
        _require_share("augment.erasing", self.erasing)
        for name in ("mixup", "cutmix"):
            _require(getattr(self, name) >= 0, f"augment.{name}", getattr(self, name), "be at least 0")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder, and the decoder that MAE, the generator and the discriminator share (docs/concepts/method.md,
    Symbols)."""

    architecture: Literal["vit", "cnn"] = "vit"
    """"cnn" is the small convolutional net that judges poker faces; only fine-tuning knows it."""
    patch: int = 6
    """Side of a square patch in pixels."""
    width: int = 128
    """Encoder channels, D."""
    depth: int = 4
    """Encoder blocks."""
    heads: int = 4
    """Encoder attention heads."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP over its width."""
    patch_gain: float = 1.0
    """Start of the encoder's patch embedding over Xavier's (MAE's own, 1). Small nets that train for few steps learn
    sooner from 4: an expression changes a patch by little beside its brightness and its position's embedding."""
    drop_path: float = 0.0
    """Chance with which fine-tuning leaves out the last block's branches for a sample, growing from 0 over the blocks
    (stochastic depth, Huang et al. 2016)."""
    decoder_width: int = 96
    """Decoder channels, d."""
    decoder_depth: int = 2
    """Decoder blocks."""
    decoder_heads: int = 4
    """Decoder attention heads."""
    init: str | None = None
    """Weights to start from: a run's folder, a checkpoint's folder or file, `timm:NAME` (needs the network or a cached
    download), or None for scratch."""

    def __post_init__(self) -> None:
        for name in ("patch", "width", "depth", "heads", "decoder_width", "decoder_depth", "decoder_heads"):
            _require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "be at least 1")
        for width, heads in (("width", "heads"), ("decoder_width", "decoder_heads")):
            channels, count = getattr(self, width), getattr(self, heads)
            _require(channels % 4 == 0, f"model.{width}", channels, "be a multiple of 4 (2-D sin-cos positions)")
            _require(channels % count == 0, f"model.{width}", channels, f"be a multiple of model.{heads} = {count}")
        _require_share("model.drop_path", self.drop_path, below_one=True)
        for name in ("mlp_ratio", "patch_gain"):
            _require(getattr(self, name) > 0, f"model.{name}", getattr(self, name), "be positive")


@dataclass(frozen=True, kw_only=True)
class MaeConfig:
    """Masked-autoencoder pre-training (He et al. 2021, section 3; docs/concepts/method.md, section 1)."""

    mask_ratio: float = 0.75
    """Share of patches hidden from the encoder, in (0, 1)."""
    norm_pixels: bool = True
    """Predict each patch normalised by its own mean and variance."""

    def __post_init__(self) -> None:
        _require(0 < self.mask_ratio < 1, "mae.mask_ratio", self.mask_ratio, "lie in (0, 1)")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """What the classification loss asks for, in fine-tuning and in PF-MAG."""

    class_balance: Literal["none", "inverse"] = "none"
    """"inverse" weights each class by the inverse of its frequency in the training split."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes, in [0, 1)."""

    def __post_init__(self) -> None:
        _require_share("classifier.label_smoothing", self.label_smoothing, below_one=True)


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """The λ of PF-ViT's loss (docs/concepts/method.md, Losses). With automatic balance they are shares of terms of
    equal magnitude.
    """

    cls: float = 1.0
    """Classification of the emotion tokens."""
    adv: float = 0.1
    """Fooling the discriminator."""
    rec: float = 3.0
    """Reconstruction of the input, and of neutral inputs by their own poker face."""
    ort: float = 0.1
    """Orthogonality of the emotion view and the poker face."""
    confusion: float = 0.0
    """Confusion of a small net that reads the emotion off f_p (docs/guides/pf-mag.md). Not the paper's; 0 has no such
    net."""

    def __post_init__(self) -> None:
        for name in ("cls", "adv", "rec", "ort", "confusion"):
            _require(getattr(self, name) >= 0, f"pf_mag.weights.{name}", getattr(self, name), "be at least 0")


@dataclass(frozen=True, kw_only=True)
class PfMagConfig:
    """PF-MAG: PF-ViT and the discriminator that trains it (docs/concepts/method.md, section 3)."""

    weights: LossWeights = field(default_factory=LossWeights)
    balance: Literal["auto", "fixed"] = "auto"
    """"auto" divides each term once by its mean magnitude over the first `balance_steps` steps after the warm-up."""
    balance_steps: int = 20
    """Steps whose magnitudes the automatic balance takes."""
    warmup_steps: int = 0
    """First steps that train on reconstruction and classification alone: the generator's new pixel head must emit
    images before it meets an adversary. Δ learns from real and generated images meanwhile."""
    warmup_rec: float = 10.0
    """λ_rec during the warm-up (on a mean squared error)."""
    warmup_cls: float = 0.3
    """λ_cls during the warm-up."""
    adv_ramp_steps: int = 0
    """Steps after the warm-up over which λ_adv grows linearly from 0 to its value; 0 starts with all of it."""
    identity_net: Literal["facenet", "resnet", "run", "tokens"] = "tokens"
    """φ of L_ort: InceptionResnetV1 trained on VGGFace2; timm's ResNet-50 trained on ImageNet; a classifier of ours,
    say one that tells people apart (data.target); or no net: the cosine of the tokens themselves."""
    identity_net_weights: str | None = None
    """φ's weights: a local state dict, None downloads facenet-pytorch's (107 MB) or timm's (102 MB) once; for "run" the
    run's folder."""
    identity_net_layer: Literal["feature_map", "embedding"] = "feature_map"
    """Which of φ's features: the last map before pooling, flattened, or the pooled embedding."""
    discriminator_emotions: bool = True
    """Whether Δ looks at emotions, or at real and generated alone (docs/concepts/method.md, Ablations 2)."""
    fusion: Literal["cross", "self"] = "cross"
    """"self" is the ablation without mask tokens: self-attention over the encoder's tokens (docs/concepts/method.md,
    Ablations 3)."""
    mask_ratio: float = 0.0
    """Share of patches hidden from the encoder in training, mask tokens in their places: Multi-Task MAE
    (docs/concepts/method.md, Ablations 4). Only with fusion "self"."""
    fake_class_targets: Literal["ignore", "zero", "source"] = "ignore"
    """Targets of Δ's emotion outputs for generated images in Δ's own loss: left out, all zero, or the emotion of the
    photo that an image was made from. With "source" Δ looks for what a poker face still shows of it."""
    r1: float = 0.0
    """Weight of Δ's R1 gradient penalty on real images (Mescheder et al. 2018); 0 leaves it out. Not with ZeRO-3."""
    separator_ratio: float = 0.25
    """Hidden width of the separator's two layers over the encoder's width; 0 leaves the separator out, and with it the
    poker face and L_ort (docs/concepts/method.md, Ablations 2)."""
    class_mask_bias: float | None = None
    """Start of a bias that the class token's mask a = σ(...) has besides, and learns: 3 begins with f_e = 0.95 f there,
    where the patches' halves are; None has none."""
    refine_channels: int = 0
    """Channels of a residual 3x3 convolution over the painted image, which sees across patches' edges and begins as the
    identity; 0 has none."""
    discriminator_patch_gain: float = 1.0
    """What `model.patch_gain` is to the encoder, for Δ's own new patch embedding."""
    discriminator_emotion_weight: float = 1.0
    """Weight of each emotion output of real images in L_Δ, beside 1 for their real/fake output."""
    discriminator_pretrain_steps: int = 0
    """First steps of the warm-up in which Δ learns the emotions of real images and nothing else."""
    discriminator_updates: int = 1
    """Δ's updates for each of PF-ViT's, on the same batch and fakes, with other noise and augmentation."""
    real_label_smoothing: float = 0.0
    """What L_Δ's target of real images lacks to 1 at the real/fake output (one-sided; Salimans et al. 2016)."""
    discriminator_augment: tuple[DiscriminatorTransform, ...] = ()
    """How images are changed before Δ sees them, real and generated alike (DiffAugment, Zhao et al. 2020)."""
    instance_noise: float = 0.0
    """Deviation of the noise on what Δ sees, for values in -1..1 (Sønderby et al. 2017)."""
    grad_norms_every: int = 100
    """Steps between two measurements of each loss term's gradient norms (docs/guides/pf-mag.md); one costs about two
    steps; 0 disables them. Training is unaffected."""

    def __post_init__(self) -> None:
        _require(self.grad_norms_every >= 0, "pf_mag.grad_norms_every", self.grad_norms_every, "be at least 0")
        _require(self.balance_steps >= 1, "pf_mag.balance_steps", self.balance_steps, "be at least 1")
        _require(self.warmup_steps >= 0, "pf_mag.warmup_steps", self.warmup_steps, "be at least 0")
        _require(self.warmup_rec > 0, "pf_mag.warmup_rec", self.warmup_rec, "be positive")
        _require(self.warmup_cls >= 0, "pf_mag.warmup_cls", self.warmup_cls, "be at least 0")
        _require(self.r1 >= 0, "pf_mag.r1", self.r1, "be at least 0")
        _require(self.separator_ratio >= 0, "pf_mag.separator_ratio", self.separator_ratio, "be at least 0")
        _require_share("pf_mag.mask_ratio", self.mask_ratio, below_one=True)
        hidden = 'be "self" with pf_mag.mask_ratio: the cross fusion has mask tokens of its own'
        _require(self.mask_ratio == 0 or self.fusion == "self", "pf_mag.fusion", self.fusion, hidden)
        unread = 'be "tokens" with pf_mag.separator_ratio 0: without a separator there is no L_ort to read it'
        known = self.separator_ratio > 0 or self.identity_net == "tokens"
        _require(known, "pf_mag.identity_net", self.identity_net, unread)
        named = 'be "facenet", "resnet" or "run" where pf_mag.identity_net_weights is given'
        known = self.identity_net_weights is None or self.identity_net != "tokens"
        _require(known, "pf_mag.identity_net", self.identity_net, named)
        absent = 'have pf_mag.identity_net_weights beside it, the folder of a run, for "run"'
        known = self.identity_net != "run" or self.identity_net_weights is not None
        _require(known, "pf_mag.identity_net", self.identity_net, absent)
        self._check_stabilisers()

    def _check_stabilisers(self) -> None:
        for name in ("adv_ramp_steps", "refine_channels", "discriminator_pretrain_steps", "instance_noise"):
            _require(getattr(self, name) >= 0, f"pf_mag.{name}", getattr(self, name), "be at least 0")
        _require(
            self.discriminator_updates >= 1, "pf_mag.discriminator_updates", self.discriminator_updates, "be at least 1"
        )
        _require_share("pf_mag.real_label_smoothing", self.real_label_smoothing, below_one=True)
        _require(
            self.discriminator_patch_gain > 0,
            "pf_mag.discriminator_patch_gain",
            self.discriminator_patch_gain,
            "be positive",
        )
        weight, first = self.discriminator_emotion_weight, self.discriminator_pretrain_steps
        _require(weight > 0, "pf_mag.discriminator_emotion_weight", weight, "be positive")
        blind = "with pf_mag.discriminator_emotions off: Δ looks at no emotion"
        _require(
            self.discriminator_emotions or weight == 1, "pf_mag.discriminator_emotion_weight", weight, f"be 1 {blind}"
        )
        _require(
            self.discriminator_emotions or first == 0, "pf_mag.discriminator_pretrain_steps", first, f"be 0 {blind}"
        )
        within = f"be at most pf_mag.warmup_steps = {self.warmup_steps}: PF-ViT has its warm-up meanwhile"
        _require(first <= self.warmup_steps, "pf_mag.discriminator_pretrain_steps", first, within)
        once = len(set(self.discriminator_augment)) == len(self.discriminator_augment)
        _require(once, "pf_mag.discriminator_augment", self.discriminator_augment, "name each change once")
        whole = "with pf_mag.separator_ratio 0: there is no separator"
        for name, value, off in (
            ("weights.confusion", self.weights.confusion, 0),
            ("class_mask_bias", self.class_mask_bias, None),
        ):
            _require(self.separator_ratio > 0 or value == off, f"pf_mag.{name}", value, f"be {off} {whole}")

    @property
    def transforms_discriminator_input(self) -> bool:
        """Whether Δ sees images otherwise than they are."""
        return bool(self.discriminator_augment) or self.instance_noise > 0


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """One optimizer and its learning rate over time."""

    algorithm: Literal["adam", "adamw"] = "adamw"
    """Adam has no weight decay of its own here."""
    lr: float = 1e-3
    """Peak learning rate, for the whole batch as it is: nothing rescales it."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of Adam's two moments."""
    weight_decay: float = 0.05
    """Decoupled weight decay of matrices; biases, norms and tokens have none. AdamW only."""
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    """After the warm-up: a half cosine to zero, or multiplied by `plateau_factor` after `plateau_patience` evaluations
    without a better validation score, or constant."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    plateau_patience: int = 30
    """Evaluations without improvement that the plateau schedule waits."""
    plateau_factor: float = 0.1
    """What the plateau schedule divides the rate by."""
    layer_decay: float = 1.0
    """What each block's rate is multiplied by over the block's above it, in fine-tuning (Clark et al. 2020; MAE's
    0.65 to 0.75); 1 leaves all alike."""
    clip_norm: float = 0.0
    """Largest global norm of the gradients; 0 does not clip."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, in [0, 1): evaluated, and started from, in the weights'
    place. 0 keeps none."""

    def __post_init__(self) -> None:
        _require_share("optim.ema", self.ema, below_one=True)
        _require(self.lr > 0, "optim.lr", self.lr, "be positive")
        _require(0 < self.layer_decay <= 1, "optim.layer_decay", self.layer_decay, "lie in (0, 1]")
        _require(all(0 <= beta < 1 for beta in self.betas), "optim.betas", self.betas, "lie in [0, 1)")
        for name in ("weight_decay", "warmup_steps", "clip_norm"):
            _require(getattr(self, name) >= 0, f"optim.{name}", getattr(self, name), "be at least 0")
        _require(self.plateau_patience >= 1, "optim.plateau_patience", self.plateau_patience, "be at least 1")
        _require(0 < self.plateau_factor < 1, "optim.plateau_factor", self.plateau_factor, "lie in (0, 1)")
        if self.algorithm == "adam":
            _require(self.weight_decay == 0, "optim.weight_decay", self.weight_decay, "be 0 for adam; adamw has one")


def _discriminator_optim() -> OptimConfig:
    """docs/concepts/method.md, section 3: Adam at 1e-4 with betas of its own (lost in the paper's text; the GAN
    default here)."""
    return OptimConfig(algorithm="adam", lr=1e-4, betas=(0.5, 0.999), weight_decay=0.0, schedule="constant")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the steps are executed; none of it changes what is computed, but for rounding."""

    backend: Backend = "auto"
    """What scales a run over processes. "auto" takes DeepSpeed ZeRO-2 where it is installed and passes a check on this
    device, else FSDP2, else DDP; for a single process it takes DDP, which is plain torch there."""
    precision: Literal["fp32", "bf16", "bf16_params"] = "fp32"
    """"bf16" runs the forward passes under autocast; weights and optimizer stay fp32. "bf16_params" also computes and
    gathers with bf16 weights, the optimizer's masters stay fp32 (FSDP2 and ZeRO)."""
    grad_accumulation_steps: int = 1
    """Micro-batches a step: the same step in less memory."""
    activation_checkpointing: bool = False
    """Activation checkpointing: keep only the blocks' inputs and compute them again in the backward."""
    compile: bool = False
    """torch.compile of each block; not with ZeRO-3, whose hooks sit inside the blocks."""
    offload_optimizer: bool = False
    """Keep ZeRO's moments and fp32 weights in the host's memory."""
    fsdp_shard_size: int | None = None
    """Neighbouring processes that share one copy of the weights (FSDP2): the GPUs of a node, say, for hybrid sharding;
    None shares over all."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto" takes the GPU where there is one."""
    timeout: float = 600.0
    """Seconds after which a process that is dead or stuck ends the run on all."""
    log_every: int = 10
    """Steps between two lines of metrics."""

    def __post_init__(self) -> None:
        _require(
            self.grad_accumulation_steps >= 1,
            "engine.grad_accumulation_steps",
            self.grad_accumulation_steps,
            "be at least 1",
        )
        _require(self.log_every >= 1, "engine.log_every", self.log_every, "be at least 1")
        _require(self.timeout > 0, "engine.timeout", self.timeout, "be positive")
        _require(
            self.fsdp_shard_size is None or self.fsdp_shard_size >= 1,
            "engine.fsdp_shard_size",
            self.fsdp_shard_size,
            "be positive",
        )
        options = {
            "engine.offload_optimizer": (self.offload_optimizer, ("zero1", "zero2", "zero3")),
            "engine.fsdp_shard_size": (self.fsdp_shard_size is not None, ("fsdp2",)),
            "engine.precision bf16_params": (self.precision == "bf16_params", ("fsdp2", "zero1", "zero2", "zero3")),
            "engine.compile": (self.compile, ("ddp", "fsdp2", "zero1", "zero2")),
        }
        for name, (wanted, backends) in options.items():
            able = f"be one of {', '.join(backends)} (or auto) with {name}"
            _require(not wanted or self.backend in ("auto", *backends), "engine.backend", self.backend, able)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a run saves itself, how, and how much of it stays."""

    every_steps: int = 500
    """Steps between two checkpoints; one more is written at the end, at a better validation score, and on a signal."""
    keep: int = 2
    """Newest checkpoints kept; the best on validation stays besides."""
    asynchronous: bool = True
    """Write while the training goes on; a step then waits only for a copy of the weights."""

    def __post_init__(self) -> None:
        _require(self.every_steps >= 1, "checkpoint.every_steps", self.every_steps, "be at least 1")
        _require(self.keep >= 1, "checkpoint.keep", self.keep, "be at least 1")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is measured, when, and what chooses the checkpoint."""

    every_epochs: float = 1.0
    """Epochs between two evaluations on validation."""
    batch_size: int = 256
    """Images a forward pass of evaluation, for each process."""
    metric: Literal["accuracy", "macro_f1"] = "accuracy"
    """Validation score that chooses the checkpoint."""
    selection_split: Literal["validation", "test"] = "validation"
    """"test" is the paper's own habit; the report labels such runs."""
    final_split: Literal["test", "validation"] = "test"
    """Split that is measured at the end. "validation" leaves the test split alone, as a search must; the same run given
    again with "test" then measures it, and trains nothing."""
    judge: str | None = None
    """Run folder of a separately trained classifier that judges the poker faces' neutrality; None leaves it out."""
    identity_net: str | None = None
    """Run folder of a classifier of people (data.target) that measures how much of the identity poker faces keep; None
    takes φ where PF-MAG has one, else leaves it out."""
    fid: str | None = None
    """Features of the Fréchet distance between poker faces and photos: "inception" (downloads its weights), a file of
    them, or the folder of a run of ours, whose distance is no FID; None leaves it out."""
    n_poker_faces: int = 1000
    """Images of that split whose poker faces are judged at the end."""
    n_probe_images: int = 0
    """Training images from whose tokens linear probes learn to read the emotion; they also try to read identities,
    where these are known. 0 leaves probes out."""
    n_probe_identities: int = 40
    """People that probes of identities tell apart at most: those with the most faces."""
    mask_ratios: tuple[float, ...] = ()
    """Shares of hidden patches at which a run with pf_mag.fusion "self" is tested too."""
    grid_every: float = 1.0
    """Epochs between two picture grids of the same validation faces, drawn where an evaluation is due
    (pictures/steps); of PF-MAG alone. 0 draws none."""

    def __post_init__(self) -> None:
        _require(self.every_epochs > 0, "evaluate.every_epochs", self.every_epochs, "be positive")
        _require(self.batch_size >= 1, "evaluate.batch_size", self.batch_size, "be at least 1")
        _require(self.n_poker_faces >= 1, "evaluate.n_poker_faces", self.n_poker_faces, "be at least 1")
        _require(self.n_probe_images >= 0, "evaluate.n_probe_images", self.n_probe_images, "be at least 0")
        _require(self.n_probe_identities >= 2, "evaluate.n_probe_identities", self.n_probe_identities, "be at least 2")
        _require(self.grid_every >= 0, "evaluate.grid_every", self.grid_every, "be at least 0")
        hidden = all(0 <= ratio < 1 for ratio in self.mask_ratios)
        _require(hidden, "evaluate.mask_ratios", self.mask_ratios, "lie in [0, 1)")
        touched = 'be "validation" with evaluate.final_split validation: the test split would be looked at'
        _require(
            self.final_split == "test" or self.selection_split == "validation",
            "evaluate.selection_split",
            self.selection_split,
            touched,
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, whole. The same value gives the same weights (on one kind of device and one process count)."""

    name: str = "run"
    """Row of the report: runs that differ only in their seed share it."""
    objective: Objective = "finetune"
    seed: int = 0
    """Of the initial weights, the order of samples, augmentation and masks."""
    epochs: float = 10.0
    """Passes over the training split."""
    batch_size: int = 64
    """Images a step over all processes together."""
    max_steps: int | None = None
    """Ends the run earlier; None runs all epochs."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    mae: MaeConfig = field(default_factory=MaeConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    pf_mag: PfMagConfig = field(default_factory=PfMagConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    discriminator_optim: OptimConfig = field(default_factory=_discriminator_optim)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        plain = bool(self.name) and all(letter.isalnum() or letter in "-_." for letter in self.name)
        _require(plain and self.name[0] != ".", "name", self.name, "be letters, digits, - _ . only: it names a folder")
        _require(self.epochs > 0, "epochs", self.epochs, "be positive")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "be at least 1")
        _require(0 <= self.seed < 2**31, "seed", self.seed, "lie in 0..2^31-1")
        _require(self.max_steps is None or self.max_steps >= 1, "max_steps", self.max_steps, "be at least 1")
        chunks = f"be a multiple of engine.grad_accumulation_steps = {self.engine.grad_accumulation_steps}"
        _require(self.batch_size % self.engine.grad_accumulation_steps == 0, "batch_size", self.batch_size, chunks)
        twice = 'not be "zero3" with pf_mag.r1: ZeRO-3 cannot differentiate twice; zero2, fsdp2 and ddp can'
        _require(self.pf_mag.r1 == 0 or self.engine.backend != "zero3", "engine.backend", self.engine.backend, twice)
        hidden = 'be of a run with pf_mag.fusion "self": other encoders see every patch'
        joined = self.objective == "pf_mag" and self.pf_mag.fusion == "self"
        _require(not self.evaluate.mask_ratios or joined, "evaluate.mask_ratios", self.evaluate.mask_ratios, hidden)
        emotions = 'be "emotion" for pf_mag: its poker faces lack an emotion, not a person'
        _require(self.objective != "pf_mag" or self.data.target == "emotion", "data.target", self.data.target, emotions)
        _require(
            self.discriminator_optim.ema == 0,
            "discriminator_optim.ema",
            self.discriminator_optim.ema,
            "be 0: nothing reads Δ's average",
        )
        vit = self.objective == "finetune" and self.model.architecture == "vit"
        for name, value, off in (
            ("model.drop_path", self.model.drop_path, 0.0),
            ("optim.layer_decay", self.optim.layer_decay, 1.0),
        ):
            _require(vit or value == off, name, value, f"be {off:g}: only the fine-tuning of a ViT knows it")
        tail = "be 1: Δ's blocks all learn alike"
        _require(
            self.discriminator_optim.layer_decay == 1,
            "discriminator_optim.layer_decay",
            self.discriminator_optim.layer_decay,
            tail,
        )
        if self.augment.mixes:
            mixed = 'be "finetune" with augment.mixup or augment.cutmix: a mixed face has no emotion to check'
            _require(self.objective == "finetune", "objective", self.objective, mixed)
            parts = self.engine.grad_accumulation_steps
            pairs = f"be even in each of engine.grad_accumulation_steps = {parts} parts, to mix its images in pairs"
            _require(
                self.batch_size % (2 * self.engine.grad_accumulation_steps) == 0, "batch_size", self.batch_size, pairs
            )
        if self.model.architecture == "cnn":
            _require(self.objective == "finetune", "objective", self.objective, 'be "finetune" for a cnn')
            statistics = 'be "fp32" or "bf16" for a cnn: bf16 would round its running statistics'
            _require(self.engine.precision != "bf16_params", "engine.precision", self.engine.precision, statistics)
        else:
            tiles = f"be a multiple of model.patch = {self.model.patch}"
            _require(self.data.size % self.model.patch == 0, "data.size", self.data.size, tiles)

    @property
    def hides_patches(self) -> bool:
        """Whether training hides patches from the encoder."""
        return self.objective == "mae" or (self.objective == "pf_mag" and self.pf_mag.mask_ratio > 0)
