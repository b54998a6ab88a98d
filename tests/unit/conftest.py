"""Shards that several rooms of tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfcluster.data.build.pipeline import build
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
