"""Tables as spreadsheets and others save them, their splits, and folders of tables."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest

from pfcluster.data.raw.base import RawDataError, RawDataset, ReadOptions, read_bytes
from pfcluster.data.raw.name_options import class_options, split_options
from pfcluster.data.raw.readers import read_raw
from tests.unit.test_raw_fer import parquet
from tests.unit.test_raw_trees import put

ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32": b"",
}
"""Python's names, and the mark that they do not write."""


def encoded(text: str, encoding: str, delimiter: str, newline: str, sep: bool) -> bytes:
    text = (f"sep={delimiter}\n" if sep else "") + text.replace(",", delimiter)
    return ENCODINGS[encoding] + text.replace("\n", newline).encode(encoding)


def rows(dataset: RawDataset) -> list[tuple[str, str, str | None]]:
    return [(photo.source, photo.label, photo.split) for photo in dataset.photos]


def with_options(*splits: str, classes: tuple[str, ...] = ()) -> ReadOptions:
    return ReadOptions(splits=split_options(splits), classes=class_options(classes))


@pytest.mark.parametrize("sep", [False, True])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_csv_and_fer2013_in_every_form(tmp_path: Path, encoding: str, delimiter: str, newline: str, sep: bool) -> None:
    data = encoded("image,emotion,Usage\na.jpg,3.0,train\nb.jpg,Happy,dev\n", encoding, delimiter, newline, sep)
    (tmp_path / "l.csv").write_bytes(data)
    dataset = read_raw(tmp_path / "l.csv", with_options(classes=("3=fear",)))
    assert rows(dataset) == [("a.jpg", "fear", "train"), ("b.jpg", "Happy", "validation")]
    text = ',emotion,pixels,Usage\n0,3.0,70 80 90 255,Training\n1,4,"1 2 3 4",Public Test\n2,7,5 6 7 8,Private_Test\n'
    (tmp_path / "fer2013.csv").write_bytes(encoded(text, encoding, delimiter, newline, sep))
    for source in (tmp_path / "fer2013.csv", tmp_path):
        dataset = read_raw(source)
        assert dataset.kind == "fer2013"
        assert [(label, split) for _, label, split in rows(dataset)] == [
            ("happiness", "train"),
            ("sadness", "validation"),
            ("7", "test"),
        ]
        assert [read_bytes(photo)[-4:] for photo in dataset.photos] == [b"FPZ\xff", b"\1\2\3\4", b"\5\6\7\10"]


@pytest.mark.parametrize(
    ("cells", "splits"),
    [
        (("train", "dev", "test"), ("train", "validation", "test")),
        (("Training", "Public Test", "PrivateTest"), ("train", "validation", "test")),
        (("train", "eval", "TEST_SET"), ("train", "validation", "test")),
        (("training_set", "holdout", "holdout"), ("train", "test", "test")),
        (("", "", ""), (None, None, None)),
    ],
)
def test_split_columns_of_csv_and_parquet(tmp_path: Path, cells: tuple[str, ...], splits: tuple[str, ...]) -> None:
    lines = [f"{number}.jpg,sad,{cell}" for number, cell in enumerate(cells)]
    (tmp_path / "l.csv").write_text("\n".join(["image,label,split", *lines]))
    assert tuple(photo.split for photo in read_raw(tmp_path / "l.csv").photos) == splits
    records = [{"file_name": f"{number}.jpg", "label": "sad", "split": cell} for number, cell in enumerate(cells)]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert tuple(photo.split for photo in read_raw(tmp_path / "l.jsonl").photos) == splits
    arrow = pytest.importorskip("pyarrow")
    images = [{"bytes": cell.encode() + b"x", "path": None} for cell in cells]
    table = arrow.table({"image": images, "label": ["sad"] * 3, "split": list(cells), "subject": ["Ann", None, "Bob"]})
    from pyarrow import parquet as arrow_parquet

    arrow_parquet.write_table(table, tmp_path / "t.parquet")
    dataset = read_raw(tmp_path / "t.parquet")
    assert tuple(photo.split for photo in dataset.photos) == splits
    assert [photo.identity for photo in dataset.photos] == ["Ann", None, "Bob"]


