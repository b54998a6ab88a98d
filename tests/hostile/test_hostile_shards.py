"""Damaged or malicious shard folders: refused with an error message, or read with the right labels."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfcluster.cli.inspect import left_out_table, splits_table
from pfcluster.config import DataConfig
from pfcluster.data.build.errors import BuildError
from pfcluster.data.build.options import BuildOptions
from pfcluster.data.build.pipeline import build
from pfcluster.data.dataset import open_dataset
from pfcluster.data.manifest import MANIFEST, ShardError, load_manifest
from pfcluster.data.shards import BadSampleError, ShardSplit
from pfcluster.data.storage import StoreError, open_store
from pfcluster.data.types import DataError
from tests.hostile.conftest import TIMES
from tests.hostile.damage import NAMES, Damage, assert_explains, changed_json, damages
from tests.photos import SIZE, contents, make_folder, options, write_index

SHARD = "train-00000"
TAR, INDEX = f"{SHARD}.tar", f"{SHARD}.index.json"
MANY = settings(max_examples=100 * TIMES)


@contextmanager
def copied(built: Path) -> Iterator[Path]:
    """A copy of the folder; checks that no files are created in or next to it."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "shards")
        shutil.copytree(built, folder)
        before = contents(folder)
        yield folder
        assert [path.name for path in Path(root).iterdir()] == ["shards"]
        assert contents(folder).keys() == before.keys()


def read_all(folder: Path, split: str = "train", size: int | None = SIZE) -> dict[str, int] | None:
    """Label of every readable sample by key; None if the split is refused."""
    try:
        opened = ShardSplit(folder, split)
    except ShardError as error:
        assert_explains(error)
        return None
    readable = {}
    labels = opened.labels().tolist()
    for number in range(len(opened)):
        try:
            image = opened.image(number)
        except BadSampleError as error:
            assert_explains(error, opened.key(number))
            continue
        except ShardError as error:  # the shard's checksums
            assert_explains(error)
            continue
        assert image.shape == (size or opened.size, size or opened.size, 3)
        assert 0 <= labels[number] < len(opened.classes)
        readable[opened.key(number)] = labels[number]
    return readable


def read_dataset(folder: Path) -> None:
    """Open the folder as a training run does, and make the tables of `pfcluster inspect`."""
    try:
        dataset = open_dataset(DataConfig(shards=str(folder), size=SIZE), 0)
        dataset.train.batch(torch.arange(min(3, len(dataset.train))))
    except (DataError, ShardError) as error:
        assert_explains(error)
    try:
        manifest = load_manifest(folder)
    except ShardError:
        return
    splits_table(manifest)
    left_out_table(manifest)


@MANY
@given(damage=damages())
def test_readable_samples_of_damaged_tars_keep_their_labels(built: Path, damage: Damage) -> None:
    original = read_all(built)
    assert original
    with copied(built) as folder:
        before = (folder / TAR).read_bytes()
        after = damage(before)
        (folder / TAR).write_bytes(after)
        readable = read_all(folder)
        assert readable is None or readable.items() <= original.items()
        read_dataset(folder)
        if after != before:
            with pytest.raises(ShardError):
                ShardSplit(folder, "train", verify=True)
        assert ShardSplit(folder, "validation").labels().tolist()


@MANY
@given(damage=damages())
def test_modified_indexes_are_refused(built: Path, damage: Damage) -> None:
    with copied(built) as folder:
        before = (folder / INDEX).read_bytes()
        after = damage(before)
        (folder / INDEX).write_bytes(after)
        if after != before:
            assert read_all(folder) is None
            with pytest.raises(ShardError):
                ShardSplit(folder, "train", verify=True)


@MANY
@given(damage=damages())
def test_damaged_indexes_with_valid_checksum(built: Path, damage: Damage) -> None:
    with copied(built) as folder:
        write_index(folder, SHARD, damage((folder / INDEX).read_bytes()))
        read_all(folder)
        read_dataset(folder)


@MANY
@given(data=st.data())
def test_random_index_rows_with_valid_checksum(built: Path, data: st.DataObject) -> None:
    with copied(built) as folder:
        rows = data.draw(changed_json(json.loads((folder / INDEX).read_bytes())))
        write_index(folder, SHARD, json.dumps(rows).encode())
        read_all(folder)
        read_dataset(folder)


