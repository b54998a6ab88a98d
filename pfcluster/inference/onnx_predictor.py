"""A model in onnxruntime, on the CPU. No torch.

Legend: b images, s side of a stored image, z side of the network's input, k classes, d features.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfcluster.inference.errors import InferenceError, NoGeneratorError
from pfcluster.inference.model_info import CONFIG_FILE, read_info
from pfcluster.inference.runtime_info import (
    CLASSIFIER_INT8,
    CLASSIFIER_ONNX,
    FEATURES,
    INPUT,
    LOGITS,
    POKER_FACE_ONNX,
    POKER_FACES,
    RuntimeInfo,
)
from pfcluster.system.atomic_files import sha256
from pfcluster.system.extras import install_command

ERROR_SEVERITY = 3
"""onnxruntime's number: log errors only."""


class OnnxPredictor:
    """See `Predictor`. As many threads as OMP_NUM_THREADS says, by default one per core."""

    def __init__(self, folder: Path, *, int8: bool = False) -> None:
        """Open a folder of `pfcluster export --format onnx`; `int8` takes the quantised classifier.

        Raises InferenceError.
        """
        if not folder.is_dir():
            raise InferenceError(
                f"onnxruntime needs a folder of `pfcluster export RUN --format onnx` as --model, not {folder};"
                " --engine torch takes the other forms of --model"
            )
        self.info = read_info(folder)
        self._folder = folder
        self._runtime = self._onnx()
        name = CLASSIFIER_INT8 if int8 else CLASSIFIER_ONNX
        if name not in self._runtime.files:
            raise InferenceError(f"{folder} has no {name}; export the run again with --format onnx --int8")
        self._classifier = self._session(name)
        self._generator: Any = None

    def logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Predictor`."""
        return _run(self._classifier, LOGITS, crops)

    def features(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Predictor`."""
        return _run(self._classifier, FEATURES, crops)

    def poker_faces(self, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """See `Predictor`. Loads the generator at the first call."""
        if not self.info.generates:
            raise NoGeneratorError(self.info.name)
        if self._generator is None:
            self._generator = self._session(POKER_FACE_ONNX)
        images = _run(self._generator, POKER_FACES, crops).transpose(0, 2, 3, 1)
        return ((images + 1) * 127.5).round().clip(0, 255).astype(np.uint8)

    def _onnx(self) -> RuntimeInfo:
        runtime = self.info.runtime
        if runtime is None or runtime.format != "onnx":
            there = "safetensors" if runtime is None else runtime.format
            raise InferenceError(
                f"{self._folder} holds the model as {there}, not as ONNX; write it with `pfcluster export RUN --format"
                " onnx --output DIR`"
            )
        return runtime

    def _session(self, name: str) -> Any:
        path = self._folder / name
        if not path.is_file():
            raise InferenceError(
                f"{self._folder} has no {name}, which its {CONFIG_FILE} names; copy or export it again"
            )
        if sha256(path) != self._runtime.files.get(name):
            raise InferenceError(
                f"{path} is damaged: its checksum is not that of {CONFIG_FILE}; copy or export it again"
            )
        return open_session(path)


def open_session(model: Path | bytes) -> Any:
    """An onnxruntime session of a file or its content. Raises InferenceError."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InferenceError(
            f"ONNX models need onnxruntime, which cannot be imported ({error}): {install_command('onnx')}"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERROR_SEVERITY
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal():
        options.intra_op_num_threads = int(threads)
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base but this one
        reason = " ".join(str(error).split())[:200]
        name = "the exported graph" if isinstance(model, bytes) else str(model)
        raise InferenceError(
            f"onnxruntime {onnxruntime.__version__} cannot open {name}: {reason}; use the version of onnxruntime that"
            f" {CONFIG_FILE} names, or a newer one"
        ) from error


def _run(session: Any, output: str, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
    (values,) = session.run([output], {INPUT: np.ascontiguousarray(crops)})
    array: NDArray[np.float32] = values
    return array
