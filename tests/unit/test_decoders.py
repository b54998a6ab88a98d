"""JPEG decoders: torchvision in place of simplejpeg, and `data.decode_on device`."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pfcluster.config import ConfigError, DataConfig
from pfcluster.data.build.pipeline import build
from pfcluster.data.dataset import cache_train_split, open_dataset
from pfcluster.data.jpeg import decode_jpeg
from pfcluster.data.shards import ShardSplit
from pfcluster.data.torch_jpeg import decode_jpegs_on, decode_with_torchvision
from tests.photos import make_folder, options

CPU = torch.device("cpu")


def jpeg(mode: str, side: int, subsampling: int) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8)
    picture, file = Image.fromarray(noise).resize((side, side)).convert(mode), io.BytesIO()
    picture.save(file, format="JPEG", quality=90, **({} if mode == "L" else {"subsampling": subsampling}))
    return file.getvalue()


@pytest.mark.parametrize(("mode", "subsampling"), [("L", 0), ("RGB", 0), ("RGB", 2)])
@pytest.mark.parametrize("side", [64, 113])
def test_torchvision_gives_the_pixels_of_simplejpeg(mode: str, subsampling: int, side: int) -> None:
    data = jpeg(mode, side, subsampling)
    assert np.array_equal(decode_with_torchvision(data), decode_jpeg(data))


def test_damaged_files_and_other_sizes_are_value_errors() -> None:
    data = jpeg("RGB", 64, 0)
    for damaged in (data[: len(data) // 2], b"no JPEG"):
        for decode in (decode_jpeg, decode_with_torchvision, lambda one: decode_jpegs_on(CPU, [one], 64)):
            with pytest.raises(ValueError, match=r"\w"):
                decode(damaged)
    with pytest.raises(ValueError, match="it is 64x64 px, not 32x32"):
        decode_jpegs_on(CPU, [data], 32)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("decoders")
    build(options(make_folder(root / "raw", per_class=8), root / "shards", val_share=0.25))
    return root / "shards"


@pytest.mark.parametrize("changes", [{}, {"limit": 9}, {"cache_mode": "device"}])
def test_batches_decoded_on_the_device_are_those_of_the_host(built: Path, changes: dict) -> None:
    batches = []
    for decode_on in ("host", "device"):
        config = DataConfig(shards=str(built), size=24, decode_on=decode_on, **changes)  # type: ignore[arg-type]
        batches.append(cache_train_split(open_dataset(config, 0), config, CPU).train.batch(torch.tensor([3, 0, 3])))
    assert torch.equal(batches[0].images, batches[1].images)
    assert torch.equal(batches[0].labels, batches[1].labels)


def test_a_batch_that_the_device_refuses_is_decoded_on_the_host(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = ShardSplit(built, "train")
    expected = split.images([1, 2])
    assert torch.equal(split.images_on(CPU, [1, 2]), expected)
    refused = iter([ValueError("unsupported by nvJPEG")])

    def refuse(*_: object) -> None:
        raise next(refused)

    monkeypatch.setattr("pfcluster.data.shards.decode_jpegs_on", refuse)
    assert torch.equal(split.images_on(CPU, [1, 2]), expected)


@pytest.mark.parametrize("host", [{"augment_on": "host"}, {"cache_mode": "host"}])
def test_device_decoding_is_refused_where_the_host_needs_the_pixels(host: dict) -> None:
    with pytest.raises(ConfigError, match=r'data\.decode_on must be "host" with data\.augment_on host'):
        DataConfig(decode_on="device", **host)
