"""Models that were trained on grey photos see every photo in grey."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pfcluster
from pfcluster.cli.main import main
from pfcluster.data.build.pipeline import build
from pfcluster.data.build.stored_images import DecodedPhoto
from pfcluster.inference.crops import DetectedFaces, WholePhotos
from pfcluster.inference.grey import is_grey
from pfcluster.inference.model_info import CARD_FILE, read_info
from pfcluster.runs.folder import write_result
from tests import inference_models as models
from tests.photos import make_folder, options
from tests.unit.test_inference_export import fake_run


@pytest.mark.parametrize("grey", [True, False])
def test_a_model_of_grey_photos_sees_colour_photos_in_grey(tmp_path: Path, grey: bool) -> None:
    raw = make_folder(tmp_path / "raw", per_class=4)
    photos = sorted(raw.rglob("*.png"))
    colour = tmp_path / "colour.png"
    Image.open(photos[0]).convert("RGB").save(colour)
    for path in photos if grey else photos[:1]:
        Image.open(path).convert("L").save(path)
    build(options(raw, tmp_path / "shards", name="mine"))
    folder = fake_run(tmp_path / "run", "finetune", shards=str(tmp_path / "shards"))
    write_result(folder, {"dataset": {"name": "mine", "classes": ["neutral", "happiness", "sadness"]}})

    assert main(["export", str(folder), "--output", str(tmp_path / "model")]) == 0
    assert read_info(tmp_path / "model").preprocessing.grey is grey
    assert ("become grey first" in (tmp_path / "model" / CARD_FILE).read_text()) is grey
    model = pfcluster.load(tmp_path / "model", device="cpu")
    crops = [model.predict(path, detect=False)[0].crop for path in (colour, photos[0])]
    assert crops[1] is not None
    assert is_grey(crops[1])
    assert np.array_equal(crops[0], crops[1]) is grey


def test_detected_faces_and_whole_photos_become_grey() -> None:
    image = models.rendered(1)[0]
    photo = DecodedPhoto(b"", image, plain=False)
    in_colour = models.info().preprocessing
    in_grey = replace(in_colour, grey=True)
    for cropper in (WholePhotos, lambda preprocessing: DetectedFaces(preprocessing, "cpu", "one")):
        coloured, grey = (cropper(preprocessing).faces([photo])[0][0].crop for preprocessing in (in_colour, in_grey))
        assert coloured is not None
        assert grey is not None
        assert not is_grey(coloured)
        assert is_grey(grey)
        luma = coloured.astype(float) @ (0.299, 0.587, 0.114)
        assert np.abs(luma - grey[..., 0]).mean() < 2
