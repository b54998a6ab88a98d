"""Generic readers of raw datasets: what they list, skip and refuse."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from pfcluster.data.raw.base import RawDataError, ReadOptions, read_bytes
from pfcluster.data.raw.readers import read_raw


def write(path: Path, data: bytes = b"picture") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_folder_lists_sorted_photos_with_their_class(tmp_path: Path) -> None:
    write(tmp_path / "sad" / "2.png", b"two")
    write(tmp_path / "Happy" / "1.JPG", b"one")
    write(tmp_path / "readme.txt")
    write(tmp_path / "sad" / "._2.png")
    dataset = read_raw(tmp_path)
    assert [(photo.source, photo.label, photo.size) for photo in dataset.photos] == [
        ("Happy/1.JPG", "Happy", 3),
        ("sad/2.png", "sad", 3),
    ]
    assert dataset.other_files == 2
    assert (dataset.kind, dataset.name) == ("folder", tmp_path.name)
    assert read_bytes(dataset.photos[1]) == b"two"


def test_tar_photos_are_read_by_offset(tmp_path: Path) -> None:
    source = make_tar(
        tmp_path / "train.tar", {"train/sad/b.jpg": b"bbbb", "train/angry/a.jpg": b"aaa", "notes.md": b"x"}
    )
    dataset = read_raw(source)
    assert [(photo.source, photo.label) for photo in dataset.photos] == [
        ("train/angry/a.jpg", "angry"),
        ("train/sad/b.jpg", "sad"),
    ]
    assert [read_bytes(photo) for photo in dataset.photos] == [b"aaa", b"bbbb"]
    assert dataset.other_files == 1


def test_links_in_a_tar_are_skipped(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        link = tarfile.TarInfo("sad/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(RawDataError, match="contains no photos"):
        read_raw(tmp_path / "t.tar")


def test_truncated_and_compressed_tars_are_refused(tmp_path: Path) -> None:
    content = make_tar(tmp_path / "complete.tar", {"sad/a.jpg": bytes(5000)}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[:3000])
    with pytest.raises(RawDataError, match="truncated"):
        read_raw(tmp_path / "cut.tar")
    make_tar(tmp_path / "packed.tar.gz", {"sad/a.jpg": b"x"}, "w:gz")
    with pytest.raises(RawDataError, match="unpack it first"):
        read_raw(tmp_path / "packed.tar.gz")


@pytest.mark.parametrize(
    "header",
    ["image,emotion,identity", "File Name;LABEL;person_id", "path\texpression\tSubject", "\ufeffimg,class,actor"],
)
def test_csv_header_names_vary(tmp_path: Path, header: str) -> None:
    delimiter = next(mark for mark in ",;\t" if mark in header)
    rows = [header, delimiter.join(["a.jpg", "Happy", "Ann"]), "", delimiter.join(["b.jpg", "sad", ""])]
    source = write(tmp_path / "legend.csv", "\r\n".join(rows).encode())
    write(tmp_path / "images" / "a.jpg", b"aa")
    dataset = read_raw(source)
    assert [(photo.source, photo.label, photo.identity, photo.size) for photo in dataset.photos] == [
        ("a.jpg", "Happy", "Ann", 2),
        ("b.jpg", "sad", None, -1),
    ]


def test_csv_identity_is_neither_an_annotator_nor_a_file_name(tmp_path: Path) -> None:
    source = write(tmp_path / "l.csv", b"user.id,image,emotion\n7,a.jpg,sad\n")
    assert read_raw(source).photos[0].identity is None
    source = write(tmp_path / "l.csv", b"image,emotion,identity\nx/a.jpg,sad,a.jpg\n")
    assert read_raw(source).photos[0].identity is None


def test_csv_photos_in_another_folder_and_short_rows(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "a.jpg")
    absolute = write(tmp_path / "deep" / "z.jpg")
    source = write(tmp_path / "l.csv", f"image,emotion\na.jpg,sad\na.jpg\n,happy\n{absolute},sad\n".encode())
    photos = read_raw(source, ReadOptions(images=tmp_path / "elsewhere")).photos
    assert [photo.size for photo in photos] == [7, 7, -1, 7]
    assert [photo.label for photo in photos] == ["sad", "", "happy", "sad"]
    assert photos[2].path == ""
    assert photos[3].source == "z.jpg"  # absolute paths do not go into shards


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("l.csv", b"", "is empty"),
        ("l.csv", b"photo_of,emotion\n", "no image column"),
        ("l.csv", b"image,feeling\n", "no label column"),
        ("l.csv", b"image,emotion\n", "contains no photos"),
        ("l.csv", b"image,emotion\n\xff\xfe,sad\n", "UTF-8"),
        ("l.zip", b"PK", "neither a folder"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(RawDataError, match=message):
        read_raw(write(tmp_path / name, data))


def test_missing_source_and_missing_images_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RawDataError, match="does not exist"):
        read_raw(tmp_path / "nowhere")
    source = write(tmp_path / "l.csv", b"image,emotion\na.jpg,sad\n")
    with pytest.raises(RawDataError, match="--images"):
        read_raw(source, ReadOptions(images=tmp_path / "nowhere"))


def test_reading_a_photo_that_shrank_after_listing_raises(tmp_path: Path) -> None:
    path = write(tmp_path / "sad" / "a.jpg", b"12345")
    photo = read_raw(tmp_path).photos[0]
    path.write_bytes(b"12")
    with pytest.raises(OSError, match="expected 5 bytes as listed, got 2"):
        read_bytes(photo)


@pytest.mark.skipif("PFCLUSTER_REAL_DATA" not in os.environ, reason="PFCLUSTER_REAL_DATA is not set")
def test_real_datasets_are_listed_completely() -> None:
    root = Path(os.environ["PFCLUSTER_REAL_DATA"])
    wild = read_raw(root / "wild" / "legend.csv")
    assert len(wild.photos) == 2640
    assert all(photo.size > 0 for photo in wild.photos)
    fer = read_raw(root / "fer2013" / "public_test.tar")
    assert len(fer.photos) == 3589
    assert {photo.label for photo in fer.photos} == {"angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"}
    assert read_bytes(fer.photos[0])[:2] == b"\xff\xd8"
