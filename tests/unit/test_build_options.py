"""Build options: slices, official splits, builds without labels, limits, excluded classes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pfcluster.config import DataConfig
from pfcluster.data.build.candidates import Candidate
from pfcluster.data.build.dedupe import remove_copies
from pfcluster.data.build.errors import BuildError
from pfcluster.data.build.folder import build_lock
from pfcluster.data.build.pipeline import build
from pfcluster.data.dataset import open_dataset
from pfcluster.data.inspect.contact_sheet import CELL, GAP, NAME_WIDTH, contact_sheet
from pfcluster.data.manifest import BUILD_FOLDER, MANIFEST
from pfcluster.data.raw.base import OfficialSplit, RawPhoto
from pfcluster.data.shards import ShardSplit
from pfcluster.data.types import DataError
from pfcluster.system.locks import exclusive_lock
from tests.photos import COLOURS, ROOT, SIZE, contents, make_folder, options, picture


@pytest.mark.slow
def test_slices_in_any_order_give_the_same_bytes(raw: Path, built: Path, tmp_path: Path) -> None:
    slices = ("2/3", "0/3", "0/3", "1/3")
    results = [build(options(raw, tmp_path / "out", val_share=0.25, slice=part)) for part in slices]
    assert results[0].shards_left > results[1].shards_left > results[-1].shards_left == 0
    assert [result.manifest is None for result in results] == [True, True, True, False]
    assert results[2].photos_now == 0
    assert contents(tmp_path / "out") == contents(built)
    assert build(options(raw, tmp_path / "out", val_share=0.25, slice="1/3")).photos_now == 0


@pytest.mark.slow
def test_concurrent_slices_write_one_manifest(tmp_path: Path) -> None:
    raw = make_folder(tmp_path / "raw", 40)
    build(options(raw, tmp_path / "plain"))
    command = [
        sys.executable,
        str(ROOT / "shards" / "build.py"),
        "--input",
        str(raw),
        "--output",
        str(tmp_path / "out"),
    ]
    command += ["--size", str(SIZE), "--align", "none", "--samples-per-shard", "8", "--workers", "1", "--slice", "auto"]
    array = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "4"}
    processes = [
        subprocess.Popen(
            command, env={**os.environ, **array, "SLURM_ARRAY_TASK_ID": str(number)}, stdout=subprocess.PIPE
        )
        for number in (1, 2, 3, 4)
    ]
    output = [process.communicate(timeout=300)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, output
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


@pytest.mark.parametrize("part", ["3", "3/3", "-1/2", "a/b", "auto"])
def test_invalid_slices_are_refused(raw: Path, tmp_path: Path, part: str) -> None:
    with pytest.raises(BuildError, match="--slice"):
        options(raw, tmp_path / "out", slice=part)


@pytest.mark.slow
def test_too_many_bad_photos_fail_the_build_and_finished_shards_are_kept(tmp_path: Path) -> None:
    raw = make_folder(tmp_path / "raw", 10, ("happy", "sad"))
    (raw / "sad" / "009.png").write_bytes(b"not an image")
    for limit in (0.0, 0.04):
        with pytest.raises(BuildError, match=r"1 of 20 photos cannot be read \(unreadable: 1; .*009\.png\), more than"):
            build(options(raw, tmp_path / "out", max_bad_share=limit))
    (tmp_path / "out" / ".train-00000.tar.4711.tmp").write_bytes(b"of a process that was killed")
    result = build(options(raw, tmp_path / "out", max_bad_share=0.05))
    assert not list((tmp_path / "out").glob(".*"))
    assert result.photos_now == 0
    assert result.manifest is not None
    assert result.manifest.left_out == {"unreadable": 1}


@pytest.mark.slow
def test_official_splits_are_kept(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for index, (split, count) in enumerate((("train", 6), ("val", 3), ("test", 2))):
        for label in ("happy", "sad"):
            (raw / split / label).mkdir(parents=True)
            for number in range(count):
                picture(label, 100 * index + number + 50 * (label == "sad")).save(raw / split / label / f"{number}.png")
    (raw / "train" / "sad" / "copy.png").write_bytes((raw / "test" / "sad" / "0.png").read_bytes())
    (raw / "train" / "sad" / "again.png").write_bytes((raw / "val" / "sad" / "0.png").read_bytes())
    manifest = build(options(raw, tmp_path / "out")).manifest
    assert manifest is not None
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 12, "validation": 6, "test": 4}
    assert manifest.left_out == {"also in the test split": 1, "duplicate photo": 1}
    kept = build(options(raw, tmp_path / "all", duplicates="keep")).manifest
    assert kept is not None
    assert kept.splits["train"].samples == 14
    for change, message in (({"val_share": 0.2}, "--val-share"), ({"test_share": 0.2}, "--test-share")):
        with pytest.raises(BuildError, match=f"official .* split; remove {message}"):
            build(options(raw, tmp_path / "no", **change))


def official(root: Path, unreadable: str) -> Path:
    """Class folders of official splits, 4 photos each; those of one split are unreadable."""
    for index, split in enumerate(("train", "val", "test")):
        make_folder(root / split, 2, ("happy", "sad"))
        for number, photo in enumerate(sorted((root / split).rglob("*.png"))):
            picture("happy" if number < 2 else "sad", 10 * index + number).save(photo)
            if split == unreadable:
                photo.write_bytes(photo.read_bytes()[:60])
    return root


@pytest.mark.parametrize(("folder", "split"), [("val", "validation"), ("test", "test")])
def test_an_official_split_without_usable_photos_is_left_out_and_named(tmp_path: Path, folder: str, split: str) -> None:
    raw = official(tmp_path / "raw", folder)
    for _ in range(2):  # also if it was finished before
        result = build(options(raw, tmp_path / "out", max_bad_share=0.5))
        assert result.manifest is not None
        assert split not in result.manifest.splits
        assert len(result.manifest.splits) == 2
        (warning,) = (warning for warning in result.warnings if warning.startswith(f"there is no {split} split"))
        assert "all 4 photos of the dataset's own were left out (left_out.csv says why)" in warning
        assert not list((tmp_path / "out").glob(f"{split}-*"))
    data = DataConfig(shards=str(tmp_path / "out"), size=SIZE)
    if split == "validation":
        with pytest.raises(DataError, match=r"no validation split.*if left_out\.csv names all photos of the dataset's"):
            open_dataset(data, 0)
    else:
        assert open_dataset(data, 0).test is None


def test_a_build_without_training_photos_is_an_error(tmp_path: Path) -> None:
    raw = official(tmp_path / "raw", "train")
    with pytest.raises(BuildError, match=r"any photo of the training split \(unreadable: 4\)"):
        build(options(raw, tmp_path / "out", max_bad_share=1))
    with pytest.raises(BuildError, match=r"no photos remain for training \(also in the test split: 4\); the first is "):
        build(options(raw / "val", tmp_path / "copies", test_input=raw / "val"))
    assert not list(tmp_path.glob(f"*/{MANIFEST}"))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_an_empty_split_in_a_manifest_is_refused(damaged: Path, split: str) -> None:
    values = json.loads((damaged / MANIFEST).read_bytes())
    values["left_out"]["unreadable"] = values["splits"][split]["samples"]
    per_class = dict.fromkeys(values["classes"], 0)
    values["splits"][split] = {"samples": 0, "per_class": per_class, "identities": 0, "shards": []}
    (damaged / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(DataError, match=rf"the {split} split of .* is empty.*build the shards again"):
        open_dataset(DataConfig(shards=str(damaged), size=SIZE), 0)


def affectnet(root: Path) -> Path:
    """AffectNet's layout: 8 photos; 2 of validation.csv are also in training.csv, with another box or none."""
    lines: dict[str, list[str]] = {"training.csv": [], "validation.csv": []}
    (root / "Manually_Annotated_Images").mkdir(parents=True)
    for number in range(8):
        label = ("happy", "sad")[number % 2]
        picture(label, number).save(root / "Manually_Annotated_Images" / f"{number}.png")
        table = lines["validation.csv" if number < 4 else "training.csv"]
        table.append(f"{number}.png,2,2,20,20,,{1 + number % 2},0,0")
    for number, box in enumerate(("3,2,20,20", ",,,")):
        photo = (root / "Manually_Annotated_Images" / f"{number}.png").read_bytes()
        (root / "Manually_Annotated_Images" / f"copy{number}.png").write_bytes(photo)
        lines["training.csv"].append(f"copy{number}.png,{box},,{1 + number % 2},0,0")
    header = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
    for name, rows in lines.items():
        (root / name).write_text("\n".join([header, *rows]) + "\n")
    return root