@pytest.mark.parametrize("cell", ["more", "", "0", "validaton"])
def test_unknown_cells_in_a_split_column_are_an_error_with_a_remedy(tmp_path: Path, cell: str) -> None:
    source = put(tmp_path, "a.jpg") / "l.csv"
    source.write_text(f"image,label,split\na.jpg,sad,train\nb.jpg,sad,test\nc.jpg,sad,{cell}\n")
    with pytest.raises(
        RawDataError, match=rf"l\.csv: '{cell}': 1 in its split column are not known names of splits.*--splits"
    ):
        read_raw(source)
    told = with_options(f"{cell}=validation" if cell else "other=validation")
    assert [photo.split for photo in read_raw(source, told).photos] == ["train", "test", "validation"]
    assert {photo.split for photo in read_raw(source, with_options("ignore")).photos} == {None}


def test_csv_takes_splits_from_the_folders_and_names_of_its_photos(tmp_path: Path) -> None:
    source = tmp_path / "l.csv"
    source.write_text("image,label\nimages/train/a.jpg,sad\nimages/test/b.jpg,happy\n")
    assert [photo.split for photo in read_raw(source).photos] == ["train", "test"]
    source.write_text("image,label\ntrain_00001.jpg,sad\ntest_0001.jpg,happy\n")
    assert [photo.split for photo in read_raw(source).photos] == ["train", "test"]
    source.write_text("image,label\ntrain/a.jpg,sad\ntest/b.jpg,happy\nelsewhere/c.jpg,happy\n")
    with pytest.raises(RawDataError, match=r"'elsewhere': 1 .*--splits elsewhere=test"):
        read_raw(source)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("data/train-00000-of-00001", "data/dev-00000-of-00001"), ("validation", "train")),
        (("default/test/0000", "default/train/0000"), ("test", "train")),
        (("my-fer-eval", "my-fer-training"), ("test", "train")),
        (("part-0", "part-1"), (None, None)),
    ],
)
def test_parquet_splits_by_file_name(tmp_path: Path, names: tuple[str, ...], splits: tuple[str | None, ...]) -> None:
    for name in names:
        parquet(tmp_path / f"{name}.parquet", ["sad"], None)
    dataset = read_raw(tmp_path)
    assert (dataset.kind, tuple(photo.split for photo in dataset.photos)) == ("parquet", splits)


def test_parquet_files_that_name_no_split_beside_others_are_an_error(tmp_path: Path) -> None:
    for name in ("train-0", "test-0", "more-0"):
        parquet(tmp_path / f"{name}.parquet", [0], None)
    with pytest.raises(RawDataError, match="--classes 0=anger"):
        read_raw(tmp_path)
    with pytest.raises(RawDataError, match=r"'more-0' in its split files are not known names of splits"):
        read_raw(tmp_path, with_options(classes=("0=fear",)))
    dataset = read_raw(tmp_path, with_options("more=validation", classes=("0=fear",)))
    assert [(photo.label, photo.split) for photo in dataset.photos] == [
        ("fear", "validation"),
        ("fear", "test"),
        ("fear", "train"),
    ]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_hugging_faces_imagefolder(tmp_path: Path, suffix: str) -> None:
    for split, label in (("train", "happy"), ("test", "sad")):
        put(tmp_path / split, "a.jpg", "deep/b.jpg", "c.jpg")
        records = [
            {"file_name": name, "label": label, "subject": "Ann"} for name in ("a.jpg", "deep/b.jpg", "gone.jpg")
        ]
        lines = ["file_name,label,subject", *(",".join(record.values()) for record in records)]
        text = lines if suffix == ".csv" else map(json.dumps, records)
        (tmp_path / split / f"metadata{suffix}").write_text("\n".join(text))
    dataset = read_raw(tmp_path)
    listed = {photo.source: (photo.label, photo.split, photo.identity, photo.size >= 0) for photo in dataset.photos}
    assert listed["train/a.jpg"] == ("happy", "train", "Ann", True)
    assert listed["test/deep/b.jpg"] == ("sad", "test", "Ann", True)
    assert listed["test/gone.jpg"][:3] == ("sad", "test", "Ann")
    assert not listed["test/gone.jpg"][3]
    assert {photo.source for photo in dataset.photos if photo.left_out} == {"train/c.jpg", "test/c.jpg"}
    assert dataset.skipped == {}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_repeated_rows_of_metadata_are_listed_as_those_of_a_csv(tmp_path: Path, suffix: str) -> None:
    put(tmp_path, "a.jpg", "b.jpg")
    rows = [("a.jpg", "happy"), ("a.jpg", "angry"), ("b.jpg", "fear"), ("b.jpg", "fear"), ("c.jpg", "sad")] * 2
    rows += [("", "sad"), ("", "sad")]
    table = tmp_path / f"metadata{suffix}"
    if suffix == ".csv":
        table.write_text("\n".join(["file_name,label", *(",".join(row) for row in rows)]))
    else:
        table.write_text("\n".join(json.dumps({"file_name": name, "label": label}) for name, label in rows))
    of_folder = [(photo.source, photo.label, photo.path, photo.left_out) for photo in read_raw(tmp_path).photos]
    of_table = [(photo.source, photo.label, photo.path, photo.left_out) for photo in read_raw(table).photos]
    assert sorted(of_folder) == sorted(of_table)
    assert len(of_folder) == 12


