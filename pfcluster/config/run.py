"""`RunConfig`: everything that determines the result of a run, as one value.

Frozen dataclasses of plain values, validated on construction. Launchers, job arrays and sweep trials exchange them as
JSON (config/io.py); command lines are generated from them (`pfcluster pretrain --model.depth 6`). Does not import
torch, so that reading a config is fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pfcluster.config.data import AugmentConfig, DataConfig, no_augment
from pfcluster.config.engine import CheckpointConfig, EngineConfig
from pfcluster.config.evaluate import EvaluateConfig
from pfcluster.config.model import ClassifierConfig, MaeConfig, ModelConfig
from pfcluster.config.optim import OptimConfig, default_discriminator_optim
from pfcluster.config.pf_mag import PfMagConfig
from pfcluster.config.validation import is_folder_name, require, require_finite, require_not_huge

Objective = Literal["mae", "finetune", "pf_mag"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run. Equal configs give equal weights on the same kind of device with the same number of
    processes."""

    name: str = "run"
    """Row of the report: runs that differ only in their seed share a name."""
    objective: Objective = "finetune"
    """"mae" pre-trains a masked autoencoder, "finetune" a classifier, "pf_mag" PF-ViT with its discriminator."""
    seed: int = 0
    """Random seed of initial weights, sample order, augmentation and masks."""
    epochs: float = 10.0
    """Passes over the training split."""
    batch_size: int = 64
    """Images per step, over all processes together."""
    max_steps: int | None = None
    """Largest number of steps; None runs all epochs."""
    tracker: tuple[Tracker, ...] = ("tensorboard",)
    """Experiment trackers that follow the run: tensorboard, wandb, mlflow, trackio; several may be given. All write
    into the run folder unless their own environment variables name a server."""
    profile: int = 0
    """Steps of rank 0 that are traced by torch.profiler, from the fourth of each attempt on (profile/ in the run
    folder); 0 traces none."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    mae: MaeConfig = field(default_factory=MaeConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    pf_mag: PfMagConfig = field(default_factory=PfMagConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    discriminator_optim: OptimConfig = field(default_factory=default_discriminator_optim)
    discriminator_augment: AugmentConfig = field(default_factory=no_augment)
    """Augmentation of all that PF-MAG's discriminator sees: a photo and the images generated from it alike, drawn anew
    for each update. Differentiable, so PF-ViT learns through it (Zhao et al. 2020). Off by default."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        require_finite(self)
        for section in ("optim", "discriminator_optim", "augment", "discriminator_augment"):
            getattr(self, section).check(section)
        plain = "be letters, digits, - _ . only: it names a folder"
        require(is_folder_name(self.name), "name", self.name, plain)
        require(self.epochs > 0, "epochs", self.epochs, "be positive")
        require_not_huge("", self, "epochs")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "be at least 1")
        require(0 <= self.seed < 2**31, "seed", self.seed, "lie in 0..2^31-1")
        require(self.profile >= 0, "profile", self.profile, "be at least 0")
        twice = len(set(self.tracker)) < len(self.tracker)
        require(not twice, "tracker", self.tracker, "name each tracker once")
        require(self.max_steps is None or self.max_steps >= 1, "max_steps", self.max_steps, "be at least 1")
        self._check_batch()
        self._check_pf_mag()
        if self.objective == "pf_mag":
            self._check_generation()
        self._check_optimizers()
        self._check_classes()
        self._check_architecture()

    def _check_batch(self) -> None:
        """Batch size against micro-batches and mixing in pairs."""
        parts = self.engine.grad_accumulation_steps
        multiple = f"be a multiple of engine.grad_accumulation_steps = {parts}"
        require(self.batch_size % parts == 0, "batch_size", self.batch_size, multiple)
        if self.augment.mixes:
            labelled = 'be "finetune" with augment.mixup or augment.cutmix: the others need unmixed faces'
            require(self.objective == "finetune", "objective", self.objective, labelled)
            pairs = f"be even in each of engine.grad_accumulation_steps = {parts} parts, to mix its images in pairs"
            require(self.batch_size % (2 * parts) == 0, "batch_size", self.batch_size, pairs)

    def _check_pf_mag(self) -> None:
        """Options of other sections that depend on PF-MAG's."""
        backend, ratios, target = self.engine.backend, self.evaluate.mask_ratios, self.data.target
        second_order = 'not be "zero3" with pf_mag.r1: ZeRO-3 cannot differentiate twice; zero2, fsdp2 and ddp can'
        require(self.pf_mag.r1 == 0 or backend != "zero3", "engine.backend", backend, second_order)
        masked = self.objective == "pf_mag" and self.pf_mag.fusion == "self"
        masked_only = 'be of a run with pf_mag.fusion "self": other encoders see every patch'
        require(not ratios or masked, "evaluate.mask_ratios", ratios, masked_only)
        sums = 'be "fp32" or "bf16" with pf_mag.erasure_start: bf16_params would round its running sums'
        erases = self.objective == "pf_mag" and self.pf_mag.erasure_start is not None
        require(not erases or self.engine.precision != "bf16_params", "engine.precision", self.engine.precision, sums)
        emotions = 'be "emotion" for pf_mag: poker faces are images without emotion'
        require(self.objective != "pf_mag" or target == "emotion", "data.target", target, emotions)

    def _check_generation(self) -> None:
        """PF-MAG's options of generated images against batch, patches and augmentation."""
        parts = self.engine.grad_accumulation_steps
        every, overlap = self.pf_mag.generate_every, self.pf_mag.patch_overlap
        multiple = f"be a multiple of pf_mag.generate_every = {every} times engine.grad_accumulation_steps = {parts}"
        require(self.batch_size % (every * parts) == 0, "batch_size", self.batch_size, multiple)
        pairs = f"be a multiple of {2 * every * parts}: pf_mag.weights.swap exchanges the expressions of pairs"
        swaps = self.objective == "pf_mag" and self.pf_mag.weights.swap > 0
        require(not swaps or self.batch_size % (2 * every * parts) == 0, "batch_size", self.batch_size, pairs)
        within = f"be at most model.patch = {self.model.patch}"
        require(overlap <= self.model.patch, "pf_mag.patch_overlap", overlap, within)
        start, warmup = self.pf_mag.erasure_start, self.pf_mag.warmup_steps
        in_warmup = f"be at most pf_mag.warmup_steps = {warmup}: no checkpoint may predate the erasure"
        require(start is None or start <= warmup, "pf_mag.erasure_start", start, in_warmup)
        for name in ("mixup", "cutmix"):
            value = getattr(self.discriminator_augment, name)
            require(value == 0, f"discriminator_augment.{name}", value, "be 0: the discriminator sees single faces")

    def _check_optimizers(self) -> None:
        """Optimizer options that only some modules support."""
        vit = self.objective == "finetune" and self.model.architecture == "vit"
        for name, value, off in (
            ("model.drop_path", self.model.drop_path, 0.0),
            ("optim.layer_decay", self.optim.layer_decay, 1.0),
        ):
            require(vit or value == off, name, value, f"be {off:g}: only the fine-tuning of a ViT supports it")
        factors = {"optim": self.optim, "discriminator_optim": self.discriminator_optim}
        for name, optim in factors.items():
            factor = optim.encoder_lr_factor
            for_pf_mag = "be 1: only PF-MAG has a separate learning rate for the encoder"
            require(self.objective == "pf_mag" or factor == 1, f"{name}.encoder_lr_factor", factor, for_pf_mag)
        factor, init = self.discriminator_optim.encoder_lr_factor, self.pf_mag.discriminator_init
        without_encoder = f'be 1 with pf_mag.discriminator_init "{init}": only one from a classifier has an encoder'
        own = self.objective != "pf_mag" or init == "classifier" or factor == 1
        require(own, "discriminator_optim.encoder_lr_factor", factor, without_encoder)
        ema, decay = self.discriminator_optim.ema, self.discriminator_optim.layer_decay
        require(ema == 0, "discriminator_optim.ema", ema, "be 0: the discriminator's average is not used")
        uniform = "be 1: all blocks of the discriminator have the same learning rate"
        require(decay == 1, "discriminator_optim.layer_decay", decay, uniform)

    def _check_classes(self) -> None:
        """Options that would correct for unequal classes twice."""
        balance, balanced = self.classifier.class_balance, self.data.sampling == "balanced"
        once = 'be "none" with data.sampling balanced, which already shows all classes equally often'
        require(not balanced or balance == "none", "classifier.class_balance", balance, once)

    def _check_architecture(self) -> None:
        """Options that depend on the kind of net."""
        if self.model.architecture == "cnn":
            require(self.objective == "finetune", "objective", self.objective, 'be "finetune" for a cnn')
            statistics = 'be "fp32" or "bf16" for a cnn: bf16 would round its running statistics'
            require(self.engine.precision != "bf16_params", "engine.precision", self.engine.precision, statistics)
            halvings = len(self.model.cnn_widths) - 1
            smallest = f"be at least {2**halvings}, because model.cnn_widths halves it {halvings} times"
            require(self.data.size >= 2**halvings, "data.size", self.data.size, smallest)
        else:
            multiple = f"be a multiple of model.patch = {self.model.patch}"
            require(self.data.size % self.model.patch == 0, "data.size", self.data.size, multiple)

    @property
    def hides_patches(self) -> bool:
        """Whether training hides patches from the encoder."""
        return self.objective == "mae" or (self.objective == "pf_mag" and self.pf_mag.mask_ratio > 0)
