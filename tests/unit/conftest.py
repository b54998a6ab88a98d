"""Shards and models that several files of tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfcluster.data.build.pipeline import build
from tests import inference_models as models
from tests.photos import (
    contents,
    make_folder,
    options,
)


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("raw") / "faces")


@pytest.fixture(scope="session")
def built(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 photos of 3 classes: 5 shards or so. Tests that change it work on copies."""
    output = tmp_path_factory.mktemp("built") / "shards"
    build(options(raw, output, val_share=0.25))
    return output


@pytest.fixture
def damaged(built: Path, tmp_path: Path) -> Path:
    for name, data in contents(built).items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "pf-vit"
    models.write(path, "pf_vit")
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    models.face_pictures(tmp_path / "photos", 3, side=48)
    models.face_pictures(tmp_path / "photos" / "deep", 2, side=64)
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"not read")
    (tmp_path / "photos" / "notes.txt").write_text("not read")
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a ViT with random weights."""
    path = tmp_path_factory.mktemp("classifier") / "vit"
    models.write(path, "vit")
    return path