def test_copies_of_test_photos_with_another_box_or_none_are_left_out(tmp_path: Path) -> None:
    raw = affectnet(tmp_path / "raw")
    result = build(options(raw, tmp_path / "out", val_share=0))
    assert result.manifest is not None
    assert result.manifest.left_out == {"also in the test split": 2}
    assert any("splits share no photo, but may share identities" in warning for warning in result.warnings)
    kept = build(options(raw, tmp_path / "all", val_share=0, duplicates="keep"))
    assert any(warning.startswith("2 photos are in several splits") for warning in kept.warnings)
    assert not any("share no photo" in warning for warning in kept.warnings)


def test_copies_of_test_input_photos_without_boxes_are_left_out(tmp_path: Path) -> None:
    """ExpW lists boxes, the CSV of the same photos that is given as --test-input does not."""
    raw, lines = tmp_path / "expw", []
    (raw / "image").mkdir(parents=True)
    for number in range(6):
        picture("happy", number).save(raw / "image" / f"{number}.png")
        lines += [f"{number}.png {face} 1 {1 + face} 20 20 50.0 {3 + face}" for face in range(2)]
    (raw / "label.lst").write_text("\n".join(lines))
    (tmp_path / "test.csv").write_text("image,label\nexpw/image/0.png,happy\nexpw/image/1.png,happy\n")
    manifest = build(options(raw, tmp_path / "out", test_input=tmp_path / "test.csv", val_share=0)).manifest
    assert manifest is not None
    assert manifest.left_out == {"also in the test split": 4}
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 8, "test": 2}