@MANY
@given(offset=st.integers(-5, 20_000), size=st.integers(-5, 20_000), row=st.integers(0, 4))
def test_offsets_into_headers_and_other_samples(built: Path, offset: int, size: int, row: int) -> None:
    with copied(built) as folder:
        rows = json.loads((folder / INDEX).read_bytes())
        rows[row] |= {"offset": offset, "size": size}
        write_index(folder, SHARD, json.dumps(rows).encode())
        read_all(folder)


@MANY
@given(damage=damages())
def test_damaged_manifests(built: Path, damage: Damage) -> None:
    with copied(built) as folder:
        (folder / MANIFEST).write_bytes(damage((folder / MANIFEST).read_bytes()))
        read_all(folder, size=None)
        read_dataset(folder)


@settings(max_examples=200 * TIMES)
@given(data=st.data())
def test_random_manifest_fields(built: Path, data: st.DataObject) -> None:
    with copied(built) as folder:
        values = data.draw(changed_json(json.loads((folder / MANIFEST).read_bytes())))
        (folder / MANIFEST).write_text(json.dumps(values))
        read_all(folder, size=None)
        read_dataset(folder)


@given(data=st.data())
def test_rebuilding_with_a_random_manifest(built: Path, data: st.DataObject) -> None:
    again = options(built.parent / "raw", built, val_share=0.25, samples_per_shard=6)
    with copied(built) as folder:
        values = data.draw(changed_json(json.loads((folder / MANIFEST).read_bytes())))
        (folder / MANIFEST).write_text(json.dumps(values))
        try:
            build(dataclasses.replace(again, output=folder))
        except (BuildError, ShardError) as error:
            assert_explains(error, str(folder))


@given(field=st.sampled_from(("file", "sha256", "index_sha256")), name=NAMES | st.text(max_size=12))
def test_shard_names_do_not_leave_the_folder(built: Path, field: str, name: str) -> None:
    with copied(built) as folder:
        values = json.loads((folder / MANIFEST).read_bytes())
        values["splits"]["train"]["shards"][0][field] = name
        (folder / MANIFEST).write_text(json.dumps(values))
        read_all(folder)
        read_dataset(folder)


def nested(depth: int, *, within: str) -> bytes:
    lists = b"[" * depth + b"]" * depth
    return {
        "alone": lists,
        "cut": b"[" * depth,
        "format": b'{"format": ' + lists + b"}",
        "fields": b'{"format": 2, "classes": ' + lists + b"}",
        "objects": b'{"splits": ' * depth,
    }[within]


@given(
    depth=st.integers(1, 3000) | st.sampled_from((10**5, 10**6)),
    within=st.sampled_from(("alone", "cut", "format", "fields", "objects")),
)
def test_deeply_nested_json_is_refused(built: Path, depth: int, within: str) -> None:
    with copied(built) as folder:
        write_index(folder, SHARD, nested(depth, within=within))
        assert read_all(folder) is None
        (folder / MANIFEST).write_bytes(nested(depth, within=within))
        assert read_all(folder) is None
        read_dataset(folder)


@given(place=st.text(max_size=20) | NAMES.map(lambda name: f"pipe:{name}") | NAMES)
def test_invalid_store_names_are_refused(place: str) -> None:
    if place.lower().startswith(("http://", "https://")):
        return
    try:
        open_store(place)
    except StoreError:
        return
    with pytest.raises(ShardError):
        load_manifest(place)


def half(root: Path) -> BuildOptions:
    """Options of the first of two slices of a build of root/raw."""
    return options(root / "raw", root / "half", val_share=0, samples_per_shard=6, slice="0/2")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of which only the first slice is finished."""
    root = tmp_path_factory.mktemp("begun")
    make_folder(root / "raw", per_class=4)
    build(half(root))
    return root


@settings(max_examples=10 * TIMES)
@given(damage=damages(), data=st.data(), file=st.sampled_from(("plan", f"{SHARD}.done")))
def test_builds_resume_from_damaged_files_or_refuse(
    begun: Path, damage: Damage, data: st.DataObject, file: str
) -> None:
    with copied(begun) as root:
        before = contents(root / "half")
        name = f".build/{file}.json"
        path = root / "half" / name
        if data.draw(st.booleans()):
            path.write_bytes(damage(path.read_bytes()))
        else:
            path.write_text(json.dumps(data.draw(changed_json(json.loads(path.read_bytes())))))
        try:
            build(half(root))
        except BuildError as error:
            assert_explains(error, str(path))
        else:
            may_change = dict.fromkeys((name, ".build/plan.json"), b"")  # the plan has the new copies' times
            assert contents(root / "half") | may_change == before | may_change
