"""Damaged or malicious tars, parquet files, numpy arrays and label files."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import math
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfcluster.data.build.pipeline import build
from pfcluster.data.labels import VOCABULARIES
from pfcluster.data.raw.base import read_bytes
from pfcluster.data.raw.landmarks import POINTS
from pfcluster.data.raw.readers import read_raw
from tests.hostile.conftest import TIMES
from tests.hostile.damage import NAMES, Damage, damages
from tests.hostile.test_hostile_labels import WILD_CELLS, add_landmarks, folder, list_and_plan, put
from tests.photos import left_out, options, picture

MANY = settings(max_examples=150 * TIMES)
FILES = {f"{label}/{i}.jpg": (b"%d " % i) * 150 * i for i, label in enumerate(("happy", "sad", "neutral", "angry"))}


def header(name: str = "sad/x.jpg", **fields: Any) -> bytes:
    """A tar header; `size` may be any number, `raw` (offset, bytes) overwrites parts of it."""
    member = tarfile.TarInfo(name)
    size, raw = fields.pop("size", 0), fields.pop("raw", ())
    for field, value in fields.items():
        setattr(member, field, value)
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT)[-512:])
    block[124:136] = number(size)
    for offset, data in raw:
        block[offset : offset + len(data)] = data
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def number(value: int) -> bytes:
    """A 12-byte number of a tar header in the binary form, which allows negative numbers."""
    first = b"\xff" if value < 0 else b"\x80"
    return first + (value % 256**11).to_bytes(11, "big")


def complete_tar(**keywords: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **keywords) as archive:
        for name, data in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def check_tar(data: bytes, kind: str = "auto") -> None:
    """The tar is refused, or all photos lie within the file and those with a known name have its label."""
    with folder() as root:
        dataset = list_and_plan(put(root / "t.tar", data), kind=kind)
    for photo in dataset.photos if dataset else ():
        assert photo.source not in FILES or photo.label == photo.source.split("/")[0]
        assert 0 <= photo.offset <= photo.offset + photo.size <= len(data)
        assert not photo.source.startswith("/")
        assert ".." not in photo.source.split("/")


@MANY
@given(damage=damages(), format=st.sampled_from((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)))
def test_damaged_tars(damage: Damage, format: int) -> None:
    check_tar(damage(complete_tar(format=format, pax_headers={"comment": "é" * 40})))


@MANY
@given(damage=damages(), pack=st.sampled_from((gzip.compress, lzma.compress, lambda data: data)), kind=st.booleans())
def test_damaged_compressed_tars(damage: Damage, pack: Any, kind: bool) -> None:
    check_tar(damage(pack(complete_tar())), "tar" if kind else "auto")


def test_a_tar_with_a_damaged_header_is_refused() -> None:
    data = bytearray(complete_tar())
    data[data.index(b"neutral/2.jpg")] ^= 1
    with folder() as root, pytest.raises(ValueError, match="damaged header"):
        read_raw(put(root / "t.tar", bytes(data)))


SIZES = st.sampled_from((0, 1, 5, 512, 513, -1, -5, -512, -513, -1024, -1536, 2**33, 2**62, 2**64, -(2**40)))
TYPES = st.sampled_from([bytes([letter]) for letter in b"0127xgLKSVDX\0AZ5"])
FIELDS = ("size", "path", "linkpath", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.major", "GNU.sparse.minor")
MORE_FIELDS = ("GNU.sparse.realsize", "GNU.sparse.name", "hdrcharset", "mtime", "GNU.sparse.numblocks", "uid")
ODD = ("1", "0", "-512", "0,512", "0,-512", "9" * 30, "9" * 5000, "nan", "BINARY", "/etc/x.jpg", "\udcff")
VALUES = st.one_of(NAMES, st.integers(-2000, 2000).map(str), st.text(max_size=6), st.sampled_from(ODD))
PLACES = ("sad/x.jpg", "/etc/x.jpg", "../x.jpg", "sad/../../x.jpg", "a" * 90 + ".png", "x", "é.jpg")


@st.composite
def pax(draw: st.DrawFn) -> bytes:
    """Content of a pax header; record lengths may be wrong."""
    fields = draw(st.lists(st.tuples(st.sampled_from(FIELDS + MORE_FIELDS), VALUES), max_size=5))
    text = b""
    for field, value in fields:
        record = f" {field}={value}\n".encode("utf-8", "surrogatepass")
        length = len(record) + len(str(len(record) + 3)) + draw(st.sampled_from((0, 0, 0, 1, -1, 50)))
        text += b"%d" % length + record
    return text + draw(st.binary(max_size=5))


@st.composite
def members(draw: st.DrawFn) -> bytes:
    """A header of any type and size, and its content."""
    name = draw(st.sampled_from(PLACES))
    kind, size = draw(TYPES), draw(SIZES)
    body = draw(pax() | st.binary(max_size=600))
    if draw(st.booleans()):
        size = len(body)
    sparse = draw(st.lists(SIZES, max_size=8))
    raw = [(386 + 12 * index, number(value)) for index, value in enumerate(sparse)]
    raw.append((482, draw(st.sampled_from((b"\0", b"\1")))))
    block = header(name, type=kind, size=size, raw=raw if kind == b"S" else ())
    return block + body + bytes(-len(body) % 512)


@settings(max_examples=400 * TIMES)
@given(blocks=st.lists(members(), min_size=1, max_size=5), end=st.sampled_from((b"", bytes(1024), complete_tar())))
def test_malicious_tars(blocks: list[bytes], end: bytes) -> None:
    check_tar(b"".join(blocks) + end)


@given(kind=st.sampled_from((b"L", b"K", b"x", b"g")), times=st.sampled_from((2, 200, 3000)), first=st.booleans())
def test_tars_with_many_extended_headers(kind: bytes, times: int, first: bool) -> None:
    check_tar((b"" if first else complete_tar()[:1024]) + header("x", type=kind) * times + complete_tar())


def test_names_that_are_not_utf_8_are_escaped(tmp_path: Path) -> None:
    for label, name in (("sad", "\udce9.png"), ("sad", "b.png"), ("happy", "c.png"), ("\udcff", "d.png")):
        (tmp_path / "raw" / label).mkdir(parents=True, exist_ok=True)
        picture("sad", ord(name[0]) % 256).save(tmp_path / "raw" / label / name)
    build(options(tmp_path / "raw", tmp_path / "out", val_share=0))
    assert left_out(tmp_path / "out") == {"input:\\udcff/d.png:\\udcff": "unknown label"}
    assert "sad/\\udce9.png" in {photo.source for photo in read_raw(tmp_path / "raw").photos}


CLASSES = ["happy", "sad", "neutral"]
LABELS = [2, 0, 1, 1, 0, 2, None]


@pytest.fixture(scope="module")
def table() -> bytes:
    """A parquet file of seven photos with page checksums."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = [{"bytes": f"picture {i}".encode() * 9, "path": None} for i in range(len(LABELS))]
    info = {"info": {"features": {"label": {"names": CLASSES, "_type": "ClassLabel"}}}}
    content = arrow.table({"image": images, "label": LABELS}).replace_schema_metadata({"huggingface": json.dumps(info)})
    buffer = io.BytesIO()
    parquet.write_table(content, buffer, row_group_size=3, write_page_checksum=True)
    return buffer.getvalue()


