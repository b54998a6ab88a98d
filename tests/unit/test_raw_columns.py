"""Columns of tables: split columns of any name, and several columns of one meaning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pfcluster.data.raw.base import RawDataError
from pfcluster.data.raw.readers import read_raw
from tests.unit.test_raw_tables import rows, with_options
from tests.unit.test_raw_trees import put


def write_rows(tmp_path: Path, form: str, records: list[dict[str, str]]) -> Path:
    """A table of records as `form`: csv, jsonl, metadata (an imagefolder), parquet, fer2013."""
    if form in ("csv", "jsonl", "fer2013"):
        source = tmp_path / ("l.csv" if form == "fer2013" else f"l.{form}")
        records = (
            [{"pixels": "1 2 3 4", "emotion": "3", **record} for record in records] if form == "fer2013" else records
        )
        lines = [",".join(records[0]), *(",".join(record.values()) for record in records)]
        source.write_text("\n".join(map(json.dumps, records) if form == "jsonl" else lines))
        return source
    if form == "metadata":
        put(tmp_path, *(record["image"] for record in records))
        renamed = [{"file_name" if name == "image" else name: cell for name, cell in r.items()} for r in records]
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, renamed)))
        return tmp_path
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as arrow_parquet

    for number, record in enumerate(records):  # one row a file: the splits of all files are read together
        images = {"image": [{"bytes": b"x", "path": None}]}
        table = arrow.table({**images, **{name: [cell] for name, cell in record.items() if name != "image"}})
        arrow_parquet.write_table(table, tmp_path / f"{number}.parquet")
    return tmp_path


def records_of(column: str, cells: tuple[str, ...]) -> list[dict[str, str]]:
    return [
        {"image": f"{number}.jpg", "label": "sad", "note": "in a test", column: cell}
        for number, cell in enumerate(cells)
    ]


FORMS = ("csv", "jsonl", "metadata", "parquet", "fer2013")


@pytest.mark.parametrize("column", ["set", "fold", "dataset", "Train/Test"])
@pytest.mark.parametrize("form", FORMS)
def test_a_split_column_of_any_name_is_recognised_by_its_cells(tmp_path: Path, form: str, column: str) -> None:
    source = write_rows(tmp_path, form, records_of(column, ("train", "Test", "training", "val")))
    dataset = read_raw(source)
    assert [photo.split for photo in dataset.photos] == ["train", "test", "train", "validation"]
    assert any(f"those of column {column!r}".lower() in note.lower() for note in dataset.notes)
    assert {photo.split for photo in read_raw(source, with_options("ignore")).photos} == {None}


@pytest.mark.parametrize("form", FORMS)
def test_cells_that_name_no_split_beside_most_that_do_are_an_error(tmp_path: Path, form: str) -> None:
    source = write_rows(tmp_path, form, records_of("set", ("train", "train", "test", "extra")))
    with pytest.raises(RawDataError, match=r"column 'set': 'extra': 1 .*--splits extra=test"):
        read_raw(source)
    splits = [photo.split for photo in read_raw(source, with_options("extra=validation")).photos]
    assert splits == ["train", "train", "test", "validation"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "cells",
    [("1", "2", "3", "1"), ("train", "train", "train", "train"), ("train", "bus", "test", "car"), ("", "", "", "")],
)
def test_columns_of_other_words_give_no_split(tmp_path: Path, form: str, cells: tuple[str, ...]) -> None:
    dataset = read_raw(write_rows(tmp_path, form, records_of("theme", cells)))
    assert {photo.split for photo in dataset.photos} == {None}
    assert dataset.notes == ()


def test_two_columns_with_different_splits_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("image,label,set,fold\na.jpg,sad,train,test\nb.jpg,sad,test,train\n")
    with pytest.raises(RawDataError, match=r"columns 'set' and 'fold' both name splits, and differ in 2 rows; rename"):
        read_raw(tmp_path / "l.csv")
    (tmp_path / "l.csv").write_text("image,label,set,set\na.jpg,sad,train,test\nb.jpg,sad,test,train\n")
    with pytest.raises(RawDataError, match=r"columns 'set' and 'set \(column 4\)' both name splits"):
        read_raw(tmp_path / "l.csv")
    (tmp_path / "l.csv").write_text("image,label,set,fold\na.jpg,sad,train,TR\nb.jpg,sad,test,TE\n")
    assert [photo.split for photo in read_raw(tmp_path / "l.csv").photos] == ["train", "test"]
    (tmp_path / "l.csv").write_text("image,label,set,split\na.jpg,sad,train,test\nb.jpg,sad,test,train\n")
    assert [photo.split for photo in read_raw(tmp_path / "l.csv").photos] == ["test", "train"]


def test_splits_explains_cells_of_metadata_and_folders(tmp_path: Path) -> None:
    put(tmp_path, "train/a.jpg", "test/b.jpg", "more/c.jpg", "happy/d.jpg")
    lines = ("file_name,label,set", "train/a.jpg,sad,train", "test/b.jpg,sad,test", "more/c.jpg,sad,extra")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    with pytest.raises(RawDataError, match="'happy': 1"):
        read_raw(tmp_path, with_options("extra=train"))
    told = with_options("extra=validation", "happy=train")
    splits = {photo.source: photo.split for photo in read_raw(tmp_path, told).photos if photo.left_out is None}
    assert splits == {"train/a.jpg": "train", "test/b.jpg": "test", "more/c.jpg": "validation"}
    with pytest.raises(RawDataError, match=r"'nothing', but .* has no split of that name"):
        read_raw(tmp_path, with_options("nothing=train", "extra=train", "happy=train"))


@pytest.mark.parametrize(
    ("column", "first", "second"),
    [("label", "label", "class"), ("identity", "subject", "actor"), ("split", "split", "usage")],
)
@pytest.mark.parametrize("form", ["csv", "jsonl", "metadata", "parquet"])
def test_two_columns_of_one_meaning_that_differ_are_an_error(
    tmp_path: Path, form: str, column: str, first: str, second: str
) -> None:
    base = {} if column == "label" else {"label": "sad"}
    rows_of = [("train", "train"), ("test", "test")]
    same = [{"image": f"{n}.jpg", **base, first: one, second: two} for n, (one, two) in enumerate(rows_of)]
    assert len(read_raw(write_rows(tmp_path, form, same)).photos) == 2
    other = [*same, {"image": "2.jpg", **base, first: "test", second: "train"}]
    source = write_rows(tmp_path, form, other)
    message = rf"columns '(\w+)' and '(\w+)' can both be the {column}, and differ in 1 rows, .*remove or rename"
    with pytest.raises(RawDataError, match=message):
        read_raw(source)
    if column == "split":
        assert {photo.split for photo in read_raw(source, with_options("ignore")).photos} <= {None}


def test_two_columns_of_one_name_and_an_empty_one(tmp_path: Path) -> None:
    source = put(tmp_path, "a.jpg") / "l.csv"
    source.write_text("image,label,label\na.jpg,sad,happy\n")
    with pytest.raises(RawDataError, match=r"columns 'label' and 'label' .* row 1 \('sad' and 'happy'\)"):
        read_raw(source)
    source.write_text("image,emotion,label\na.jpg,,happy\n")
    assert rows(read_raw(source)) == [("a.jpg", "happy", None)]
