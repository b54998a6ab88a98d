"""Readers of published datasets, on small copies of the authors' layouts: sources, labels and splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pfcluster.data.raw.base import RawDataError, RawDataset, ReadOptions, read_bytes
from pfcluster.data.raw.landmarks import five_points, with_openface
from pfcluster.data.raw.readers import read_raw


def write(path: Path, data: str | bytes = b"photo") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def rows(dataset: RawDataset) -> list[tuple[str, str, str | None]]:
    """Source, label and split of each photo."""
    return [(photo.source, photo.label, photo.split) for photo in dataset.photos]


def rafdb(root: Path) -> Path:
    listing = "train_00001.jpg 5\ntrain_00002.jpg 7\ntest_0001.jpg 1\n"
    write(root / "basic" / "EmoLabel" / "list_patition_label.txt", listing)
    for stem in ("train_00001", "train_00002", "test_0001"):
        write(root / "basic" / "Image" / "aligned" / f"{stem}_aligned.jpg", f"aligned {stem}")
        write(root / "basic" / "Image" / "original" / f"{stem}.jpg", f"original {stem}")
    return root


def test_rafdb_authors_layout(tmp_path: Path) -> None:
    dataset = read_raw(rafdb(tmp_path))
    assert dataset.kind == "rafdb"
    assert rows(dataset) == [
        ("train_00001.jpg", "sadness", "train"),
        ("train_00002.jpg", "neutral", "train"),
        ("test_0001.jpg", "surprise", "test"),
    ]
    assert read_bytes(dataset.photos[0]) == b"aligned train_00001"
    originals = read_raw(tmp_path, ReadOptions(originals=True))
    assert read_bytes(originals.photos[2]) == b"original test_0001"
    assert rows(read_raw(tmp_path / "basic")) == rows(dataset)


def numbered_rafdb(root: Path) -> Path:
    for split in ("train", "test"):
        for number in range(1, 8):
            write(root / "DATASET" / split / str(number) / f"{split}_{number:05d}_aligned.jpg")
    return root


def test_rafdb_numbered_folders(tmp_path: Path) -> None:
    numbered_rafdb(tmp_path)
    for source in (tmp_path, tmp_path / "DATASET"):
        listed = rows(read_raw(source))
        assert len(listed) == 14
        assert listed[0] == ("train/1/train_00001_aligned.jpg", "surprise", "train")
        assert listed[13] == ("test/7/test_00007_aligned.jpg", "neutral", "test")


def test_numbered_folders_of_another_dataset_are_not_rafdb(tmp_path: Path) -> None:
    write(numbered_rafdb(tmp_path / "names") / "DATASET" / "train" / "1" / "happy_1.jpg")
    (numbered_rafdb(tmp_path / "six") / "DATASET" / "test" / "4" / "test_00004_aligned.jpg").unlink()
    (tmp_path / "six" / "DATASET" / "test" / "4").rmdir()
    for name in ("names", "six"):
        dataset = read_raw(tmp_path / name)
        assert dataset.kind == "folder"
        assert {photo.label for photo in dataset.photos} == set("1234567")
        assert {photo.split for photo in dataset.photos} == {"train", "test"}
        read = read_raw(tmp_path / name, kind="rafdb")
        assert (read.kind, read.photos[0].label) == ("rafdb", "surprise")
    named = read_raw(tmp_path / "names", ReadOptions(classes={"1": "happiness", "7": "none"}))
    assert [photo.label for photo in named.photos if "/1/" in photo.source] == ["happiness"] * 3


@pytest.mark.parametrize("line", ["train_00003.jpg 8", "train_00003.jpg", "other.jpg 3", "train_/../../x.jpg 3"])
def test_rafdb_refuses_invalid_lines(tmp_path: Path, line: str) -> None:
    listing = rafdb(tmp_path) / "basic" / "EmoLabel" / "list_patition_label.txt"
    listing.write_text(listing.read_text() + line + "\n")
    with pytest.raises(RawDataError, match="line 4: "):
        read_raw(tmp_path)


POINTS = [(float(number), float(100 + number)) for number in range(68)]
FIVE = ((38.5, 138.5), (44.5, 144.5), (30.0, 130.0), (48.0, 148.0), (54.0, 154.0))
HEADER = "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal\n"


def test_five_points_from_68_landmarks() -> None:
    assert five_points(POINTS) == FIVE
    with pytest.raises(ValueError, match="67 points"):
        five_points(POINTS[:67])


def affectnet_table(root: Path) -> Path:
    landmarks = ";".join(f"{x};{y}" for x, y in POINTS)
    numbers = range(11)
    lines = [f"{number}/{number}.jpg,10,20,30,40,{landmarks},{number},0.1,0.2" for number in numbers]
    write(root / "training.csv", HEADER + "\n".join(lines) + "\n")
    write(root / "validation.csv", HEADER + "7/v.jpg,,,,,,7,-2,-2\n")
    for name in [*(f"{number}/{number}.jpg" for number in numbers), "7/v.jpg"]:
        write(root / "Manually_Annotated_Images" / name)
    return root


def test_affectnet_csv_files(tmp_path: Path) -> None:
    dataset = read_raw(affectnet_table(tmp_path))
    assert dataset.kind == "affectnet"
    names = "neutral happiness sadness surprise fear disgust anger contempt none uncertain no-face contempt".split()  # noqa: SIM905
    assert [photo.label for photo in dataset.photos] == names
    assert [photo.split for photo in dataset.photos] == ["train"] * 11 + ["test"]
    assert dataset.photos[0].box == (10, 20, 40, 60)
    assert dataset.photos[0].landmarks == FIVE
    assert (dataset.photos[11].box, dataset.photos[11].landmarks) == (None, ())
    assert all(photo.size == 5 for photo in dataset.photos)


@pytest.mark.parametrize(
    "line", ["0/0.jpg,a,2,3,4,,1,0,0", "0/0.jpg,1,2,3,4,1;2;3;4,1,0,0", "0/0.jpg,1,2,3,4,1;x;2,1,0,0"]
)
def test_affectnet_refuses_invalid_csv_lines(tmp_path: Path, line: str) -> None:
    affectnet_table(tmp_path)
    write(tmp_path / "training.csv", HEADER + line + "\n")
    with pytest.raises(RawDataError, match=r"training\.csv, line 2"):
        read_raw(tmp_path)


def test_affectnet_npy_files(tmp_path: Path) -> None:
    for split, number, label in (("train_set", 0, "6"), ("train_set", 1, "2"), ("val_set", 5, "1")):
        write(tmp_path / split / "images" / f"{number}.jpg")
        annotations = tmp_path / split / "annotations"
        annotations.mkdir(exist_ok=True)
        np.save(annotations / f"{number}_exp.npy", np.array(label))
        np.save(annotations / f"{number}_lnd.npy", np.array(POINTS).reshape(-1))
    write(tmp_path / "train_set" / "images" / "2.jpg")  # without annotations
    np.save(tmp_path / "train_set" / "annotations" / "2_exp.npy", np.array({"a": 1}, dtype=object))  # only a pickle
    dataset = read_raw(tmp_path)
    assert rows(dataset) == [
        ("train_set/images/0.jpg", "anger", "train"),
        ("train_set/images/1.jpg", "sadness", "train"),
        ("train_set/images/2.jpg", "", "train"),
        ("val_set/images/5.jpg", "happiness", "test"),
    ]
    assert dataset.photos[0].landmarks == FIVE
    assert dataset.photos[2].landmarks == ()


def test_expw_lists_faces_with_boxes(tmp_path: Path) -> None:
    lines = ["one.jpg 0 10 20 60 70 61.1 3", "two.jpg 0 1 2 30 40 50.5 0", "two.jpg 1 5 50 90 99 44.0 6"]
    write(tmp_path / "label" / "label.lst", "\n".join(lines))
    for name in ("one.jpg", "two.jpg"):
        write(tmp_path / "image" / name)
    dataset = read_raw(tmp_path)
    assert [(photo.source, photo.label) for photo in dataset.photos] == [
        ("one.jpg", "happiness"),
        ("two.jpg#0", "anger"),
        ("two.jpg#1", "neutral"),
    ]
    assert dataset.photos[0].box == (20, 10, 60, 70)
    write(tmp_path / "label" / "label.lst", "one.jpg 0 10 60 20 70 61.1 3")
    with pytest.raises(RawDataError, match="line 1"):
        read_raw(tmp_path)


OPENFACE = ",".join(["face", " confidence", *(f" {axis}_{number}" for axis in "xy" for number in range(68))])


def openface_row(confidence: float, shift: float) -> str:
    """A row of OpenFace's CSV: POINTS, moved to the right."""
    values = [x + shift for x, _ in POINTS] + [y for _, y in POINTS]
    return ",".join(map(str, [0, confidence, *values]))


