"""Photos and readers that benchmarks/data.py compares."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from pfcluster.config import AugmentConfig, DataConfig
from pfcluster.data import transforms
from pfcluster.data.build.options import BuildOptions
from pfcluster.data.build.pipeline import build
from pfcluster.data.dataset import cache_train_split, open_dataset
from pfcluster.data.sampler import FullShuffle, SampleOrder, read_ahead
from pfcluster.data.shards import ShardSplit
from pfcluster.data.synthetic.dataset import SyntheticFaces
from pfcluster.distributed.counter_random import uniform

SIDE = 224
COUNT = 2048
BATCH = 64
CROP = AugmentConfig(flip=0.5, crop_scale=(0.2, 1.0), crop_ratio=(3 / 4, 4 / 3), rotation=0.0, jitter=0.0)
PLAIN_MEAN = [0.5, 0.5, 0.5]
Read = Callable[[], int]
"""Reads an epoch; returns the number of images."""


def make_photos(root: Path, count: int = COUNT, side: int = SIDE) -> Path:
    """Write class folders of JPEGs at quality 95, as cameras and `shards/build.py` do."""
    faces = SyntheticFaces(count, size=side, seed=3)
    rng = np.random.default_rng(0)
    for start in range(0, count, 128):
        chosen = torch.arange(start, min(count, start + 128))
        for index, image in zip(chosen.tolist(), faces.images(chosen), strict=True):
            label = faces.classes[int(faces.labels()[index])]
            pixels = image.permute(1, 2, 0).numpy() + rng.normal(0, 4, (side, side, 3))
            (root / label).mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            picture.save(root / label / f"{index:05d}.jpg", quality=95, subsampling=0)
    return root


def make_shards(photos: Path, output: Path, side: int = SIDE, val_share: float = 0.002) -> Path:
    """Write the same JPEGs, byte for byte, into shards."""
    build(
        BuildOptions(
            input=photos,
            output=output,
            size=side,
            align="none",
            val_share=val_share,
            samples_per_shard=512,
            workers=2,
        )
    )
    return output


def real_crops(photos: Path, scratch: Path) -> tuple[Path, Path]:
    """Write aligned crops of real photos as shards, and the same JPEGs in class folders; (folder, shards)."""
    shards, folder = scratch / "real-shards", scratch / "real-photos"
    build(BuildOptions(input=photos / "legend.csv", output=shards, size=SIDE, val_share=0.02, workers=2))
    split = ShardSplit(shards, "train")
    for index, label in enumerate(split.labels().tolist()):
        path = folder / split.classes[label] / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(split.jpeg(index))
    return folder, shards


def decoders(jpegs: list[bytes]) -> dict[str, Read]:
    """Readers that only decode JPEGs in memory to RGB."""
    import simplejpeg
    from torchvision.io import ImageReadMode, decode_jpeg

    buffer = np.empty((SIDE, SIDE, 3), np.uint8)
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in jpegs]

    def pillow(data: bytes) -> object:
        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture.convert("RGB"))

    def opencv(data: bytes) -> object:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), 1)
        assert pixels is not None
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)

    variants: dict[str, tuple[Callable[[Any], object], list[Any]]] = {
        "pillow": (pillow, jpegs),
        "torchvision": (lambda data: decode_jpeg(data, mode=ImageReadMode.RGB), tensors),
        "cv2": (opencv, jpegs),
        "simplejpeg": (lambda data: simplejpeg.decode_jpeg(data, buffer=buffer), jpegs),
    }

    def run(decode: Callable[[Any], object], files: list[Any]) -> int:
        for data in files:
            decode(data)
        return len(files)

    return {name: functools.partial(run, *pair) for name, pair in variants.items()}


def image_folder(photos: Path, *, augment: bool) -> Read:
    """torchvision's ImageFolder and DataLoader, as in torchvision's reference training scripts."""
    from torch.utils.data import DataLoader
    from torchvision import datasets
    from torchvision import transforms as tv

    augmentation = [tv.RandomResizedCrop(SIDE, (0.2, 1.0)), tv.RandomHorizontalFlip()] if augment else []
    dataset = datasets.ImageFolder(
        str(photos), tv.Compose([*augmentation, tv.ToTensor(), tv.Normalize(PLAIN_MEAN, PLAIN_MEAN)])
    )
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=0)
    return lambda: sum(len(labels) for _, labels in loader)


def web_dataset(shards: Path, *, augment: bool, fast: bool) -> Read:
    """A webdataset pipeline: with pillow and torchvision as in its documentation, or `fast` with simplejpeg and cv2."""
    import simplejpeg
    import webdataset
    from torchvision import transforms as tv

    urls = [str(path) for path in sorted(shards.glob("train-*.tar"))]
    augmentation = [tv.RandomResizedCrop(SIDE, (0.2, 1.0)), tv.RandomHorizontalFlip()] if augment else []
    transform = tv.Compose([*augmentation, tv.ToTensor(), tv.Normalize(PLAIN_MEAN, PLAIN_MEAN)])
    rng = np.random.default_rng(0)

    def decode(data: bytes) -> torch.Tensor:
        pixels = simplejpeg.decode_jpeg(data)
        if augment:
            side = int(SIDE * rng.uniform(0.45, 1.0))
            top, left = rng.integers(0, SIDE - side + 1, 2)
            pixels = cv2.resize(pixels[top : top + side, left : left + side], (SIDE, SIDE))
            pixels = cv2.flip(pixels, 1) if rng.random() < 0.5 else pixels
        return torch.from_numpy(pixels)

    pipeline = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0).shuffle(1000)
    if fast:
        pipeline = pipeline.to_tuple("jpg", "json").map_tuple(decode, lambda record: record)
    else:
        pipeline = pipeline.decode("pil").to_tuple("jpg", "json").map_tuple(transform, lambda record: record)
    pipeline = pipeline.batched(BATCH, partial=True)
    return lambda: sum(len(batch[0]) for batch in pipeline)


def ours(shards: Path, cache: Path, *, augment: bool, cache_mode: str) -> Read:
    """The project's reader: sample order, memory-mapped tars, and with augmentation uint8 crops on the host."""
    config = DataConfig(shards=str(shards), size=SIDE, cache_mode=cache_mode, cache=str(cache))  # type: ignore[arg-type]
    dataset = cache_train_split(open_dataset(config, 0), config, torch.device("cpu"))
    order = SampleOrder(len(dataset.train), FullShuffle(len(dataset.train), 0))

    def load(step: int) -> torch.Tensor:
        images = dataset.train.batch(order.samples(step * BATCH, BATCH)).images
        if not augment:
            return images
        drawn = uniform(slice(0, BATCH), transforms.N_DRAWS, 0, "augment", step)
        return transforms.crop_on_host(images, transforms.params_from(CROP, drawn), SIDE)

    steps = len(dataset.train) // BATCH
    return lambda: sum(len(images) for images in read_ahead(load, range(steps), workers=0))
