"""What a build reads: the photos of a separate test input, its splits, and options that no reader uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfcluster.data.build.errors import BuildError
from pfcluster.data.build.inputs import list_photos
from pfcluster.data.build.pipeline import build
from tests.photos import make_folder, options, picture


def table(root: Path, images: str, label: str, first: int) -> Path:
    """A CSV of four photos 0.png ... 3.png in a folder of it."""
    (root / images).mkdir(parents=True)
    for number in range(4):
        picture(label, first + number).save(root / images / f"{number}.png")
    (root / "list.csv").write_text("image,label\n" + "".join(f"{number}.png,{label}\n" for number in range(4)))
    return root / "list.csv"


@pytest.mark.parametrize(("images", "given"), [("", False), ("photos", True)])
def test_the_test_tables_photos_are_its_own(tmp_path: Path, images: str, given: bool) -> None:
    train, test = table(tmp_path / "train", "photos", "happy", 0), table(tmp_path / "test", images, "sad", 50)
    folders = {"images": train.parent / "photos"} | ({"test_images": test.parent / images} if given else {})
    manifest = build(options(train, tmp_path / "out", test_input=test, **folders)).manifest
    assert manifest is not None
    assert manifest.splits["test"].per_class == {"happiness": 0, "sadness": 4}
    assert not manifest.left_out


def test_the_test_images_need_a_test_input_with_a_table(tmp_path: Path) -> None:
    train = table(tmp_path / "train", "", "happy", 0)
    with pytest.raises(BuildError, match="--test-images is the folder of the photos of --test-input, which is missing"):
        options(train, tmp_path / "out", test_images=tmp_path)
    folder = make_folder(tmp_path / "folder", 2)
    with pytest.raises(BuildError, match="--test-images is for csv and ferplus only, and --test-input was read"):
        list_photos(options(train, tmp_path / "out", test_input=folder, test_images=tmp_path))


def test_only_the_test_split_of_a_test_input_is_used(tmp_path: Path) -> None:
    train = make_folder(tmp_path / "train", 4, ("happy", "sad"))
    for split, count in (("train", 5), ("validation", 3), ("test", 2)):
        make_folder(tmp_path / "other" / split, count, ("happy", "fear"))
    listed = list_photos(options(train, tmp_path / "out", test_input=tmp_path / "other"))["test_input"]
    assert sorted({photo.source.split("/")[0] for photo in listed.photos}) == ["test"]
    assert listed.notes == (
        "only the 4 photos of its test split are used, not its other photos (train: 10, validation: 6)",
    )
    whole = options(train, tmp_path / "out", test_input=tmp_path / "other", splits=("ignore",))
    assert len(list_photos(whole)["test_input"].photos) == 20
    made = build(options(train, tmp_path / "out", test_input=tmp_path / "other", duplicates="keep"))
    assert any("only the 4 photos of its test split" in note for note in made.left_out)


def test_a_test_input_with_other_splits_only_is_refused(tmp_path: Path) -> None:
    train = make_folder(tmp_path / "train", 4, ("happy", "sad"))
    for split in ("train", "val"):
        make_folder(tmp_path / "other" / split, 2, ("happy", "sad"))
    with pytest.raises(BuildError, match=r"no test split \(train: 4, validation: 4\): pass the folder"):
        list_photos(options(train, tmp_path / "out", test_input=tmp_path / "other"))


@pytest.mark.parametrize("name", ["public_test", "train"])
def test_a_test_input_that_is_one_split_is_used_whole(tmp_path: Path, name: str) -> None:
    """FER2013's public_test is the validation split of a whole FER2013, and here the test split."""
    train = make_folder(tmp_path / "in", 4, ("happy", "sad"))
    make_folder(tmp_path / "other" / name, 2, ("happy", "sad"))
    for source in (tmp_path / "other", tmp_path / "other" / name):
        photos = list_photos(options(train, tmp_path / "out", test_input=source))["test_input"].photos
        assert [photo.split for photo in photos] == [None] * 4


def test_names_of_splits_may_be_those_of_the_input_only(tmp_path: Path) -> None:
    for split in ("train", "extra"):
        make_folder(tmp_path / "in" / split, 2, ("happy", "sad"))
    make_folder(tmp_path / "test", 1, ("happy", "sad"))
    given = options(tmp_path / "in", tmp_path / "out", test_input=tmp_path / "test", splits=("extra=train",))
    assert len(list_photos(given)["test_input"].photos) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"votes": "argmax"}, "--votes is for ferplus only, and --input was read as folder"),
        ({"peak_frames": 3}, "--peak-frames is for ckplus only"),
        ({"originals": True}, "--originals is for rafdb and sfew only"),
        ({"images": Path()}, "--images is for csv and ferplus only"),
    ],
)
def test_options_that_no_reader_uses_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        list_photos(options(make_folder(tmp_path / "raw", 2), tmp_path / "out", **change))


@pytest.mark.parametrize("align", ["landmarks", "none"])
def test_counting_faces_requires_their_detection(tmp_path: Path, align: str) -> None:
    with pytest.raises(BuildError, match="--multiple-faces leave-out requires --align mtcnn"):
        options(tmp_path, tmp_path / "out", align=align, multiple_faces="leave-out")
