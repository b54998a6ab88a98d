"""`predictions.safetensors` in a run folder: the classifier's logits for every sample of its test split.

Legend: n samples, k classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pfcluster.config.json_files import JsonFileError, parse_json
from pfcluster.runs.folder import PREDICTIONS_FILE
from pfcluster.system.atomic_files import write_atomically

FORMAT = "1"


class PredictionsError(ValueError):
    """A predictions file that cannot be read; the message names the file, the reason and the remedy."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits and labels, in the split's order."""

    logits: NDArray[np.float32]
    """n k."""
    labels: NDArray[np.int64]
    """n; indices into `classes`."""
    classes: tuple[str, ...]
    samples: str
    """`checksum` of `splits.sample_ids`: equal for two runs only if they were evaluated on the same samples."""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """n; whether the largest logit (the first of equal ones) is that of the label."""
        return np.asarray(self.logits.argmax(1) == self.labels)


def checksum(keys: Sequence[str]) -> str:
    """SHA-256 of the sample names in their order, in hexadecimal."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def write(folder: Path, predictions: Predictions) -> None:
    """Write a run's predictions atomically. Raises OSError."""
    metadata = {"format": FORMAT, "classes": json.dumps(predictions.classes), "samples": predictions.samples}
    tensors: dict[str, NDArray[Any]] = {
        "logits": np.ascontiguousarray(predictions.logits, np.float32),
        "labels": np.ascontiguousarray(predictions.labels, np.int64),
    }
    write_atomically(folder / PREDICTIONS_FILE, save(tensors, metadata))


def read(folder: Path) -> Predictions:
    """Read a run's predictions. Raises PredictionsError if the file is missing, damaged or malformed."""
    file = folder / PREDICTIONS_FILE
    if not file.exists():
        raise PredictionsError(
            f"{folder} has no {PREDICTIONS_FILE}: the run did not evaluate a test split; train it again"
        )
    try:
        with safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        classes = parse_json(metadata.get("classes", "null"), "the list of classes")
    except (SafetensorError, OSError, TypeError, JsonFileError) as error:
        raise PredictionsError(f"{file} cannot be read: {error}; remove it, or train the run again") from error
    problem = _format_problem(metadata, tensors, classes)
    if problem:
        raise PredictionsError(f"{file}: {problem}; remove it, or train the run again")
    return Predictions(tensors["logits"], tensors["labels"], tuple(classes), metadata["samples"])


def _format_problem(metadata: dict[str, str], tensors: dict[str, Any], classes: Any) -> str:
    """What is malformed in the file; empty if nothing is."""
    if metadata.get("format") != FORMAT:
        return f"format must be {FORMAT}, got {metadata.get('format')!r}"
    if not (isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)):
        return f"the metadata's classes must be a list of names, got {metadata.get('classes')!r}"
    if not metadata.get("samples"):
        return "the metadata lack samples, the checksum of the sample names"
    logits, labels = tensors.get("logits"), tensors.get("labels")
    if logits is None or logits.dtype != np.float32 or logits.ndim != 2 or logits.shape[1] != len(classes):
        return f"logits must be float32, n x {len(classes)}, got {_describe(logits)}"
    if labels is None or labels.dtype != np.int64 or labels.shape != logits.shape[:1]:
        return f"labels must be {len(logits)} int64, got {_describe(labels)}"
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(classes):
        return f"labels must not be empty and lie in 0 ... {len(classes) - 1}"
    return ""


def _describe(tensor: Any) -> str:
    """Type and shape, such as `float32 3 x 2`."""
    return "none" if tensor is None else f"{tensor.dtype} {' x '.join(map(str, tensor.shape))}"
