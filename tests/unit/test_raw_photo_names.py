"""Splits that the names and paths of photos mean: all of them, most of them, and few."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from pfcluster.data.raw.base import RawDataError, RawDataset
from pfcluster.data.raw.readers import read_raw
from tests.unit.test_raw_tables import with_options
from tests.unit.test_raw_trees import put

FORMS = ("folder", "csv", "tar")


def source_of(root: Path, form: str, names: tuple[str, ...]) -> Path:
    """Photos of two classes as a folder, a table or a tar."""
    labels = ("happy", "sad")
    if form == "csv":
        rows = [f"{name},{labels[number % 2]}" for number, name in enumerate(names)]
        (root / "l.csv").write_text("\n".join(["image,label", *rows]))
        return root / "l.csv"
    folder = put(root / "photos", *(f"{labels[number % 2]}/{name}" for number, name in enumerate(names)))
    if form == "tar":
        with tarfile.open(root / "photos.tar", "w") as archive:
            archive.add(folder, ".")
        return root / "photos.tar"
    return folder


def splits_of(dataset: RawDataset) -> dict[str, str | None]:
    return {Path(photo.source).stem: photo.split for photo in dataset.photos}


@pytest.mark.parametrize("form", FORMS)
def test_a_name_without_a_split_among_names_with_splits_is_an_error(tmp_path: Path, form: str) -> None:
    names = ("train_0001.jpg", "train_0002.jpg", "train_0003.jpg", "test_0005.jpg", "IMG_2001.jpg", "IMG_2002.jpg")
    source = source_of(tmp_path, form, names)
    with pytest.raises(RawDataError, match=r"'IMG': 2 in its split file names .*'test' \(test\).*--splits IMG=test"):
        read_raw(source)
    own = {"train_0001": "train", "train_0002": "train", "train_0003": "train", "test_0005": "test"}
    for told, splits in (
        (("IMG=validation",), ("validation", "validation")),
        (("IMG_2001=validation", "other=train"), ("validation", "train")),
        (("other=train",), ("train", "train")),
        (("other=none",), (None, None)),
    ):
        expected = {**own, "IMG_2001": splits[0], "IMG_2002": splits[1]}
        assert splits_of(read_raw(source, with_options(*told))) == expected
    assert set(splits_of(read_raw(source, with_options("ignore"))).values()) == {None}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "names",
    [
        ("train_station.jpg", "IMG_1.jpg", "IMG_2.jpg"),
        ("train_station.jpg", "test_drive.jpg", "a.jpg", "b.jpg"),
        ("train_1.jpg", "train_2.jpg", "train_3.jpg", "IMG_1.jpg"),
        ("latest_1.jpg", "trainer_2.jpg", "contest_3.jpg"),
    ],
)
def test_ordinary_names_give_no_split(tmp_path: Path, form: str, names: tuple[str, ...]) -> None:
    source = source_of(tmp_path, form, names)
    assert set(splits_of(read_raw(source)).values()) == {None}
    with pytest.raises(RawDataError, match=r"'nothing', but .* has no split of that name"):
        read_raw(source, with_options("nothing=train"))


@pytest.mark.parametrize("place", ["", "lists/", "photos/train/"])
def test_absolute_names_keep_the_folders_of_splits(tmp_path: Path, place: str) -> None:
    put(tmp_path / "photos", "train/a.jpg", "train/b.jpg", "test/c.jpg")
    table = tmp_path / place / "l.csv"
    table.parent.mkdir(exist_ok=True)
    files = sorted((tmp_path / "photos").rglob("*.jpg"))
    above = tmp_path / "photos" / ".."
    for form in ("{file}", "/{file}", "{above}/{relative}"):
        names = [form.format(file=file, above=above, relative=file.relative_to(tmp_path)) for file in files]
        table.write_text("\n".join(["image,label", *(f"{name},sad" for name in names)]))
        photos = read_raw(table).photos
        assert [photo.split for photo in photos] == ["test", "train", "train"]
        assert [photo.size for photo in photos] == [10, 11, 11]
        assert not any(part in photo.source for photo in photos for part in (str(tmp_path), tmp_path.name, ".."))
