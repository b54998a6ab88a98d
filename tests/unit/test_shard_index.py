"""The index of a split in columns: decoded as json would, converted once, and mapped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfcluster.data import index_rows, shard_index
from pfcluster.data.index_rows import Rows, decode_json, decode_rows
from pfcluster.data.shards import ShardSplit
from tests.photos import write_index

CLASSES = ("neutral", "fear", "anger", "überrascht")
TEXTS = st.text(max_size=6) | st.sampled_from(["a,b", '"', "\\", "\n", "},\n{", "p-1"])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "key": TEXTS,
            "offset": st.integers(0, 2**63 - 1) | st.integers(0, 10**6),
            "size": st.integers(0, 99_999),
            "label": st.sampled_from(CLASSES),
            "identity": TEXTS,
        }
    ),
    max_size=6,
)


def as_written(rows: list[dict[str, Any]]) -> bytes:
    """An index in the layout of `write_shard`."""
    return ("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n").encode()


def outcome(decode: Callable[[bytes, tuple[str, ...]], Rows], data: bytes, classes: tuple[str, ...]) -> Any:
    """The columns as lists, or the kind of error."""
    try:
        rows = decode(data, classes)
    except (KeyError, TypeError, ValueError) as error:
        return type(error)
    texts = [(one.text.tobytes(), one.ends.tolist()) for one in (rows.keys, rows.identities)]
    return [rows.offsets.tolist(), rows.sizes.tolist(), rows.labels.tolist(), *texts]


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(rows=ROWS, place=st.integers(0, 200), byte=st.none() | st.sampled_from(list(b'"0\\{},: \n\0\xff1k-')))
def test_an_index_is_decoded_as_json_decodes_it(rows: list[dict[str, Any]], place: int, byte: int | None) -> None:
    data = bytearray(as_written(rows))
    if byte is not None:
        data[place % len(data)] = byte
    for classes in (CLASSES, (), CLASSES[:2]):
        assert outcome(decode_rows, bytes(data), classes) == outcome(decode_json, bytes(data), classes)


def test_an_index_as_written_needs_no_json_and_chunks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"key": f"train-{n:07d}", "offset": 7**n, "size": n, "label": CLASSES[n % 4], "identity": "p" * (n % 3)}
        for n in range(20)
    ]
    expected = outcome(decode_json, as_written(rows), CLASSES)
    monkeypatch.setattr(index_rows, "decode_json", None)
    for size in (1 << 22, 300):
        monkeypatch.setattr(index_rows, "CHUNK_BYTES", size)
        assert outcome(decode_rows, as_written(rows), CLASSES) == expected


def columns(split: ShardSplit) -> list[Any]:
    return [
        split.labels().tolist(),
        split.identities(),
        [split.key(number) for number in range(len(split))],
        [hashlib.sha256(split.jpeg(number)).hexdigest() for number in range(len(split))],
    ]


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small splits are mapped, too."""
    monkeypatch.setattr(shard_index, "MAPPED_SAMPLES", 1)


def test_a_large_index_is_converted_once_and_then_mapped(
    damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = columns(ShardSplit(damaged, "train"))
    monkeypatch.setattr(shard_index, "MAPPED_SAMPLES", 1)
    with ThreadPoolExecutor(4) as pool:
        splits = list(pool.map(lambda _: ShardSplit(damaged, "train", cache=tmp_path / "cache"), range(4)))
    assert all(columns(split) == expected for split in splits)
    for index in damaged.glob("train-*.index.json"):
        index.unlink()
    again = ShardSplit(damaged, "train", cache=tmp_path / "cache")
    assert columns(again) == expected
    (folder,) = (path for path in (tmp_path / "cache" / "index").iterdir() if path.is_dir())
    assert isinstance(again._index.columns["offsets"], np.memmap)
    assert sorted(path.name for path in folder.iterdir()) == sorted((*shard_index.COLUMNS, "columns.json"))


@pytest.mark.usefixtures("mapped")
def test_a_changed_index_and_a_damaged_copy_are_converted_again(damaged: Path, tmp_path: Path) -> None:
    first = ShardSplit(damaged, "train", cache=tmp_path)
    expected = columns(first)
    (folder,) = (path for path in (tmp_path / "index").iterdir() if path.is_dir())
    for damage in (b"", b"\1" * 8 * len(first)):
        (folder / "labels").write_bytes(damage)
        assert columns(ShardSplit(damaged, "train", cache=tmp_path)) == expected
    rows = json.loads((damaged / "train-00000.index.json").read_text())
    rows[0]["identity"] = "somebody else"
    write_index(damaged, "train-00000", json.dumps(rows).encode())
    assert ShardSplit(damaged, "train", cache=tmp_path).identities() == ["somebody else", *expected[1][1:]]


@pytest.mark.usefixtures("mapped")
def test_without_a_cache_that_can_be_written_the_index_is_kept_in_memory(built: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.warns(UserWarning, match=r"cannot be kept in the cache .*set data\.cache"):
        split = ShardSplit(built, "train", cache=tmp_path / "cache")
    assert len(split) == len(split.identities()) == 27
