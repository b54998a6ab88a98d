"""Photos aligned and faces classified per second."""

from __future__ import annotations

import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_parts.measurements import GpuDayOptions, Measurement, Slice, Unavailable
from benchmarks.gpu_parts.steps import ROLES, sizes, step_config
from pfcluster.config import RunConfig
from pfcluster.data.build.align import NO_HINT
from pfcluster.data.jpeg import UnreadablePhotoError, decode_photo
from pfcluster.data.labels import CANONICAL
from pfcluster.data.synthetic.dataset import SyntheticFaces

PHOTOS, PHOTO_SIDE, WINDOW = 512, 350, 32
"""`pfcluster build` and `predict` detect in windows of photos."""
FACES, BATCH = 8192, 256


def alignment_measurements() -> list[Measurement]:
    """MTCNN and crops, as a build does it."""
    return [Measurement("alignment", 60.0, _alignment, needs=("facenet_pytorch", "cv2"))]


def inference_measurements(options: GpuDayOptions) -> list[Measurement]:
    """The network of `pfcluster predict`, by kind and size."""
    return [
        Measurement(f"{kind}-{size}/{output}", 15.0, partial(_inference, kind=kind, size=size, output=output))
        for kind, output in (("mae-vit", "logits"), ("pf-mag", "logits"), ("pf-mag", "poker faces"))
        for size in sizes(options)
    ]


def _alignment(here: Slice) -> dict[str, Any]:
    from pfcluster.data.build.detect import FaceAligner

    photos = _photos(here)
    aligner = FaceAligner(112, device=str(here.world.device))
    windows = [photos[start : start + WINDOW] for start in range(0, len(photos), WINDOW)]

    def detect(window: list[np.ndarray]) -> int:
        return sum(bool(faces) for faces in aligner.detect_selected(window, [NO_HINT] * len(window)))

    detect(windows[0])
    here.wait()
    began = time.perf_counter()
    found = sum(map(detect, windows))
    here.wait()
    return {
        "photos_per_second": len(photos) / (time.perf_counter() - began),
        "photos": len(photos),
        "with_face": found / len(photos),
    }


def _photos(here: Slice) -> list[np.ndarray]:
    """Photos of --photos, or rendered faces: h w 3 each. Raises Unavailable if the folder has none."""
    count = 4 if here.options.miniature else PHOTOS
    folder = here.options.photos
    if folder is None:
        images = SyntheticFaces(count, size=224, seed=5).images().permute(0, 2, 3, 1).numpy()
        margin = (PHOTO_SIDE - 224) // 2
        return [np.pad(image, ((margin, margin), (margin, margin), (0, 0)), constant_values=128) for image in images]
    photos = list(islice(_readable(sorted(path for path in folder.rglob("*") if path.is_file())), count))
    if not photos:
        raise Unavailable(f"--photos {folder} has no readable photo")
    return photos


def _readable(paths: list[Path]) -> Any:
    for path in paths:
        try:
            yield decode_photo(path.read_bytes())[0]
        except UnreadablePhotoError:
            continue


def _inference(here: Slice, *, kind: str, size: str, output: str) -> dict[str, Any]:
    predictor = _predictor(here, kind, size)
    faces, batch = (8, 4) if here.options.miniature else (FACES, BATCH)
    side = predictor.info.preprocessing.crop_size
    crops = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    compute = predictor.logits if output == "logits" else predictor.poker_faces
    compute(crops)
    began = time.perf_counter()
    for _ in range(faces // batch):
        compute(crops)
    return {"faces_per_second": faces / (time.perf_counter() - began), "batch": batch}


def _predictor(here: Slice, kind: str, size: str) -> Any:
    """The predictor of a preset's net with random weights."""
    from pfcluster.inference.model_info import ModelInfo, Preprocessing, Training, build_template
    from pfcluster.inference.torch_predictor import TorchPredictor, build_net, network_info

    config = step_config(here, "pf-mag", size)
    if kind not in ROLES:
        config = RunConfig(data=config.data, model=config.model)
    info = ModelInfo(
        name=kind,
        network=network_info(config),
        classes=CANONICAL,
        preprocessing=Preprocessing(align="mtcnn", crop_size=config.data.size, template=build_template()),
        training=Training(
            dataset="none", votes=None, samples={}, objective=config.objective, seed=0, step=0, commit=None
        ),
        figures=None,
        license="none",
        weights_sha256="",
    )
    return TorchPredictor(info, build_net(info), str(here.world.device))
