"""A classifier's answers to every sample of its test split: `predictions.safetensors` in the run's folder.

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

from pfcluster.runs.atomic_files import write_atomically

FILE = "predictions.safetensors"
FORMAT = "1"


class PredictionsError(ValueError):
    """Predictions that cannot be read: says which file, why, and what to do."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits and truth, in the split's own order."""

    logits: NDArray[np.float32]
    """n k."""
    labels: NDArray[np.int64]
    """n; places in `classes`."""
    classes: tuple[str, ...]
    samples: str
    """`checksum` of the samples' names: two runs with the same one were asked about the same samples."""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the largest logit, the first of equal ones, is the truth's: n."""
        return np.asarray(self.logits.argmax(1) == self.labels)


def checksum(keys: Sequence[str]) -> str:
    """SHA-256 of samples' names in their order, in hexadecimal."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def write(folder: Path, found: Predictions) -> None:
    """Write a run's predictions, aside and moved into place. Raises OSError for a disk."""
    metadata = {"format": FORMAT, "classes": json.dumps(found.classes), "samples": found.samples}
    tensors: dict[str, NDArray[Any]] = {
        "logits": np.ascontiguousarray(found.logits, np.float32),
        "labels": np.ascontiguousarray(found.labels, np.int64),
    }
    write_atomically(folder / FILE, save(tensors, metadata))


def read(folder: Path) -> Predictions:
    """A run's predictions. Raises PredictionsError for a file that is missing, damaged, or of another form."""
    file = folder / FILE
    if not file.exists():
        raise PredictionsError(
            f"{folder} has no {FILE}: the run measured no test split, or is older than that file; train it again"
        )
    try:
        with safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
        classes = json.loads(metadata.get("classes", "null"))
    except (SafetensorError, OSError, TypeError, json.JSONDecodeError) as error:
        raise PredictionsError(f"{file} cannot be read: {error}; remove it, or train the run again") from error
    wrong = _wrong(metadata, tensors, classes)
    if wrong:
        raise PredictionsError(f"{file}: {wrong}; remove it, or train the run again")
    return Predictions(tensors["logits"], tensors["labels"], tuple(classes), metadata["samples"])


def _wrong(metadata: dict[str, str], tensors: dict[str, Any], classes: Any) -> str:
    """What is wrong with the content of a file; empty where nothing is."""
    if metadata.get("format") != FORMAT:
        return f"format must be {FORMAT}, got {metadata.get('format')!r}"
    if not (isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)):
        return f"the metadata's classes must be a list of names, got {metadata.get('classes')!r}"
    if not metadata.get("samples"):
        return "the metadata lack samples, the checksum of the samples' names"
    logits, labels = tensors.get("logits"), tensors.get("labels")
    if logits is None or logits.dtype != np.float32 or logits.ndim != 2 or logits.shape[1] != len(classes):
        return f"logits must be float32, n x {len(classes)}, got {_form(logits)}"
    if labels is None or labels.dtype != np.int64 or labels.shape != logits.shape[:1]:
        return f"labels must be {len(logits)} int64, got {_form(labels)}"
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(classes):
        return f"labels must be there and lie in 0 ... {len(classes) - 1}"
    return ""


def _form(tensor: Any) -> str:
    return "none" if tensor is None else f"{tensor.dtype} {' x '.join(map(str, tensor.shape))}"
