"""One model in every form: largest difference to the stored weights in torch, accuracy on the test split, size on disk.

    python -m benchmarks.inference_parity [--model builtin:synthetic]

All forms get the same stored images in batches of 32; the test split is that of benchmarks/results/release_models.json.

Legend: b images, s side of a stored image, k classes, d features.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import pfcluster
from benchmarks.release_figures import BATCH
from benchmarks.release_models import RESULTS, read_records
from benchmarks.steps import processor
from pfcluster.config import DataConfig
from pfcluster.config.json_files import convert
from pfcluster.data.dataset import open_dataset
from pfcluster.inference.builtin_models import BUILTIN, builtin_folder
from pfcluster.inference.export import export_run
from pfcluster.inference.export_runtimes import export_runtime, onnx_runner
from pfcluster.inference.graphs import graphs, loaded, network_input
from pfcluster.inference.model import Model
from pfcluster.inference.model_info import WEIGHTS_FILE, read_info
from pfcluster.inference.onnx_predictor import OnnxPredictor
from pfcluster.inference.runtime_info import (
    CLASSIFIER_EXPORT,
    CLASSIFIER_INT8,
    CLASSIFIER_ONNX,
    POKER_FACE_EXPORT,
    POKER_FACE_ONNX,
    TIMM_FILE,
)
from pfcluster.inference.timm_weights import load_in_timm

COMMAND = "python -m benchmarks.inference_parity"
NAME = "inference_parity"
Crops = NDArray[np.uint8]
Compute = Callable[[Crops], NDArray[np.float32]]
"""Stored images b s s 3 -> logits b k or poker faces b 3 z z."""


@dataclass(frozen=True)
class Form:
    """A form of the model."""

    name: str
    size: int
    """Bytes on disk."""
    logits: Compute
    poker_faces: Compute | None = None


@dataclass(frozen=True)
class Row:
    """A form against the stored weights."""

    form: Form
    logits: float
    """Largest difference of the logits."""
    poker_faces: float | None
    """Largest difference of the poker faces, values in -1..1."""
    correct: int
    """Images with the right label."""
    same_label: int
    """Images with the label that the stored weights give."""


def forms(name: str, folder: Path) -> Iterator[Form]:
    """The model in torch, and exported in every form into a folder."""
    model = pfcluster.load(name, device="cpu")
    yield _torch("torch, from the package (float16 on disk)", model, builtin_folder() / name.removeprefix(BUILTIN))
    for precision in ("float32", "float16"):
        path = folder / precision
        export_run(Path(name), path, precision=precision)
        yield _torch(f"`--format safetensors --precision {precision}`", pfcluster.load(path, device="cpu"), path)
    yield from _onnx(name, folder / "onnx", model.info.generates)
    yield _torch_export(name, folder / "torch-export", model.info.generates)
    yield _timm(name, folder / "timm", model)


def _torch(name: str, model: Model, folder: Path) -> Form:
    _, generator = graphs(model.info, model.predictor.net)
    poker_faces = None if generator is None else partial(_run_module, generator)
    return Form(name, (folder / WEIGHTS_FILE).stat().st_size, model.predictor.logits, poker_faces)


def _onnx(name: str, folder: Path, generates: bool) -> Iterator[Form]:
    export_runtime(Path(name), folder, "onnx", int8=True)
    files = [CLASSIFIER_ONNX, *([POKER_FACE_ONNX] if generates else [])]
    generator = onnx_runner((folder / POKER_FACE_ONNX).read_bytes()) if generates else None
    poker_faces = None if generator is None else lambda crops: generator(crops)[0]
    yield Form("`--format onnx`", _bytes(folder, files), OnnxPredictor(folder).logits, poker_faces)
    size = _bytes(folder, [CLASSIFIER_INT8])
    yield Form("`--format onnx --int8`, classifier", size, OnnxPredictor(folder, int8=True).logits)


def _torch_export(name: str, folder: Path, generates: bool) -> Form:
    export_runtime(Path(name), folder, "torch-export")
    files = [CLASSIFIER_EXPORT, *([POKER_FACE_EXPORT] if generates else [])]
    modules = []
    for file in files:
        with open(folder / file, "rb") as opened:
            modules.append(loaded(opened))
    computes = [partial(_run_module, module) for module in modules]
    return Form("`--format torch-export`", _bytes(folder, files), computes[0], computes[1] if generates else None)


def _timm(name: str, folder: Path, model: Model) -> Form:
    """timm's encoder in place of ours; what follows the encoder is ours."""
    export_runtime(Path(name), folder, "timm")
    described = read_info(folder).runtime
    assert described is not None
    assert described.timm is not None
    encoder = load_in_timm(described.timm, folder / TIMM_FILE)
    net: Any = pfcluster.load(name, device="cpu").predictor.net
    net.encoder.forward = lambda images, keep=None: encoder.forward_features(images)  # type: ignore[operator]
    classify = net.classify if model.info.network.kind == "pf_vit" else net
    size = model.info.network.size
    poker_faces = (
        partial(_run_module, lambda crops: net.generator(net.separate(network_input(crops, size))[2]))
        if model.info.generates
        else None
    )
    logits = partial(_run_module, lambda crops: classify(network_input(crops, size)))
    return Form("`--format timm`, encoder", _bytes(folder, [TIMM_FILE]), logits, poker_faces)