def two_faces() -> Image.Image:
    """A photo of a happy and a sad face, at (5, 10) and (60, 10), of 32 px."""
    photo = Image.new("RGB", (100, 60))
    photo.paste(picture("happy", 0), (5, 10))
    photo.paste(picture("sad", 1), (60, 10))
    return photo


def test_faces_of_a_photo_are_pictures_of_their_own_without_alignment(tmp_path: Path) -> None:
    (tmp_path / "expw" / "image").mkdir(parents=True)
    two_faces().save(tmp_path / "expw" / "image" / "0.png")
    lines = ["0.png 0 10 5 37 42 50.0 3", "0.png 1 10 60 92 42 50.0 4", "0.png 2 70 5 25 90 50.0 6"]
    (tmp_path / "expw" / "label.lst").write_text("\n".join(lines))
    manifest = build(options(tmp_path / "expw", tmp_path / "out", val_share=0, size=32)).manifest
    assert manifest is not None
    assert manifest.left_out == {"face box outside the photo": 1}
    split = ShardSplit(tmp_path / "out", "train")
    images = {manifest.classes[label]: split.image(n) for n, label in enumerate(split.labels().tolist())}
    for emotion, label in (("happiness", "happy"), ("sadness", "sad")):
        np.testing.assert_allclose(images[emotion][12:, :28], np.broadcast_to(COLOURS[label], (20, 28, 3)), atol=12)


def test_boxes_of_photos_of_one_face_are_not_cut_out_without_alignment(tmp_path: Path) -> None:
    """AffectNet's photos are often crops to which its boxes do not refer."""
    (tmp_path / "raw").mkdir()
    points = ";".join(["20"] * 136)
    for name, label in (("training", 1), ("validation", 2)):
        picture("happy", label, 64).save(tmp_path / "raw" / f"{name}.png")
        (tmp_path / "raw" / f"{name}.csv").write_text(f"{name}.png,30,30,34,34,{points},{label},0,0\n")
    build(options(tmp_path / "raw", tmp_path / "out", val_share=0, size=64))
    image = ShardSplit(tmp_path / "out", "train").image(0)
    np.testing.assert_allclose(image[:12, :12], np.broadcast_to((1, 0, 77), (12, 12, 3)), atol=12)


def test_boxes_tell_faces_apart_within_a_split_only() -> None:
    def face(index: int, split: OfficialSplit, left: float) -> Candidate:
        photo = RawPhoto(f"{index}.jpg", "happy", None, "x.jpg", split=split, box=(left, 0, 9, 9))
        return Candidate("input", index, photo, "happiness", "0" * 64)

    faces = [face(0, "train", 1), face(1, "validation", 2), face(2, "train", 2), face(3, "validation", 3)]
    kept, left_out = remove_copies(faces)
    assert [one.index for one in kept] == [1, 3]
    assert {one.number: one.reason for one in left_out} == {0: "also in the validation split", 2: "duplicate photo"}


def test_build_without_labels(tmp_path: Path) -> None:
    raw = make_folder(tmp_path / "raw", 8)
    (raw / "bored").mkdir()
    picture("happy", 5000).save(raw / "bored" / "x.png")
    manifest = build(options(raw, tmp_path / "out", labels="ignored")).manifest
    assert manifest is not None
    assert (manifest.classes, manifest.left_out) == ((), {})
    assert sum(split.samples for split in manifest.splits.values()) == 25
    split = ShardSplit(tmp_path / "out", "train")
    assert set(split.labels().tolist()) == {-1}
    sheet = contact_sheet(split, per_class=4)  # one row
    assert sheet.height == CELL + 2 * GAP
    first = sheet.crop((NAME_WIDTH, GAP, NAME_WIDTH + CELL, GAP + CELL))
    assert np.array_equal(first, Image.fromarray(split.image(0)).resize((CELL, CELL), Image.Resampling.BICUBIC))


def test_excluded_classes_are_left_out(tmp_path: Path) -> None:
    raw = make_folder(tmp_path / "raw", 8)
    manifest = build(options(raw, tmp_path / "out", exclude_classes=("sadness",))).manifest
    assert manifest is not None
    assert (manifest.classes, manifest.left_out) == (("neutral", "happiness"), {"excluded class": 8})


def test_the_last_slice_removes_the_build_folder(tmp_path: Path) -> None:
    """A slice that completes the build must not remove the folder while another slice still uses it."""
    output = tmp_path / "shards"
    with build_lock(output, shared=True):
        with build_lock(output, shared=True):
            (output / MANIFEST).touch()
        with exclusive_lock(output / BUILD_FOLDER / "merge.lock"):
            pass
    assert [path.name for path in output.iterdir()] == [MANIFEST]
