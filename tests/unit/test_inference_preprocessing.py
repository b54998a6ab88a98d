"""Inference sees a photo as training does: the tensors of both ways are equal to the bit."""

from __future__ import annotations

import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pfcluster
from pfcluster.data.build import align
from pfcluster.data.build.detect import FaceAligner
from pfcluster.data.build.options import BuildOptions
from pfcluster.data.build.pipeline import build
from pfcluster.data.build.stored_images import DecodedPhoto
from pfcluster.data.shards import ShardSplit
from pfcluster.data.splits import ShardedSplit
from pfcluster.evaluate.classification import load_images
from pfcluster.inference.crops import DetectedFaces
from pfcluster.inference.export import DETECTION_SIDE, template_landmarks
from pfcluster.inference.model import Model
from pfcluster.inference.model_info import Preprocessing
from tests import inference_models as models

ROOT = Path(__file__).parents[2]
ORIENTATION = 274


def trained_on(shards: Path) -> dict[str, torch.Tensor]:
    """The network's input of every image of a shard folder, by the photo's name below the built folder."""
    sources = {}
    for path in shards.glob("train-*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    sources[member.name.removesuffix(".json")] = json.load(tar.extractfile(member))["source"]  # type: ignore[arg-type]
    split = ShardSplit(str(shards), "train")
    images, _ = load_images(ShardedSplit(split, 0.0), torch.arange(len(split)), 32, torch.device("cpu"))
    return {sources[split.key(index)]: image for index, image in enumerate(images)}


def test_whole_photos(raw: Path, built: Path, tmp_path: Path) -> None:
    """Of data that was built without alignment; the JPEG of a photo that has the size already is taken as it is."""
    models.write(tmp_path / "model", crop_size=24)
    model = pfcluster.load(tmp_path / "model", device="cpu")
    compare(model, trained_on(built), raw, detect=False)


@pytest.mark.slow
@pytest.mark.skipif("PFCLUSTER_REAL_DATA" not in os.environ, reason="PFCLUSTER_REAL_DATA is not set")
def test_detected_faces(tmp_path: Path) -> None:
    """Photos in the wild, also turned by EXIF, CMYK, and of a size that is reduced for detection. Photos of one size
    are detected in batches, in which single pixels of a few crops may differ; these are of three sizes.
    """
    source = Path(os.environ["PFCLUSTER_REAL_DATA"]) / "wild" / "images"
    folder = tmp_path / "photos" / "happy"
    folder.mkdir(parents=True)
    photos = [Image.open(source / name).convert("RGB") for name in ("Al_Pacino_0002.jpg", "Ai_Sugiyama_0003.jpg")]
    photos[0].save(folder / "plain.jpg")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    photos[1].crop((0, 0, 350, 340)).transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=exif)
    photos[0].resize((900, 900)).convert("CMYK").save(folder / "cmyk.tif")
    options = BuildOptions(
        input=tmp_path / "photos", output=tmp_path / "shards", size=64, workers=1, val_share=0.0, device="cpu"
    )
    build(options)
    models.write(tmp_path / "model", crop_size=64)
    model = pfcluster.load(tmp_path / "model", device="cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers of builds
    try:
        compare(model, trained_on(tmp_path / "shards"), tmp_path / "photos", detect=True)
    finally:
        torch.set_num_threads(before)


def test_a_measured_template_leaves_the_image_it_was_measured_in_where_it_is() -> None:
    """Not shifted by half a pixel: a crop of it is the image at the size of the crops."""
    size, image = 48, models.rendered(1, DETECTION_SIDE)[0]
    points = template_landmarks(image[None], FaceAligner(DETECTION_SIDE))[0]
    template = tuple((x, y) for x, y in points.tolist())
    preprocessing = Preprocessing(align="none", crop_size=size, template=template, template_faces=1, jpeg_quality=None)
    (face,) = DetectedFaces(preprocessing, "cpu", "one").faces([DecodedPhoto(b"", image, plain=False)])[0]
    scale = size / DETECTION_SIDE
    resized = np.array([(scale, 0, 0.5 * scale - 0.5), (0, scale, 0.5 * scale - 0.5)])
    assert face.crop is not None
    assert face.landmarks is not None
    np.testing.assert_allclose(align.similarity(face.landmarks, preprocessing.targets()), resized, atol=1e-6)
    assert np.abs(face.crop.astype(int) - align.warp(image, resized, size)).max() <= 1


def compare(model: Model, inputs: dict[str, torch.Tensor], photos: Path, *, detect: bool) -> None:
    """Compare the first face of each photo."""
    assert len(inputs) >= 3
    for name, expected in inputs.items():
        face = model.predict(photos / name, detect=detect)[0]
        assert face.crop is not None
        assert torch.equal(model.predictor.network_input(face.crop[None])[0], expected), name


def test_examples_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs/guides/predict.md").read_text()
    block = page[page.index("## Python") : page.index("Images are paths")]
    code = "\n".join(line[4:] for line in block.splitlines() if line.startswith("    "))
    assert re.search("predict|features|to_frame", code)
    monkeypatch.chdir(tmp_path)
    models.write(tmp_path / "models" / "mine")
    for name, pixels in zip(("a.jpg", "b.jpg", "crop.png"), models.rendered(3), strict=True):
        Image.fromarray(pixels).save(name)
    values: dict[str, object] = {}
    exec(compile(code, "predict.md", "exec"), values)
    assert len(values["table"]) == len(values["faces"]) >= 2  # type: ignore[arg-type]
    assert np.asarray(values["features"]).shape[1] == 32
