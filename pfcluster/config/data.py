"""Datasets, sampling and augmentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pfcluster.config.urls import refuse_credentials
from pfcluster.config.validation import require, require_fraction, require_min


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """The built-in dataset of rendered faces (pfcluster/data/synthetic). The identities of its splits are disjoint."""

    train: int = 6000
    """Number of training images."""
    validation: int = 1000
    """Number of validation images."""
    test: int = 2000
    """Number of test images."""
    identities: int = 1000
    """Identities in the training split. Validation and test have others, with the same number of images each."""
    classes: tuple[str, ...] = ()
    """Expressions to render; empty renders all eight."""
    imbalance: float = 1.0
    """Images of the most frequent class divided by images of the rarest; 1 is balanced. Training split only."""
    label_noise: float = 0.0
    """Probability that an annotator mislabels a training image; the label is the majority vote of all annotators."""
    annotators: int = 10
    """Annotators per image."""
    nuisance: float = 1.0
    """Fraction of the full range of pose, lighting, background, blur, noise and occlusion, in [0, 1]; 0 has none."""
    min_intensity: float = 0.3
    """Intensity of the weakest expressions, in [0, 1]; the strongest have 1."""
    seed: int = 0
    """Random seed of the rendered images, independent of the training seed."""

    def __post_init__(self) -> None:
        require_min(1, "data.synthetic", self, "train", "validation", "test", "identities", "annotators")
        require(0 <= self.seed < 2**63, "data.synthetic.seed", self.seed, "lie in 0..2^63-1")
        require(self.imbalance >= 1, "data.synthetic.imbalance", self.imbalance, "be at least 1")
        require_fraction("data.synthetic", self, "label_noise", below_one=True)
        require_fraction("data.synthetic", self, "nuisance", "min_intensity")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The dataset, its image size, and how samples are read."""

    shards: str | None = None
    """Folder written by `pfcluster build`, or its URL (http, https, s3, gs); None takes the built-in synthetic
    faces. Credentials come from environment variables, which the URL names: 'https://${LOGIN}@host/folder'."""
    size: int = 48
    """Side of the square input in pixels; shards of another size are resized."""
    expected_name: str | None = None
    """Dataset name that the shards' manifest must have; protects against training on the wrong folder."""
    limit: int | None = None
    """Number of training samples to use, drawn with the run's seed; None uses all."""
    target: Literal["emotion", "identity"] = "emotion"
    """What the classes are. "identity" trains a face identification net on the training split: one eighth of each
    identity's images is held out for validation, and there is no test split."""
    max_bad_share: float = 0.01
    """Largest fraction of unreadable samples in a split, in [0, 1]; the run stops above it."""
    sampling: Literal["uniform", "balanced"] = "uniform"
    """"balanced" draws every class equally often, so samples of rare classes repeat within an epoch."""
    order: Literal["auto", "full", "blocks"] = "auto"
    """Order of training samples. "full" shuffles the whole split; "blocks" reads neighbouring samples together, for
    storage with slow random access; "auto" takes blocks for shards at a URL, else full."""
    block: int = 512
    """Samples per block with order "blocks"; best the number of samples in a shard."""
    shuffle_window: int = 8
    """Blocks that are shuffled together."""
    cache_mode: Literal["stream", "host", "device"] = "stream"
    """"stream" decodes every batch when it is read; "host" decodes the training split once into a file in `data.cache`
    that all processes of a machine memory-map; "device" keeps it in device memory (3 * size^2 bytes per sample: 41 GB
    for 270,000 samples at 224 px)."""
    decode_on: Literal["host", "device"] = "host"
    """Where the training split's JPEGs are decoded: by the reader threads on the host, or on the GPU by nvJPEG
    (torchvision), which leaves the host's cores free and takes time from the step. Its pixels differ by rounding. On a
    CPU torchvision decodes to the same pixels as "host"."""
    augment_on: Literal["device", "host"] = "device"
    """Where crops, rotations and flips are computed: in floats for the whole batch on the device, or in uint8 by the
    reader threads on the host, which is faster when training on a CPU. The results differ by rounding."""
    workers: int = 2
    """Reader threads, each prefetching one batch; 0 reads synchronously in the training loop. On CUDA with at least
    one, a further thread copies and augments one batch ahead."""
    cache: str | None = None
    """Folder for shards fetched from a URL, for data.cache_mode host and for indexes; None takes $PFCLUSTER_CACHE,
    $XDG_CACHE_HOME/pfcluster or ~/.cache/pfcluster, the first that is set."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self) -> None:
        if self.shards is not None:
            refuse_credentials("data.shards", self.shards)
        require(8 <= self.size <= 1024, "data.size", self.size, "lie in 8..1024 pixels")
        require(self.limit is None or self.limit >= 1, "data.limit", self.limit, "be at least 1 or left out")
        require_fraction("data", self, "max_bad_share")
        require_min(1, "data", self, "block", "shuffle_window")
        require(
            self.cache_mode != "device" or self.augment_on == "device",
            "data.augment_on",
            self.augment_on,
            'be "device" with data.cache_mode device: the images are in device memory',
        )
        on_host = 'be "host" with data.augment_on host and data.cache_mode host: the host needs the pixels'
        host_reads = self.augment_on == "host" or self.cache_mode == "host"
        require(self.decode_on == "host" or not host_reads, "data.decode_on", self.decode_on, on_host)
        require(
            self.cache_mode != "host" or self.target == "emotion",
            "data.target",
            self.target,
            'be "emotion" with data.cache_mode host: its file holds the labels of the shards',
        )
        require(0 <= self.workers <= 256, "data.workers", self.workers, "lie in 0..256")
        require(
            self.sampling == "uniform" or self.order != "blocks",
            "data.order",
            self.order,
            'be "auto" or "full" with data.sampling balanced: it shuffles the samples of each class',
        )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random augmentation of the training images, drawn anew for each sample and step."""

    flip: float = 0.5
    """Probability of a horizontal flip."""
    crop_scale: tuple[float, float] = (0.7, 1.0)
    """Range of the random resized crop's area over the image's area; (1, 1) crops nothing."""
    crop_ratio: tuple[float, float] = (0.9, 1.1)
    """Range of the crop's aspect ratio, width over height."""
    rotation: float = 8.0
    """Largest rotation in degrees, in either direction."""
    jitter: float = 0.2
    """Largest relative change of brightness, contrast and saturation, in [0, 1)."""
    erasing: float = 0.0
    """Probability of random erasing: a rectangle of 2 to 20 % of the area becomes grey (Zhong et al. 2017)."""
    mixup: float = 0.0
    """Mixup's alpha: mixing weights are drawn from Beta(alpha, alpha), one per step (Zhang et al. 2018); 0 is off.
    Fine-tuning only. Each image is mixed with its neighbour in the batch."""
    cutmix: float = 0.0
    """CutMix's alpha (Yun et al. 2019); 0 is off. With mixup too, each step applies one of the two with probability
    0.5."""

    def check(self, section: str) -> None:
        """Raises ConfigError for an invalid field, which it names as one of `section`: RunConfig has two."""
        require_fraction(section, self, "flip", "erasing")
        low, high = self.crop_scale
        require(0 < low <= high <= 1, f"{section}.crop_scale", self.crop_scale, "be 0 < low <= high <= 1")
        low, high = self.crop_ratio
        require(0 < low <= high, f"{section}.crop_ratio", self.crop_ratio, "be 0 < low <= high")
        require(0 <= self.rotation <= 180, f"{section}.rotation", self.rotation, "lie in 0..180 degrees")
        require_fraction(section, self, "jitter", below_one=True)
        require_min(0, section, self, "mixup", "cutmix")

    @property
    def transforms(self) -> bool:
        """Whether single images are changed."""
        unchanged = (self.crop_scale, self.crop_ratio) == ((1.0, 1.0), (1.0, 1.0))
        return not unchanged or any(value > 0 for value in (self.flip, self.rotation, self.jitter, self.erasing))

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs."""
        return self.mixup > 0 or self.cutmix > 0


def no_augment() -> AugmentConfig:
    """Augmentation that leaves images as they are."""
    return AugmentConfig(flip=0.0, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), rotation=0.0, jitter=0.0)
