"""What benchmarks/inference.py times: `predict` in its engines, and the loop that is usually written without pfcluster.

Every variant reads files and gives the number of faces that it classified. Legend: s side of a crop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from pfcluster.inference.crops import Cropper, DetectedFaces, WholePhotos
from pfcluster.inference.export_runtimes import export_runtime
from pfcluster.inference.model import Model
from pfcluster.inference.model_info import ModelInfo
from pfcluster.inference.onnx_predictor import OnnxPredictor
from pfcluster.inference.prediction import Counts, PredictionOptions, run_prediction
from pfcluster.inference.predictor import Predictor
from pfcluster.inference.sources import list_inputs
from pfcluster.inference.timm_weights import timm_info

Run = Callable[[], int]
"""Classifies all photos; -> number of faces."""
LOOP = "loop: PIL, MTCNN, timm, one by one"
CROP_LOOP = "loop: PIL, timm, one by one"


def photo_variants(model: Model, photos: Sequence[str], folder: Path) -> dict[str, Run]:
    """With detection, the loop first."""
    every, one = (DetectedFaces(model.info.preprocessing, "cpu", which) for which in ("all", "one"))
    return {
        LOOP: photo_loop(model.info, photos),
        "predict, batch 1": predict(model.predictor, every, photos, 1, folder),
        "predict, batch 32": predict(model.predictor, every, photos, 32, folder),
        "predict --faces one, batch 32": predict(model.predictor, one, photos, 32, folder),
    }


def crop_variants(name: str, model: Model, crops: Sequence[str], folder: Path) -> dict[str, Run]:
    """Without detection, the loop first."""
    export_runtime(Path(name), folder / "onnx", "onnx", int8=True)
    predictors: dict[str, Predictor] = {
        "torch": model.predictor,
        "onnx": OnnxPredictor(folder / "onnx"),
        "onnx-int8": OnnxPredictor(folder / "onnx", int8=True),
    }
    whole = WholePhotos(model.info.preprocessing)
    return {CROP_LOOP: crop_loop(model.info, crops)} | {
        f"predict --no-detect --engine {engine}, batch {size}": predict(predictor, whole, crops, size, folder)
        for engine, predictor in predictors.items()
        for size in (1, 32)
    }


def predict(predictor: Predictor, cropper: Cropper, photos: Sequence[str], batch_size: int, folder: Path) -> Run:
    """`pfcluster predict` into a table, without the start of the process."""
    numbers = count()

    def run() -> int:
        output = folder / f"{id(predictor)}-{batch_size}-{next(numbers)}.csv"
        options = PredictionOptions(output=output, batch_size=batch_size)
        try:
            return run_prediction(
                list_inputs(photos).sources, predictor, cropper, options, show=print, advance=lambda _: None
            ).faces
        finally:
            output.unlink(missing_ok=True)

    return run


def timm_net(info: ModelInfo) -> nn.Module:
    """timm's ViT of the model's sizes, with a head; its weights do not matter for the time."""
    import timm

    described = timm_info(info)
    options: dict[str, Any] = {**described.options, "num_classes": len(info.classes)}
    net: nn.Module = timm.create_model(described.name, **options)
    return net.eval()


def photo_loop(info: ModelInfo, photos: Sequence[str]) -> Run:
    """facenet-pytorch's crops of all faces of a photo, each through timm's net."""
    from facenet_pytorch import MTCNN

    detector, net = MTCNN(image_size=info.network.size, margin=0, keep_all=True), timm_net(info)

    @torch.inference_mode()
    def run() -> int:
        faces = 0
        for path in photos:
            crops = detector(Image.open(path).convert("RGB"))  # faces 3 s s in -1..1
            for crop in () if crops is None else crops:
                net(crop[None]).softmax(1).argmax(1).item()
                faces += 1
        return faces

    return run


def crop_loop(info: ModelInfo, crops: Sequence[str]) -> Run:
    """Each crop through timm's net."""
    net, size = timm_net(info), info.network.size

    @torch.inference_mode()
    def run() -> int:
        for path in crops:
            pixels = np.asarray(Image.open(path).convert("RGB").resize((size, size)))
            image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 127.5 - 1
            net(image).softmax(1).argmax(1).item()
        return len(crops)

    return run


def write_crops(model: Model, photos: Sequence[str], number: int, folder: Path) -> list[str]:
    """Crops of the photos' faces as PNGs, repeated until there are `number`."""
    folder.mkdir()
    faces = model.predict(list(photos), faces="one")
    crops = [face.crop for face in faces if face.crop is not None]
    paths = [folder / f"{index:05d}.png" for index in range(number)]
    for index, path in enumerate(paths):
        Image.fromarray(crops[index % len(crops)]).save(path)
    return [str(path) for path in paths]


def resident_mb(model: Model, photos: Sequence[str], every: int, folder: Path) -> dict[int, float]:
    """Memory of this process in MB after each `every` photos of a prediction with detection: photos -> MB."""
    values: dict[int, float] = {}

    def advance(counts: Counts) -> None:
        if counts.sources % every == 0:
            values[counts.sources] = _resident_mb()

    cropper = DetectedFaces(model.info.preprocessing, "cpu", "one")
    options = PredictionOptions(output=folder / "memory.csv")
    run_prediction(list_inputs(photos).sources, model.predictor, cropper, options, show=print, advance=advance)
    return values


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6