@settings(max_examples=200 * TIMES)
@given(damage=damages())
def test_damaged_parquet(table: bytes, damage: Damage) -> None:
    with folder() as root:
        list_and_plan(put(root / "t.parquet", damage(table)))


@MANY
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_damaged_parquet_pages_give_no_wrong_label(table: bytes, place: float, bit: int) -> None:
    pages = len(table) - 8 - int.from_bytes(table[-8:-4], "little")
    at = int(place * pages)
    with folder() as root:
        source = put(root / "t.parquet", table[:at] + bytes([table[at] ^ 1 << bit]) + table[at + 1 :])
        dataset = list_and_plan(source)
        if dataset is None:
            return
        assert [photo.label for photo in dataset.photos] == ["" if i is None else CLASSES[i] for i in LABELS]


def saved(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@MANY
@given(label=damages(), landmarks=damages(), shape=st.none() | st.lists(SIZES, max_size=3).map(tuple))
def test_damaged_affectnet_arrays(label: Damage, landmarks: Damage, shape: tuple[int, ...] | None) -> None:
    with folder() as root:
        put(root / "train_set" / "images" / "0.jpg", b"a photo")
        text = label(saved(np.array("6")))
        if shape is not None:
            buffer = io.BytesIO()
            np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": shape})
            text = buffer.getvalue() + np.array([6.0]).tobytes()
        put(root / "train_set" / "annotations" / "0_exp.npy", text)
        put(root / "train_set" / "annotations" / "0_lnd.npy", landmarks(saved(np.arange(136) * 0.5)))
        dataset = list_and_plan(root)
    assert dataset is not None
    photo = dataset.photos[0]
    assert photo.label in {"", *VOCABULARIES["affectnet"].values()} or photo.label.lstrip("-").isdecimal()
    assert all(map(math.isfinite, sum(photo.landmarks, ())))


COLUMNS = ["face", " confidence", *(f" {axis}_{i}" for axis in "xy" for i in range(POINTS))]


@MANY
@given(damage=damages(), confidence=st.sampled_from(("0.9", "nan", "inf", "", "x", "1e400")))
def test_damaged_openface_csv_files(damage: Damage, confidence: str) -> None:
    row = ", ".join(["0", confidence, *(f"{i}.5" for i in range(2 * POINTS))])
    with folder() as root:
        photo = put(root / "photos" / "sad" / "a.jpg", b"a photo")
        put(root / "tables" / "a.csv", damage("\n".join([",".join(COLUMNS), row, row]).encode()))
        dataset = read_raw(photo.parents[1])
        assert read_bytes(dataset.photos[0]) == b"a photo"
        add_landmarks(dataset, root / "tables")


@MANY
@given(damage=damages(), number=st.integers(0, 7), wild=st.none() | st.binary(max_size=12) | WILD_CELLS.map(str.encode))
def test_damaged_ckplus_emotion_files(damage: Damage, number: int, wild: bytes | None) -> None:
    with folder() as root:
        for frame in (1, 2, 3):
            put(root / "cohn-kanade-images" / "S1" / "1" / f"{frame}.png", f"frame {frame}")
        text = damage(b"   %d.0000000e+00\n" % number) if wild is None else wild
        put(root / "Emotion" / "S1" / "1" / "1_emotion.txt", text)
        dataset = list_and_plan(root)
    if dataset is not None:
        value = int(float(text.decode("utf-8-sig").strip()))
        expected = VOCABULARIES["ckplus"].get(str(value), str(value))
        assert [photo.label for photo in dataset.photos] == ["neutral", expected]