def test_metadata_tables_that_differ_about_an_image_are_an_error(tmp_path: Path) -> None:
    put(tmp_path, "d/a.jpg", "d/b.jpg")
    (tmp_path / "d" / "metadata.csv").write_text("file_name,label\na.jpg,happy\nb.jpg,sad\n")
    other = tmp_path / "d" / "metadata.jsonl"
    other.write_text('{"file_name": "a.jpg", "label": "happy"}')
    assert [photo.label for photo in read_raw(tmp_path).photos] == ["happy", "sad"]
    message = r"metadata\.csv and .*metadata\.jsonl both have rows of d/a\.jpg, and differ in them; remove one"
    for record in ({"label": "angry"}, {"caption": "a man"}, {"label": "happy", "person": "Ann"}):
        other.write_text(json.dumps({"file_name": "a.jpg", **record}))
        with pytest.raises(RawDataError, match=message):
            read_raw(tmp_path)
    other.rename(tmp_path / "metadata.jsonl").write_text('{"file_name": "d/a.jpg", "label": "angry"}')
    with pytest.raises(RawDataError, match=r"d/metadata\.csv and .*metadata\.jsonl both have rows of d/a\.jpg"):
        read_raw(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train.csv", "test.csv"), r"read with --input .*train\.csv \(also seen: test\.csv\)"),
        (("faces.jsonl",), r"read with --input .*faces\.jsonl"),
        (("photos.zip",), r"unpack photos\.zip first"),
        (("labels/train/a.txt", "data.yaml"), "YOLO"),
        (("manifest.json", "train-0.tar", "train-0.index.json"), "finished build of pfcluster"),
        (("happy/1.heic",), r"1 happy/\*\.heic"),
    ],
)
def test_folders_without_photos_say_what_was_seen(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(RawDataError, match=message):
        read_raw(put(tmp_path, *names))


def test_broken_json_lines_and_metadata_outside_their_folder_are_refused(tmp_path: Path) -> None:
    for text, message in (("{", "line 1 is not JSON"), ("[1]", "not a JSON object"), ("", "is empty")):
        (tmp_path / "l.jsonl").write_text(text)
        with pytest.raises(RawDataError, match=message):
            read_raw(tmp_path / "l.jsonl")
    put(tmp_path / "d", "a.jpg")
    (tmp_path / "d" / "metadata.csv").write_text("file_name,label\n../l.jsonl,happy\n")
    with pytest.raises(RawDataError, match="outside its folder"):
        read_raw(tmp_path / "d")
