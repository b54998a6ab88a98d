"""Small models with random weights, as `pfcluster export` writes them, and rendered faces as photos."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from pfcluster.data.synthetic.dataset import SyntheticFaces
from pfcluster.inference.model_folder import with_precision, write_model
from pfcluster.inference.model_info import (
    EncoderInfo,
    GeneratorInfo,
    Kind,
    ModelInfo,
    NetworkInfo,
    Preprocessing,
    Training,
    build_template,
)
from pfcluster.inference.torch_predictor import build_net

CLASSES = ("neutral", "happiness", "sadness")


def info(kind: Kind = "vit", *, crop_size: int = 48, quality: int | None = 95) -> ModelInfo:
    """The config of a model with nets of 32 px."""
    encoder = EncoderInfo(patch=8, width=32, depth=2, heads=2, mlp_ratio=2.0)
    generator = GeneratorInfo(
        width=16,
        depth=1,
        heads=2,
        separator_ratio=0.25,
        fusion="cross",
        fusion_bias=4.0,
        class_mask_bias=1.0,
        patch_mask_bias=-1.0,
        patch_overlap=2,
        erasure=True,
    )
    network = NetworkInfo(
        kind=kind,
        size=32,
        encoder=None if kind == "cnn" else encoder,
        generator=generator if kind == "pf_vit" else None,
    )
    return ModelInfo(
        name=f"tiny-{kind}",
        network=network,
        classes=CLASSES,
        preprocessing=Preprocessing(
            align="mtcnn", crop_size=crop_size, template=build_template(), jpeg_quality=quality
        ),
        training=Training(
            dataset="tiny", votes=None, samples={"train": 9}, objective="finetune", seed=0, step=3, commit=None
        ),
        figures=None,
        license="other",
        weights_sha256="",
    )


def write(output: Path, kind: Kind = "vit", **changes: int | None) -> tuple[ModelInfo, nn.Module]:
    """Write a model; -> its config and its net."""
    described = info(kind, **changes)  # type: ignore[arg-type]
    net = build_net(described)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in net.parameters():  # so that logits differ between images, and no part starts at zero
            nn.init.normal_(parameter, std=0.2)
        for name, buffer in net.named_buffers():
            if name == "erasure.calibrated.fitted":
                buffer.fill_(1)
            elif name.startswith("erasure.calibrated."):
                nn.init.normal_(buffer, std=0.05)
    described, weights = with_precision(described, net.state_dict(), "float32")
    write_model(output, described, weights)
    return described, net


def face_pictures(folder: Path, count: int, side: int = 160) -> list[Path]:
    """Photos of rendered faces that MTCNN detects, as PNGs."""
    paths = [folder / f"face{number}.png" for number in range(count)]
    for path, pixels in zip(paths, rendered(count, side), strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def rendered(count: int, side: int = 160) -> NDArray[np.uint8]:
    """Rendered faces without distractions: n side side 3."""
    images = SyntheticFaces(count, size=side, nuisance=0.0, seed=3).images(range(count))
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def write_video(path: Path, frames: Sequence[NDArray[np.uint8]], rate: float = 25.0) -> Path:
    """Write an MP4 of frames h w 3."""
    from pfcluster.inference.video import VideoWriter

    writer = VideoWriter(path, rate, frames[0].shape[1], frames[0].shape[0])
    for frame in frames:
        writer.write(frame)
    writer.close()
    return path


def rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV that `predict` wrote."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
