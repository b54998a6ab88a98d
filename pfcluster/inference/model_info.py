"""What an exported model is, apart from its weights: the content of `config.json` in a model folder. No torch.

A model folder holds `model.safetensors`, `config.json` and `README.md`. The safetensors file contains the same JSON in
its metadata, so that it is a complete model by itself.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pfcluster.config.json_files import JsonFileError, convert, parse_json
from pfcluster.data.build.align import TEMPLATE_112, FaceRule, template
from pfcluster.inference.errors import InferenceError
from pfcluster.inference.runtime_info import RuntimeInfo

FORMAT = 1
LIBRARY = "pfcluster"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
DISCRIMINATOR_FILE = "discriminator.safetensors"
METADATA_KEY = "pfcluster"
"""Key of the safetensors file's metadata with the content of `config.json`."""
MEAN_AND_STD = (0.5, 0.5)
"""Normalisation of all nets: pixels in 0..1 minus 0.5, over 0.5."""

Kind = Literal["cnn", "vit", "pf_vit"]
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class EncoderInfo:
    """Sizes of a ViT."""

    patch: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float
    stem_channels: tuple[int, ...] = ()
    """Channels of a convolutional stem; empty for a linear patch embedding."""


@dataclass(frozen=True, kw_only=True)
class GeneratorInfo:
    """Sizes of PF-ViT's separator, fusion and generator; all except `erasure` as in the configs of runs."""

    width: int
    depth: int
    heads: int
    separator_ratio: float
    fusion: Literal["cross", "self"]
    fusion_bias: float | None
    class_mask_bias: float | None
    patch_overlap: int
    patch_mask_bias: float | None = None
    erasure: bool = False
    """Whether the emotion is erased from f_p."""


@dataclass(frozen=True, kw_only=True)
class NetworkInfo:
    """The net, without weights."""

    kind: Kind
    """"cnn": the judge; "vit": a classifier; "pf_vit": a classifier with a generator of poker faces."""
    size: int
    """Side of the input in pixels."""
    cnn_widths: tuple[int, ...] = (24, 48, 96, 160)
    """Channels of the stages of "cnn"."""
    cnn_convolutions: int = 1
    """Convolutions of each stage."""
    encoder: EncoderInfo | None = None
    """None for "cnn"."""
    generator: GeneratorInfo | None = None
    """Only for "pf_vit"."""

    def __post_init__(self) -> None:
        if (self.encoder is None) != (self.kind == "cnn") or (self.generator is None) != (self.kind != "pf_vit"):
            raise ValueError(f"network.kind {self.kind!r} does not fit the sizes beside it")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a photo becomes the stored image that the network was trained on; see data/build."""

    align: Literal["mtcnn", "landmarks", "none"]
    """How the training images were cropped. "none": as their dataset has them."""
    crop_size: int
    """Side of the stored images in pixels; the network's input is resized from them."""
    template: tuple[Point, ...]
    """Where left eye, right eye, nose, left and right mouth corner (from the viewer's side) lie in a crop, (x, y) as
    fractions of its side; see `targets`. The template alone determines the margin around a face."""
    template_faces: int | None = None
    """None: the template of `pfcluster build`. Else the template is the mean over this many faces that were detected in
    the training data, which is not aligned by landmarks."""
    jpeg_quality: int | None = 95
    """Stored images are JPEGs of this quality; None if the training data were never JPEGs."""
    grey: bool = False
    """Whether a crop becomes grey, because all training images are."""
    face: FaceRule = "largest-central"
    """Which face of a photo training used; it is number 0 of a photo's faces."""

    def targets(self) -> np.ndarray:
        """The five landmarks in a crop, in pixels whose centres are integers: 5 2.

        Bit-identical to those of a build for its template, whose fractions are pixels over the side. Fractions of a
        measured template count from the crop's edge, half a pixel before the centre of its first pixel.
        """
        if self.template == build_template():
            return template(self.crop_size)
        return np.array(self.template) * self.crop_size - 0.5


