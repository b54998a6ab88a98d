"""Shard folders that were damaged, by chance or on purpose: refused in plain words, or read with the right labels."""

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
from tests.hostile.damage import NAMES, Damage, changed_json, damages, says_why
from tests.photos import SIZE, contents, make_folder, options, write_index

SHARD = "train-00000"
TAR, INDEX = f"{SHARD}.tar", f"{SHARD}.index.json"
MANY = settings(max_examples=300 * TIMES)


@contextmanager
def copied(built: Path) -> Iterator[Path]:
    """A copy of the folder, alone in its own; whatever is done to it, nothing appears beside it."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root, "shards")
        shutil.copytree(built, folder)
        before = contents(folder)
        yield folder
        assert [path.name for path in Path(root).iterdir()] == ["shards"]
        assert contents(folder).keys() == before.keys()


def read_all(folder: Path, split: str = "train", size: int | None = SIZE) -> dict[str, int] | None:
    """Label of every sample that can be read, by its key; None where the split is refused."""
    try:
        opened = ShardSplit(folder, split)
    except ShardError as error:
        says_why(error)
        return None
    readable = {}
    labels = opened.labels().tolist()
    for number in range(len(opened)):
        try:
            image = opened.image(number)
        except BadSampleError as error:
            says_why(error, opened.key(number))
            continue
        assert image.shape == (size or opened.size, size or opened.size, 3)
        assert 0 <= labels[number] < len(opened.classes)
        readable[opened.key(number)] = labels[number]
    return readable


def read_dataset(folder: Path) -> None:
    """Open the folder as a run does, and show it as the inspection does."""
    try:
        dataset = open_dataset(DataConfig(shards=str(folder), size=SIZE), 0)
        dataset.train.batch(torch.arange(min(3, len(dataset.train))))
    except DataError:
        pass
    try:
        manifest = load_manifest(folder)
    except ShardError:
        return
    splits_table(manifest)
    left_out_table(manifest)


@MANY
@given(damage=damages())
def test_damaged_tars_keep_the_labels_of_what_can_be_read(built: Path, damage: Damage) -> None:
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
def test_changed_indexes_are_refused(built: Path, damage: Damage) -> None:
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
def test_indexes_whose_bytes_are_damaged_and_sealed_again(built: Path, damage: Damage) -> None:
    with copied(built) as folder:
        write_index(folder, SHARD, damage((folder / INDEX).read_bytes()))
        read_all(folder)
        read_dataset(folder)


@MANY
@given(data=st.data())
def test_indexes_whose_rows_are_made_up_and_sealed_again(built: Path, data: st.DataObject) -> None:
    with copied(built) as folder:
        rows = data.draw(changed_json(json.loads((folder / INDEX).read_bytes())))
        write_index(folder, SHARD, json.dumps(rows).encode())
        read_all(folder)
        read_dataset(folder)


@MANY
@given(offset=st.integers(-5, 20_000), size=st.integers(-5, 20_000), row=st.integers(0, 4))
def test_spans_over_headers_and_over_other_samples(built: Path, offset: int, size: int, row: int) -> None:
    with copied(built) as folder:
        rows = json.loads((folder / INDEX).read_bytes())
        rows[row] |= {"offset": offset, "size": size}
        write_index(folder, SHARD, json.dumps(rows).encode())
        read_all(folder)


@MANY
@given(damage=damages())
def test_manifests_whose_bytes_are_damaged(built: Path, damage: Damage) -> None:
    with copied(built) as folder:
        (folder / MANIFEST).write_bytes(damage((folder / MANIFEST).read_bytes()))
        read_all(folder, size=None)
        read_dataset(folder)


@settings(max_examples=800 * TIMES)
@given(data=st.data())
def test_manifests_whose_fields_are_made_up(built: Path, data: st.DataObject) -> None:
    with copied(built) as folder:
        values = data.draw(changed_json(json.loads((folder / MANIFEST).read_bytes())))
        (folder / MANIFEST).write_text(json.dumps(values))
        read_all(folder, size=None)
        read_dataset(folder)


@given(data=st.data())
def test_a_finished_build_that_is_started_again(built: Path, data: st.DataObject) -> None:
    again = options(built.parent / "raw", built, val_share=0.25, samples_per_shard=6)
    with copied(built) as folder:
        values = data.draw(changed_json(json.loads((folder / MANIFEST).read_bytes())))
        (folder / MANIFEST).write_text(json.dumps(values))
        try:
            build(dataclasses.replace(again, output=folder))
        except (BuildError, ShardError) as error:
            says_why(error, str(folder))


@given(field=st.sampled_from(("file", "sha256", "index_sha256")), name=NAMES | st.text(max_size=12))
def test_a_shard_of_any_name_is_looked_for_in_the_folder_only(built: Path, field: str, name: str) -> None:
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
def test_depth_bombs_are_refused(built: Path, depth: int, within: str) -> None:
    with copied(built) as folder:
        write_index(folder, SHARD, nested(depth, within=within))
        assert read_all(folder) is None
        (folder / MANIFEST).write_bytes(nested(depth, within=within))
        assert read_all(folder) is None
        read_dataset(folder)


@given(place=st.text(max_size=20) | NAMES.map(lambda name: f"pipe:{name}") | NAMES)
def test_places_that_are_neither_a_folder_nor_a_url(place: str) -> None:
    if place.lower().startswith(("http://", "https://")):
        return
    try:
        open_store(place)
    except StoreError:
        return
    with pytest.raises(ShardError):
        load_manifest(place)


def half(root: Path) -> BuildOptions:
    """The first of two slices of a build of root/raw."""
    return options(root / "raw", root / "half", val_share=0, samples_per_shard=6, slice="0/2")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build that was left after its first slice."""
    root = tmp_path_factory.mktemp("begun")
    make_folder(root / "raw", per_class=4)
    build(half(root))
    return root


@settings(max_examples=10 * TIMES)
@given(damage=damages(), data=st.data(), file=st.sampled_from(("plan", f"{SHARD}.done")))
def test_builds_go_on_from_damaged_files_of_theirs_or_say_that_they_cannot(
    begun: Path, damage: Damage, data: st.DataObject, file: str
) -> None:
    with copied(begun) as root:
        whole = contents(root / "half")
        name = f".build/{file}.json"
        path = root / "half" / name
        if data.draw(st.booleans()):
            path.write_bytes(damage(path.read_bytes()))
        else:
            path.write_text(json.dumps(data.draw(changed_json(json.loads(path.read_bytes())))))
        try:
            build(half(root))
        except BuildError as error:
            says_why(error, str(path))
        else:
            assert contents(root / "half") | {name: b""} == whole | {name: b""}