def test_landmarks_from_openface_csv_files(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / "photos" / "happy" / f"{name}.jpg", name)
    write(tmp_path / "tables" / "a.csv", "\n".join([OPENFACE, openface_row(0.4, 50), openface_row(0.9, 0)]))
    write(tmp_path / "tables" / "happy" / "b.csv", OPENFACE)
    listed = {"input": read_raw(tmp_path / "photos")}
    dataset = with_openface(listed, tmp_path / "tables")["input"]
    assert [photo.landmarks for photo in dataset.photos] == [FIVE, (), ()]
    write(tmp_path / "tables" / "c.csv", "face, confidence\n0, 1")
    with pytest.raises(RawDataError, match=r"c\.csv is not an OpenFace CSV"):
        with_openface(listed, tmp_path / "tables")
    with pytest.raises(RawDataError, match="has no CSV for any photo"):
        with_openface(listed, write(tmp_path / "empty" / "x").parent)


@pytest.mark.parametrize("photos", [("happy/001.jpg", "sad/001.jpg"), ("happy/001.jpg", "happy/001.png")])
def test_one_landmark_file_for_several_photos_is_an_error(tmp_path: Path, photos: tuple[str, ...]) -> None:
    for name in photos:
        write(tmp_path / "photos" / name)
    table = write(tmp_path / "tables" / "001.csv", "\n".join([OPENFACE, openface_row(1, 0)]))
    listed = {"input": read_raw(tmp_path / "photos")}
    message = rf"001\.csv can be the CSV of photos/{photos[0]} and of photos/{photos[1]}; write one CSV for each photo"
    with pytest.raises(RawDataError, match=message):
        with_openface(listed, table.parent)
    write(tmp_path / "tables" / "happy" / "001.csv", table.read_bytes())
    if "sad/001.jpg" in photos:  # each has its own now
        table.rename(write(tmp_path / "tables" / "sad" / "001.csv"))
        with_openface(listed, tmp_path / "tables")