def build_template() -> tuple[Point, ...]:
    """The template of `pfcluster build`, as fractions of the crop's side."""
    return tuple((x, y) for x, y in (TEMPLATE_112 / 112).tolist())


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Scores of the run on one split."""

    split: Literal["test", "validation"]
    n: int
    """Images."""
    accuracy: float
    mean_class_accuracy: float
    macro_f1: float
    per_class: dict[str, float]
    """Class -> share of its images that are classified correctly; empty where the run did not record it."""
    warning: str | None = None
    """Why the figures are optimistic."""


@dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """The same figure over the runs of a study that differ in their seed only."""

    seeds: tuple[int, ...]
    accuracy_mean: float
    accuracy_std: float
    """With n - 1 in the denominator."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Where the weights come from."""

    dataset: str
    votes: str | None
    """How the annotators' votes became labels (FERPlus)."""
    samples: dict[str, int]
    """Images by split."""
    objective: str
    seed: int
    step: int
    """Step of the checkpoint."""
    commit: str | None
    command: str | None = None
    """The command that repeats the training, if it is a public one."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """The content of `config.json`."""

    name: str
    network: NetworkInfo
    classes: tuple[str, ...]
    """In the order of the outputs."""
    preprocessing: Preprocessing
    training: Training
    figures: Figures | None
    """None if these weights have not been evaluated."""
    no_figures: str | None = None
    """Why there are no figures although the run was evaluated: they belong to another checkpoint."""
    over_seeds: OverSeeds | None = None
    poker_faces: dict[str, float | int | str | None] | None = None
    """The run's metrics of poker faces, by their names in docs/reference/metrics.md."""
    license: str
    """Licence of the weights, which depends on the data."""
    weights_sha256: str
    """`weights_sha256` of the tensors."""
    runtime: RuntimeInfo | None = None
    """Only for `--format onnx`, `torch-export` and `timm`."""
    notes: tuple[str, ...] = ()
    """Sentences for the model card that only the model's authors can add."""
    mean: float = MEAN_AND_STD[0]
    std: float = MEAN_AND_STD[1]
    library: str = LIBRARY
    version: str = ""
    """Version of pfcluster."""
    format: int = FORMAT

    def __post_init__(self) -> None:
        if (self.mean, self.std) != MEAN_AND_STD:
            raise ValueError(f"mean and std must be {MEAN_AND_STD}, got {(self.mean, self.std)}")
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes must be distinct names, got {list(self.classes)}")
        if not 8 <= self.network.size <= 1024 or not 8 <= self.preprocessing.crop_size <= 1024:
            raise ValueError("network.size and preprocessing.crop_size must lie in 8..1024 pixels")
        if len(self.preprocessing.template) != len(TEMPLATE_112):
            raise ValueError(f"preprocessing.template must have {len(TEMPLATE_112)} points")

    @property
    def generates(self) -> bool:
        """Whether the model generates poker faces."""
        generator = self.network.generator
        return generator is not None and generator.separator_ratio > 0


def to_dict(info: ModelInfo) -> dict[str, Any]:
    """The JSON object of `config.json`."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(info)))
    return values


def to_json(info: ModelInfo) -> str:
    """The text of `config.json`."""
    return json.dumps(to_dict(info), indent=2, sort_keys=True) + "\n"


def parse_info(text: str | bytes, source: str) -> ModelInfo:
    """Parse `config.json`. Raises InferenceError that names `source`."""
    try:
        return info_of(parse_json(text, source), source)
    except JsonFileError as error:
        raise InferenceError(f"{error}; export the model again") from error


def info_of(values: object, source: str) -> ModelInfo:
    """The record of a JSON value. Raises InferenceError that names `source`."""
    if not isinstance(values, dict) or values.get("library") != LIBRARY:
        raise InferenceError(f"{source} does not describe a pfcluster model; pass a folder of `pfcluster export`")
    if values.get("format") != FORMAT:
        raise InferenceError(
            f"{source} has format {values.get('format')!r}, this version reads format {FORMAT}; export the run again"
            " with `pfcluster export`, or install the version of pfcluster that wrote it"
        )
    try:
        info: ModelInfo = convert(ModelInfo, values, source)
    except JsonFileError as error:
        raise InferenceError(f"{error}; export the model again") from error
    return info


def read_info(folder: Path) -> ModelInfo:
    """Read `config.json` of a model folder. Raises InferenceError, OSError."""
    path = folder / CONFIG_FILE
    try:
        return parse_info(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        raise InferenceError(
            f"{folder} is not a model: it has no {CONFIG_FILE}; export one with `pfcluster export`"
        ) from (error)
