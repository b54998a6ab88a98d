"""The part of `config.json` on a model exported for another runtime: files, checks, int8, timm. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RuntimeFormat = Literal["onnx", "torch-export", "timm"]
CLASSIFIER_ONNX = "classifier.onnx"
CLASSIFIER_INT8 = "classifier_int8.onnx"
POKER_FACE_ONNX = "poker_face.onnx"
CLASSIFIER_EXPORT = "classifier.pt2"
POKER_FACE_EXPORT = "poker_face.pt2"
TIMM_FILE = "timm.safetensors"
RUNTIME_FILES = (
    *(CLASSIFIER_ONNX, CLASSIFIER_INT8, POKER_FACE_ONNX),
    *(CLASSIFIER_EXPORT, POKER_FACE_EXPORT),
    TIMM_FILE,
)
INPUT = "crops"
"""Input of all graphs: stored images uint8 b s s 3, RGB."""
LOGITS, FEATURES = "logits", "features"
"""Outputs of the classifier's graphs: float32 b k and b d."""
POKER_FACES = "poker_faces"
"""Output of the generator's graph: float32 b 3 z z, around -1..1."""


@dataclass(frozen=True, kw_only=True)
class Int8Figures:
    """Accuracy of the quantised classifier beside the float32 one, both in onnxruntime."""

    split: Literal["test", "validation"]
    n: int
    """Images."""
    accuracy_float32: float
    accuracy_int8: float
    agreement: float
    """Share of the images to which both give the same label."""


@dataclass(frozen=True, kw_only=True)
class Int8Info:
    """Dynamic quantisation of the classifier."""

    figures: Int8Figures | None
    reason: str | None
    """Why there are no figures."""


@dataclass(frozen=True, kw_only=True)
class TimmInfo:
    """`timm.create_model(name, checkpoint_path=..., **options)` makes the encoder."""

    name: str
    options: dict[str, int | float]


@dataclass(frozen=True, kw_only=True)
class RuntimeInfo:
    """A model in another format than the one that `pfcluster.load` reads."""

    format: RuntimeFormat
    files: dict[str, str]
    """Name -> SHA-256."""
    largest_difference: dict[str, float]
    """Name of a float32 file -> largest difference of its outputs to torch's at the export, relative to the largest
    output where that exceeds 1."""
    checked_on: str
    """The images of this check."""
    versions: dict[str, str]
    """Versions of the packages that wrote and checked the files."""
    opset: int | None = None
    """ONNX's opset."""
    int8: Int8Info | None = None
    timm: TimmInfo | None = None
