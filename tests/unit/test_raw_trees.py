"""Trees of folders: their own splits, the level of the labels, links, and what is left out by name."""

from __future__ import annotations

import io
import itertools
import tarfile
from pathlib import Path

import pytest

from pfcluster.cli.build import main
from pfcluster.data.build.candidates import LeftOut
from pfcluster.data.build.errors import BuildError
from pfcluster.data.build.left_out import left_out_notes, skipped_note
from pfcluster.data.build.plan import require_training_photos
from pfcluster.data.raw.base import RawDataError, RawDataset, ReadOptions, read_bytes
from pfcluster.data.raw.name_options import class_options, split_options
from pfcluster.data.raw.readers import read_raw
from pfcluster.data.raw.split_names import split_from_name
from tests.photos import make_folder, picture

LABELS = ("angry", "happy", "sad")


def put(root: Path, *names: str) -> Path:
    """Write a file for each name; its content is its name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def tree(root: Path, *folders: str, below: str = "") -> Path:
    """Class folders in each folder, with a photo in each."""
    return put(root, *(f"{folder}/{label}/{below}x.jpg" for folder in folders for label in LABELS))


def read(root: Path, *splits: str, classes: tuple[str, ...] = (), ignored: bool = False) -> RawDataset:
    options = ReadOptions(classes=class_options(classes), splits=split_options(splits), labels_ignored=ignored)
    return read_raw(root, options)


def splits_of(dataset: RawDataset) -> dict[str, str | None]:
    """Split by first folder."""
    return {photo.source.split("/")[0]: photo.split for photo in dataset.photos}


def labels_of(dataset: RawDataset) -> dict[str, str]:
    return {photo.source: photo.label for photo in dataset.photos}


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (
            ("train", "Training", "TRAIN", "train_set", "trainset", "Train Set", "01_train", "train_images", "trn"),
            "train",
        ),
        (("TrainingData", "train2017", "train-00000-of-00002", "training_set", "trainval", "train_val"), "train"),
        (("dev", "val", "VALID", "validation", "Validation Set", "devel", "val2017", "valset"), "validation"),
        (("public_test", "Public Test", "PublicTest", "public-test", "PUBLICTEST", "dev_set"), "validation"),
        (("test", "Testing", "test_set", "Test Set", "private_test", "PrivateTest", "Private Test", "testset"), "test"),
        (("eval", "evaluation", "holdout", "hold-out", "Hold Out", "held_out", "eval_images"), "test"),
        (("latest", "contest", "trainer", "valley", "Devon", "Dev Patel", "happy", "train_test", "", "42", "tr"), None),
    ],
)
def test_names_of_splits(names: tuple[str, ...], split: str | None) -> None:
    assert {name: split_from_name(name) for name in names} == dict.fromkeys(names, split)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("train", "test"), ("train", "test")),
        (("Training", "PublicTest", "PrivateTest"), ("train", "validation", "test")),
        (("train", "dev"), ("train", "validation")),
        (("train", "dev", "eval"), ("train", "validation", "test")),
        (("train", "eval", "test"), ("train", "validation", "test")),
        (("TRAIN", "HOLDOUT"), ("train", "test")),
        (("rafdb_train", "rafdb_test"), ("train", "test")),
        (("fertrain", "fertest"), ("train", "test")),
        (("tr", "te"), ("train", "test")),
        (("FER2013Train", "FER2013Valid", "FER2013Test"), ("train", "validation", "test")),
    ],
)
@pytest.mark.parametrize("wrapper", ["", "archive/fer/", "test_data/"])
def test_own_splits_are_kept_at_any_depth(
    tmp_path: Path, folders: tuple[str, ...], expected: tuple[str, ...], wrapper: str
) -> None:
    tree(tmp_path / wrapper, *folders)
    put(tmp_path, "preview.png", f"{wrapper}{folders[0]}/cover.jpg")
    dataset = read(tmp_path)
    split_at = {photo.source.removeprefix(wrapper).split("/")[0]: photo.split for photo in dataset.photos}
    del split_at["preview.png"]
    assert split_at == dict(zip(folders, expected, strict=True))
    left_out = {photo.source: photo.left_out for photo in dataset.photos if photo.left_out}
    assert left_out == {"preview.png": ("outside the splits", "no folder of its path is a split")}
    assert {photo.label for photo in dataset.photos} == {*LABELS, ""}


def test_splits_below_the_classes_and_beside_images(tmp_path: Path) -> None:
    put(tmp_path / "a", *(f"{label}/{split}/x.jpg" for label in LABELS for split in ("train", "test")))
    assert {(photo.label, photo.split) for photo in read(tmp_path / "a").photos} == {
        (label, split) for label in LABELS for split in ("train", "test")
    }
    tree(tmp_path / "b" / "images", "train", "val")
    assert {photo.split for photo in read(tmp_path / "b").photos} == {"train", "validation"}
    put(tmp_path / "c", *(f"{label}/{split}_{n}.jpg" for label in LABELS for split in ("train", "test") for n in "12"))
    assert {photo.source[-11:-6]: photo.split for photo in read(tmp_path / "c").photos}.keys() >= {"train"}
    assert all(photo.split == photo.source.split("/")[1][:-6] for photo in read(tmp_path / "c").photos)


@pytest.mark.parametrize("folder", ["more", "validaton", "set3"])
def test_unknown_names_beside_splits_are_an_error_with_a_remedy(tmp_path: Path, folder: str) -> None:
    tree(tmp_path, "train", "test", folder)
    with pytest.raises(RawDataError, match=rf"'{folder}': 3 in its split folders .*--splits {folder}=test"):
        read(tmp_path)
    assert splits_of(read(tmp_path, f"{folder}=validation"))[folder] == "validation"
    assert splits_of(read(tmp_path, "other=train"))[folder] == "train"
    assert set(splits_of(read(tmp_path, "ignore")).values()) == {None}
    with pytest.raises(RawDataError, match=r"names 'nothing', but .* has no split of that name"):
        read(tmp_path, "nothing=train")


def test_classes_beside_a_test_folder_are_an_error(tmp_path: Path) -> None:
    put(tmp_path, "happy/1.jpg", "sad/2.jpg", "test/happy/3.jpg")
    with pytest.raises(RawDataError, match=r"'happy': 1, 'sad': 1 in .*, unlike 'test' \(test\)\."):
        read(tmp_path)
    assert splits_of(read(tmp_path, "other=train")) == {"happy": "train", "sad": "train", "test": "test"}
    assert labels_of(read(tmp_path, "other=train")) == {
        "happy/1.jpg": "happy",
        "sad/2.jpg": "sad",
        "test/happy/3.jpg": "happy",
    }


def test_a_path_in_two_splits_is_an_error(tmp_path: Path) -> None:
    put(tree(tmp_path, "train", "test"), "train/holdout/happy/1.jpg")
    with pytest.raises(RawDataError, match="train/holdout/happy names several splits"):
        read(tmp_path)


def test_persons_whose_names_are_split_words(tmp_path: Path) -> None:
    put(
        tmp_path / "a",
        *(f"{label}/{person}/x.jpg" for label in LABELS for person in ("Dev_Patel", "Val Kilmer", "Ann")),
    )
    assert {photo.split for photo in read(tmp_path / "a").photos} == {None}
    put(tmp_path / "b", *(f"{label}/{person}/x.jpg" for label in LABELS for person in ("Dev", "Ann")))
    with pytest.raises(RawDataError, match="--splits"):
        read(tmp_path / "b")
    assert {photo.split for photo in read(tmp_path / "b", "Dev=none").photos} == {None}


def test_a_test_split_alone_is_no_input_for_training(tmp_path: Path) -> None:
    dataset = read(tree(tmp_path, "test", "val"))
    with pytest.raises(
        BuildError,
        match=r"test and validation split only, and none for training; pass photos of the test split as --test-in",
    ):
        require_training_photos(dataset)
    require_training_photos(read(tmp_path, "ignore"))


@pytest.mark.parametrize(
    "folders", ["{label}/{other}", "{other}/{label}", "{label}/{other}/take 1", "s1/{label}/{other}"]
)
@pytest.mark.parametrize("others", [("Ann", "Joy", "Bob"), ("normal", "dim", "bright"), ("calm", "take2", "take3")])
def test_one_level_gives_the_label(tmp_path: Path, folders: str, others: tuple[str, ...]) -> None:
    for split in ("train/", "test/", ""):
        root = tmp_path / (split or "none")
        names = [(label, folders.format(label=label, other=other)) for label in LABELS for other in others]
        put(root, *(f"{part}{name}/{label}.jpg" for label, name in names for part in {split, split and "train/"}))
        assert all(photo.label == Path(photo.source).stem for photo in read(root).photos)


def test_two_levels_that_both_name_emotions_conflict_by_path(tmp_path: Path) -> None:
    put(tmp_path, *(f"{label}/{inner}/x.jpg" for label in ("angry", "happy") for inner in ("happy", "sad")))
    dataset = read(tmp_path)
    assert {photo.source: photo.left_out for photo in dataset.photos} == {
        "angry/happy/x.jpg": ("conflicting labels", "angry and happy"),
        "angry/sad/x.jpg": ("conflicting labels", "angry and sad"),
        "happy/happy/x.jpg": None,
        "happy/sad/x.jpg": ("conflicting labels", "happy and sad"),
    }
    settled = read(tmp_path, classes=("angry=anger",))
    assert {photo.label for photo in settled.photos} == {"anger", "happy"}


def test_a_level_that_names_emotions_by_chance_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, *(f"{word}/{person}/x.jpg" for word in ("freude", "angst", "trauer") for person in ("Ann", "Joy")))
    with pytest.raises(RawDataError, match=r"which folders name the emotions\? .*--classes"):
        read(tmp_path)
    named = read(tmp_path, classes=("freude=happiness", "angst=fear", "trauer=sadness"))
    assert {photo.source.split("/")[0]: photo.label for photo in named.photos} == {
        "freude": "happiness",
        "angst": "fear",
        "trauer": "sadness",
    }
    with pytest.raises(RawDataError, match="--classes names 'wut', but the labels"):
        read(tmp_path, classes=("freude=happiness", "wut=anger"))
    assert len(read(tmp_path, ignored=True).photos) == 6


def test_levels_of_varying_depth(tmp_path: Path) -> None:
    put(tmp_path, "happy/1.jpg", "more/sad/2.jpg", "more/again/angry/3.jpg")
    assert set(labels_of(read(tmp_path)).values()) == {"happy", "sad", "angry"}


@pytest.mark.parametrize("pair", ["happy", "=happiness", "1=bliss", "1="])
def test_invalid_classes_and_splits_are_refused(pair: str) -> None:
    with pytest.raises(RawDataError, match="--classes"):
        class_options((pair, pair))
    with pytest.raises(RawDataError, match="--splits"):
        split_options((pair,))


def test_links_are_followed(tmp_path: Path) -> None:
    tree(tmp_path / "scratch", "test")
    put(tmp_path / "scratch", "happy/1.jpg", "one.jpg")
    put(tmp_path / "data", "train/sad/2.jpg", "train/angry/3.jpg")
    (tmp_path / "data" / "train" / "happy").symlink_to(tmp_path / "scratch" / "happy")
    (tmp_path / "data" / "train" / "sad" / "4.jpg").symlink_to(tmp_path / "scratch" / "one.jpg")
    (tmp_path / "data" / "test").symlink_to("../scratch/test")
    (tmp_path / "data" / "train" / "sad" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    for root in (tmp_path / "data", tmp_path / "linked"):
        dataset = read(root)
        assert [photo.source for photo in dataset.photos if photo.split == "train"] == [
            "train/angry/3.jpg",
            "train/happy/1.jpg",
            "train/sad/2.jpg",
            "train/sad/4.jpg",
        ]
        assert sum(photo.split == "test" for photo in dataset.photos) == 3
        assert "train/sad/loop (a link to a folder that contains it)" in skipped_note(dataset)


def test_links_that_lead_nowhere_or_multiply_are_an_error(tmp_path: Path) -> None:
    put(tmp_path / "a", "happy/1.jpg")
    (tmp_path / "a" / "sad").symlink_to(tmp_path / "gone")
    with pytest.raises(RawDataError, match=r"sad is a link to .*gone, which does not exist"):
        read(tmp_path / "a")
    folders = [tmp_path / "b" / str(number) for number in range(20)]
    for folder, target in itertools.pairwise(folders):
        put(folder, "happy/1.jpg")
        target.mkdir(parents=True)
        for name in ("left", "right"):
            (folder / name).symlink_to(target)
    with pytest.raises(RawDataError, match=r"links lead to .* more than 8 times"):
        read(tmp_path / "b")


def test_links_within_a_tar_are_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name in ("train/sad/a.jpg", "scratch/happy/b.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
        for name, target, kind in (
            ("train/happy", "../scratch/happy", tarfile.SYMTYPE),
            ("test/sad/c.jpg", "train/sad/a.jpg", tarfile.LNKTYPE),
            ("train/sad/d.jpg", "/etc/passwd", tarfile.SYMTYPE),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            archive.addfile(link)
    dataset = read(tmp_path / "t.tar", "scratch=train")
    assert {photo.source: (photo.label, photo.split) for photo in dataset.photos} == {
        "scratch/happy/b.jpg": ("happy", "train"),
        "test/sad/c.jpg": ("sad", "test"),
        "train/happy/b.jpg": ("happy", "train"),
        "train/sad/a.jpg": ("sad", "train"),
    }
    assert read_bytes(dataset.photos[1]) == b"train/sad/a.jpg"
    assert dataset.skipped == {"links that lead to no file of the archive": 1}


def test_webdataset_tars_are_labelled_by_cls_files_and_split_by_name(tmp_path: Path) -> None:
    for split in ("train", "test"):
        with tarfile.open(tmp_path / f"fer-{split}-000000.tar", "w") as archive:
            for number, label in enumerate(("happy", "1", "sad\n")):
                for suffix, data in ((".jpg", f"{split}{number}"), (".cls", label)):
                    member = tarfile.TarInfo(f"{number:04d}{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data.encode()))
    dataset = read(tmp_path, classes=("1=fear",))
    assert dataset.kind == "tar"
    assert [(photo.label, photo.split) for photo in dataset.photos] == [
        *[("happy", "test"), ("fear", "test"), ("sad", "test")],
        *[("happy", "train"), ("fear", "train"), ("sad", "train")],
    ]
    assert [photo.label for photo in read(tmp_path / "fer-test-000000.tar").photos] == ["happy", "1", "sad"]


@pytest.mark.parametrize("second", ["0000.cls", "0000.old.cls"])
def test_different_classes_of_one_webdataset_key_are_an_error(tmp_path: Path, second: str) -> None:
    def write(*members: tuple[str, str]) -> Path:
        with tarfile.open(tmp_path / "faces.tar", "w") as archive:
            for name, data in members:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data.encode()))
        return tmp_path / "faces.tar"

    samples = [("0000.jpg", "one"), ("0000.cls", "happy"), ("0000.jpg", "two")]
    same = read(write(*samples, (second, "happy"), ("._0000.cls", "x"), ("._0001.cls", "y")))
    assert [photo.label for photo in same.photos] == ["happy", "happy"]
    with pytest.raises(RawDataError, match=r"faces\.tar has \.cls files of 0000 with different classes"):
        read(write(*samples, (second, "sad")))


def test_what_is_left_out_is_named_with_the_nearest_name(tmp_path: Path) -> None:
    put(tmp_path, "happy/1.jpg", "sad/2.jpg", "happy/3.heic", "happy/4.heic", ".DS_Store", "7/6.jpg", "x/notes")
    put(tmp_path, *(f"suprise/{number}.jpg" for number in range(16)))
    dataset = read(tmp_path)
    unknown = [n for n, photo in enumerate(dataset.photos) if photo.label in ("suprise", "7")]
    notes = left_out_notes({"input": dataset}, [LeftOut("input", number, "unknown label", "") for number in unknown])
    assert notes[0].startswith("16 left out: label 'suprise' is not a known emotion, the nearest is 'surprise'")
    assert "--classes 7=EMOTION" in notes[1]
    assert skipped_note(dataset) == (
        "4 skipped, not images by their names: 2 happy/*.heic, 1 hidden files, 1 x/* without a suffix"
    )


def test_an_archive_beside_its_unpacked_photos_is_not_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "download.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("happy/1.jpg"))
    assert read(tmp_path).kind == "tar"
    tree(tmp_path, "train", "test")
    dataset = read(tmp_path)
    assert (dataset.kind, len(dataset.photos), dataset.skipped) == ("folder", 6, {"*.tar": 1})


def test_a_build_names_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = make_folder(tmp_path / "raw" / "train", 4, ("happy", "sad")).parent
    make_folder(raw / "test", 2, ("neutral",))
    (raw / "train" / "sad").rename(raw / "train" / "sadd")
    picture("fear", 1).save(raw / "cover.png")
    arguments = ["--input", str(raw), "--output", str(tmp_path / "out"), "--size", "24", "--align", "none"]
    for _ in range(2):  # also if it was finished before
        assert main([*arguments, "--workers", "1"]) == 0
        screen = capsys.readouterr().out
        assert "4 left out: label 'sadd' is not a known emotion, the nearest is 'sad'" in screen
        assert "1 left out, in no folder that names a split: .: 1" in screen
    assert main([*arguments, "--workers", "1", "--splits", "extra=train"]) == 2
    assert "--splits names 'extra'" in capsys.readouterr().err