@torch.no_grad()
def _run_module(module: Callable[[torch.Tensor], Any], crops: Crops) -> NDArray[np.float32]:
    """The first output of a module."""
    values = module(torch.from_numpy(crops))
    array: NDArray[np.float32] = (values[0] if isinstance(values, list | tuple) else values).numpy()
    return array


def _bytes(folder: Path, files: list[str]) -> int:
    return sum((folder / file).stat().st_size for file in files)


def compare(candidates: Iterator[Form], crops: Crops, labels: NDArray[np.int64], pictures: int) -> Iterator[Row]:
    """Each form against the first one; poker faces of the first `pictures` images."""
    reference: tuple[NDArray[np.float32], NDArray[np.float32] | None] | None = None
    for form in candidates:
        logits = _batched(form.logits, crops)
        faces = None if form.poker_faces is None else _batched(form.poker_faces, crops[:pictures])
        if reference is None:
            reference = logits, faces
        difference = None if faces is None or reference[1] is None else float(np.abs(faces - reference[1]).max())
        answers = logits.argmax(1)
        yield Row(
            form,
            float(np.abs(logits - reference[0]).max()),
            difference,
            int((answers == labels).sum()),
            int((answers == reference[0].argmax(1)).sum()),
        )


def _batched(compute: Compute, crops: Crops) -> NDArray[np.float32]:
    return np.concatenate([compute(crops[start : start + BATCH]) for start in range(0, len(crops), BATCH)])


def markdown(name: str, rows: list[Row], images: int, pictures: int) -> str:
    """The table."""
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "onnxruntime", "timm"))
    lines = [
        "# One model in every form",
        "",
        f"{date.today().isoformat()}, {processor()}, {versions}. `{name}`: logits and labels of the {images:,}"
        f" images of its test split, poker faces of {pictures}, in batches of {BATCH}, against the first row. Reproduce"
        " with",
        "",
        f"    {COMMAND} --model {name}",
        "",
        "| form | size | largest difference, logits | poker faces (-1..1) | accuracy | difference | same label |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_line(row, rows[0], images) for row in rows),
        "",
        "`--format timm` is the encoder in timm's net, followed by our separator, classifier and generator. Sizes are"
        " of the weights or graphs: classifier and generator have a graph each, which both hold the encoder.",
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row, first: Row, images: int) -> str:
    cells = [
        row.form.name,
        f"{row.form.size / 1e6:.2f} MB",
        _number(row.logits),
        _number(row.poker_faces),
        f"{100 * row.correct / images:.2f} %",
        f"{100 * (row.correct - first.correct) / images:+.2f}",
        f"{row.same_label:,}",
    ]
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return "0" if value == 0 else f"{value:.1e}"


def main() -> int:
    """Export, compare, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=f"{BUILTIN}synthetic", help="a model of benchmarks.release_models")
    parser.add_argument("--data", type=Path, help="shards of its data, unless that is rendered")
    parser.add_argument("--images", type=int, help="only the first images of the test split")
    parser.add_argument("--pictures", type=int, default=128, help="images whose poker faces are compared")
    parser.add_argument("--output", type=Path, default=RESULTS / f"{NAME}.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    values: dict[str, Any] = dict(read_records()[options.model.removeprefix(BUILTIN)]["data"])
    values["shards"] = None if options.data is None else str(options.data)
    split = open_dataset(convert(DataConfig, values, "the model's data"), 0).test
    assert split is not None
    count = min(options.images or len(split), len(split))
    batch = split.batch(torch.arange(count))
    crops = batch.images.permute(0, 2, 3, 1).contiguous().numpy()
    with TemporaryDirectory() as folder:
        rows = list(compare(forms(options.model, Path(folder)), crops, batch.labels.numpy(), options.pictures))
    options.output.write_text(markdown(options.model, rows, count, min(options.pictures, count)))
    print(options.output.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