def test_one_landmark_file_for_photos_of_both_inputs_is_an_error(tmp_path: Path) -> None:
    for name in ("train/happy/1.jpg", "test/happy/1.jpg"):
        write(tmp_path / name, name)
    write(tmp_path / "tables" / "happy" / "1.csv", "\n".join([OPENFACE, openface_row(1, 0)]))
    listed = {"input": read_raw(tmp_path / "train"), "test_input": read_raw(tmp_path / "test")}
    with pytest.raises(RawDataError, match=r"1\.csv can be the CSV of train/happy/1\.jpg and of test/happy/1\.jpg"):
        with_openface(listed, tmp_path / "tables")


def test_a_listed_box_selects_the_landmarks_of_its_face(tmp_path: Path) -> None:
    """ExpW lists several faces of a photo, of which OpenFace writes one CSV."""
    left, right = min(x for x, _ in FIVE), max(x for x, _ in FIVE)
    lines = [f"one.jpg {face} 0 {left + shift} {right + shift} 999 50 3" for face, shift in enumerate((0, 500, 5000))]
    write(tmp_path / "expw" / "label.lst", "\n".join(lines))
    write(tmp_path / "expw" / "image" / "one.jpg")
    write(tmp_path / "tables" / "one.csv", "\n".join([OPENFACE, openface_row(0.4, 0), openface_row(0.9, 500)]))
    dataset = with_openface({"input": read_raw(tmp_path / "expw")}, tmp_path / "tables")["input"]
    moved = tuple((x + 500, y) for x, y in FIVE)
    assert [photo.landmarks for photo in dataset.photos] == [FIVE, moved, ()]
