"""Builds whose output lies in their input: continued, repeated, and beside other builds."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pfcluster.data.build.pipeline import build
from pfcluster.data.raw.readers import read_raw
from tests.photos import contents, make_folder, options, picture

LABELS = ("happy", "sad")


def folder(root: Path) -> Path:
    return make_folder(root, 8, LABELS)


def metadata(root: Path) -> Path:
    make_folder(root, 8, LABELS)
    rows = [f"{label}/{number:03d}.png,{label}" for label in LABELS for number in range(8)]
    (root / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    return root


def tars(root: Path) -> Path:
    photos = make_folder(root.parent / "photos", 8, LABELS)
    root.mkdir()
    for label in LABELS:
        with tarfile.open(root / f"{label}.tar", "w") as archive:
            archive.add(photos / label, label)
    return root


def jaffe(root: Path) -> Path:
    root.mkdir()
    for number in range(12):
        label, code = (("happy", "HA"), ("sad", "SA"))[number % 2]
        picture(label, number).save(root / f"K{'ALMR'[number // 4]}.{code}{number % 4 + 1}.{number}.tiff")
    return root


@pytest.mark.parametrize(
    ("make", "place"), [(folder, "deep/shards"), (metadata, "shards"), (tars, "shards"), (jaffe, "shards")]
)
def test_the_output_is_no_part_of_the_input(tmp_path: Path, make: Callable[[Path], Path], place: str) -> None:
    raw = make(tmp_path / "raw")
    before = read_raw(raw)
    output = raw / place
    first = build(options(raw, output, slice="0/2"))
    assert first.manifest is None
    assert read_raw(raw) == before
    assert build(options(raw, output, slice="1/2")).manifest is not None
    assert read_raw(raw) == before
    assert build(options(raw, output)).photos_now == 0
    if make is folder:
        build(options(raw, raw / "other"))
        assert contents(raw / "other") == contents(output)


def test_a_folder_that_only_looks_like_a_build_is_read(tmp_path: Path) -> None:
    raw = folder(tmp_path / "raw")
    (raw / "happy" / "manifest.json").write_text("{}")
    (raw / "sad" / ".build").mkdir()
    assert len(read_raw(raw).photos) == 16
