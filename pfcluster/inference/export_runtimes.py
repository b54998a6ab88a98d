"""`pfcluster export --format onnx|torch-export|timm`: a run for other runtimes, each file checked against torch.

Legend: b images, s side of a stored image, z side of the network's input.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pfcluster.inference.errors import InferenceError
from pfcluster.inference.evaluation_images import EvaluationImages, evaluation_images, random_images
from pfcluster.inference.export import is_model, read_source
from pfcluster.inference.graphs import BATCH, ClassifierGraph, graphs, loaded, network_input, traced
from pfcluster.inference.model_folder import SUFFIX, require_free, write_folder
from pfcluster.inference.model_info import ModelInfo
from pfcluster.inference.onnx_predictor import open_session
from pfcluster.inference.runtime_info import (
    CLASSIFIER_EXPORT,
    CLASSIFIER_INT8,
    CLASSIFIER_ONNX,
    FEATURES,
    INPUT,
    LOGITS,
    POKER_FACE_EXPORT,
    POKER_FACE_ONNX,
    POKER_FACES,
    TIMM_FILE,
    Int8Info,
    RuntimeFormat,
    RuntimeInfo,
)
from pfcluster.inference.timm_weights import load_in_timm, timm_info, timm_state
from pfcluster.inference.torch_predictor import build_net, load_weights
from pfcluster.system.extras import install_command

OPSET = 18
"""ONNX's opset: the first with Col2Im and the antialiased Resize that the preprocessing needs."""
TOLERANCE = 1e-4
"""Largest difference to torch, relative to the largest output where that exceeds 1."""
MAX_ONNX_BYTES = 2**31
"""An ONNX file is one protobuf message."""
Outputs = tuple[NDArray[np.float32], ...]


@dataclass
class _Exported:
    """Files of a format, with their entries in `config.json`."""

    files: dict[str, bytes]
    differences: dict[str, float]
    packages: tuple[str, ...]
    more: dict[str, Any]


def export_runtime(
    run: Path,
    output: Path,
    format: RuntimeFormat,
    *,
    int8: bool = False,
    shards: str | None = None,
    license: str | None = None,
) -> ModelInfo:
    """Write the best checkpoint of a run, or a model (see `read_source`), as a folder for another runtime.

    `int8`: with "onnx", quantise the classifier as well and measure its accuracy. Nothing is written unless the files
    compute what torch computes. Raises InferenceError, CheckpointError, OSError.
    """
    if output.suffix == SUFFIX:
        raise InferenceError(f"--format {format} writes a folder; use a name without {SUFFIX} as --output")
    require_free(output)
    if format == "onnx":
        _require_onnx()
    model = read_source(run, shards, license)
    net = build_net(model.info).requires_grad_(False)
    load_weights(net, model.weights, model.info, str(run))
    images = random_images(model.info) if is_model(run) else evaluation_images(run, model.info, shards)
    exported = _export(format, model.info, net, images, int8)
    for name, difference in exported.differences.items():
        if not difference <= TOLERANCE:  # NaN, too
            raise InferenceError(
                f"{name} gives other values than torch (largest difference {difference:.1e}, allowed"
                f" {TOLERANCE:.0e}), so nothing was written; try other versions of torch and {format.split('-')[0]}"
            )
    runtime = RuntimeInfo(
        format=format,
        files={name: hashlib.sha256(content).hexdigest() for name, content in exported.files.items()},
        largest_difference=exported.differences,
        checked_on=images.origin,
        versions={name: version(name) for name in exported.packages},
        **exported.more,
    )
    info = dataclasses.replace(model.info, runtime=runtime)
    write_folder(output, info, exported.files)
    return info


def _export(format: RuntimeFormat, info: ModelInfo, net: nn.Module, images: EvaluationImages, int8: bool) -> _Exported:
    if format == "onnx":
        return _onnx(info, net, images, int8)
    return _torch_export(info, net, images) if format == "torch-export" else _timm(info, net, images)


def _require_onnx() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise InferenceError(
                f"--format onnx needs {name}, which cannot be imported ({error}): {install_command('onnx')}"
            ) from error


def _onnx(info: ModelInfo, net: nn.Module, images: EvaluationImages, int8: bool) -> _Exported:
    classifier, generator = graphs(info, net)
    _require_size(net, info)
    files = {CLASSIFIER_ONNX: to_onnx(classifier, info)}
    run = onnx_runner(files[CLASSIFIER_ONNX])
    differences = {CLASSIFIER_ONNX: _difference(classifier, run, images.crops)}
    if generator is not None:
        files[POKER_FACE_ONNX] = to_onnx(generator, info)
        differences[POKER_FACE_ONNX] = _difference(generator, onnx_runner(files[POKER_FACE_ONNX]), images.crops)
    more: dict[str, Any] = {"opset": OPSET}
    if int8:
        files[CLASSIFIER_INT8] = _quantised(files[CLASSIFIER_ONNX])
        quantised = onnx_runner(files[CLASSIFIER_INT8])
        figures, reason = images.compare(lambda crops: run(crops)[0], lambda crops: quantised(crops)[0])
        more["int8"] = Int8Info(figures=figures, reason=reason)
    return _Exported(files, differences, ("torch", "onnx", "onnxscript", "onnxruntime"), more)


def _require_size(net: nn.Module, info: ModelInfo) -> None:
    size = sum(value.numel() * value.element_size() for value in net.state_dict().values())
    if size >= MAX_ONNX_BYTES:
        raise InferenceError(
            f"{info.name} has {size / 2**30:.1f} GiB of weights, and a file of ONNX holds at most 2 GiB; use --format"
            " torch-export"
        )


def to_onnx(graph: nn.Module, info: ModelInfo) -> bytes:
    """A graph as an ONNX model with dynamic batch."""
    outputs = [LOGITS, FEATURES] if isinstance(graph, ClassifierGraph) else [POKER_FACES]
    with _no_warnings():
        program = torch.onnx.export(
            traced(graph, info),
            input_names=[INPUT],
            output_names=outputs,
            dynamic_shapes={INPUT: {0: BATCH}},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def onnx_runner(model: bytes) -> Callable[[NDArray[np.uint8]], Outputs]:
    """All outputs of an ONNX graph, in its order, for crops."""
    session = open_session(model)
    return lambda crops: tuple(session.run(None, {INPUT: crops}))


def _quantised(model: bytes) -> bytes:
    """Weights of matrix products and convolutions as uint8 with one scale each, activations at run time. Not as int8:
    processors without VNNI instructions saturate its 16-bit sums (on the synthetic faces 10 points of accuracy).
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory() as folder, _no_warnings():
        path = Path(folder) / CLASSIFIER_INT8
        quantize_dynamic(
            onnx.load_from_string(model),
            path,
            weight_type=QuantType.QUInt8,
            op_types_to_quantize=["MatMul", "Gemm", "Conv"],
        )
        return path.read_bytes()


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """The exporter and the quantiser log which optional optimisations they leave out."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _torch_export(info: ModelInfo, net: nn.Module, images: EvaluationImages) -> _Exported:
    classifier, generator = graphs(info, net)
    files: dict[str, bytes] = {}
    differences: dict[str, float] = {}
    for name, graph in ((CLASSIFIER_EXPORT, classifier), (POKER_FACE_EXPORT, generator)):
        if graph is None:
            continue
        buffer = io.BytesIO()
        torch.export.save(traced(graph, info), buffer)
        files[name] = buffer.getvalue()
        buffer.seek(0)
        differences[name] = _difference(graph, _module_runner(loaded(buffer)), images.crops)
    return _Exported(files, differences, ("torch",), {})


def _timm(info: ModelInfo, net: nn.Module, images: EvaluationImages) -> _Exported:
    described = timm_info(info)
    content = timm_state(info, net)
    with TemporaryDirectory() as folder:
        path = Path(folder) / TIMM_FILE
        path.write_bytes(content)
        model = load_in_timm(described, path)

    def encoder(crops: Tensor) -> Tensor:
        return net.encoder(network_input(crops, info.network.size))  # type: ignore[operator]

    def timms(crops: Tensor) -> Tensor:
        return model.forward_features(network_input(crops, info.network.size))  # type: ignore[operator]

    difference = _difference(encoder, _module_runner(timms), images.crops)
    return _Exported({TIMM_FILE: content}, {TIMM_FILE: difference}, ("torch", "timm"), {"timm": described})


def _module_runner(module: Callable[[Tensor], Any]) -> Callable[[NDArray[np.uint8]], Outputs]:
    return lambda crops: _outputs(module, crops)


@torch.no_grad()
def _outputs(module: Callable[[Tensor], Any], crops: NDArray[np.uint8]) -> Outputs:
    values = module(torch.from_numpy(crops))
    return tuple(value.numpy() for value in (values if isinstance(values, list | tuple) else (values,)))


def _difference(
    graph: Callable[[Tensor], Any], run: Callable[[NDArray[np.uint8]], Outputs], crops: NDArray[np.uint8]
) -> float:
    """Largest difference of all outputs, in a batch and for a single image."""
    largest = 0.0
    for batch in (crops, crops[:1]):
        for expected, actual in zip(_outputs(graph, batch), run(batch), strict=True):
            scale = max(1.0, float(np.abs(expected).max()))
            difference = float(np.abs(expected - actual).max()) / scale
            largest = max(largest, difference if np.isfinite(difference) else float("inf"))
    return largest
