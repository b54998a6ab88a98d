"""Shard folders: contents written by a build, and damage that the reader rejects."""

from __future__ import annotations

import errno
import gc
import io
import json
import os
import pickle
import resource
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pfcluster.data.build.pipeline import build
from pfcluster.data.jpeg import encode_jpeg
from pfcluster.data.manifest import MANIFEST, ShardError, load_manifest
from pfcluster.data.shards import BadSampleError, ShardSplit
from pfcluster.system.os_errors import ADVICE, describe
from tests.photos import (
    COLOURS,
    SIZE,
    options,
    picture,
    write_index,
)


def test_split_has_the_images_and_labels_of_the_photos(built: Path) -> None:
    split = ShardSplit(built, "train", verify=True)
    assert split.classes == ("neutral", "happiness", "sadness")
    assert (split.size, split.name, len(split)) == (SIZE, "faces", 27)
    images, labels = split.images(range(len(split))), split.labels()
    assert images.shape == (27, 3, SIZE, SIZE)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.long
    for raw_name, canonical in (("happy", "happiness"), ("sad", "sadness"), ("neutral", "neutral")):
        of_class = images[labels == split.classes.index(canonical)].float()
        assert len(of_class) == 9
        expected = torch.tensor(COLOURS[raw_name]).float()
        assert (of_class[:, :, SIZE // 2, SIZE // 2] - expected).abs().max() < 6
    assert (torch.from_numpy(split.image(3)).permute(2, 0, 1) == images[3]).all()
    assert split.images(torch.tensor([5, 2])).equal(images[[5, 2]])


def test_manifest_counts_add_up_and_contain_no_absolute_path(built: Path, raw: Path) -> None:
    manifest = load_manifest(built)
    assert manifest.photos == 36 == sum(split.samples for split in manifest.splits.values())
    assert manifest.splits["validation"].per_class == {"neutral": 3, "happiness": 3, "sadness": 3}
    assert [shard.samples for shard in manifest.splits["train"].shards] == [8, 8, 8, 3]
    assert str(raw.parent) not in (built / MANIFEST).read_text()
    assert not (built / ".build").exists()


def test_webdataset_reads_the_tars(built: Path) -> None:
    import webdataset

    urls = [str(path) for path in sorted(built.glob("train-*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    split = ShardSplit(built, "train")
    assert [sample["__key__"] for sample in samples] == [split.key(index) for index in range(len(split))]
    assert samples[4]["jpg"] == split.jpeg(4)
    record = json.loads(samples[4]["json"])
    assert record["label"] == split.classes[split.labels()[4]]
    assert record["identity"] == split.identities()[4]
    assert record["box"] == [0, 0, 32, 32]
    assert record["landmarks"] is None
    assert not record["source"].startswith("/")


def test_tar_members_have_no_times_and_fixed_owners(built: Path) -> None:
    with tarfile.open(built / "train-00000.tar") as archive:
        members = archive.getmembers()
    assert {(m.mtime, m.uname, m.gname, m.mode, m.uid) for m in members} == {(0, "pfcluster", "pfcluster", 0o444, 0)}


@pytest.mark.slow
def test_greyscale_jpegs_of_the_right_size_are_stored_unchanged_and_decode_to_three_channels(tmp_path: Path) -> None:
    for label in ("sad", "happy"):
        (tmp_path / "raw" / label).mkdir(parents=True)
    originals = set()
    for number, label in enumerate(["sad", "sad", "happy", "happy"]):
        ramp = (np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 200 + number).astype(np.uint8)
        path = tmp_path / "raw" / label / f"{number}.jpg"
        Image.fromarray(ramp).save(path, quality=60)
        originals.add(path.read_bytes())
    build(options(tmp_path / "raw", tmp_path / "out", val_share=0))
    split = ShardSplit(tmp_path / "out", "train")
    assert {split.jpeg(index) for index in range(4)} == originals
    image = split.image(0)
    assert (image[..., 0] == image[..., 1]).all()
    assert (image[..., 0] == image[..., 2]).all()
    assert image.std() > 0


def test_split_can_be_pickled(built: Path) -> None:
    split = pickle.loads(pickle.dumps(ShardSplit(built, "validation")))
    assert len(split) == 9
    assert split.image(0).shape == (SIZE, SIZE, 3)


def test_truncated_tar_is_rejected(damaged: Path) -> None:
    tar = damaged / "train-00001.tar"
    tar.write_bytes(tar.read_bytes()[:-700])
    with pytest.raises(ShardError, match=r"train-00001.tar is cut off: .*build it again"):
        ShardSplit(damaged, "train")
    ShardSplit(damaged, "validation")


def test_missing_tar_is_named_without_advice_to_delete_anything(damaged: Path) -> None:
    (damaged / "train-00001.tar").unlink()
    with pytest.raises(ShardError, match=r"train-00001\.tar is missing: copy it there again") as raised:
        ShardSplit(damaged, "train")
    assert "delete" not in str(raised.value)


def test_mapped_tars_hold_no_file_open(built: Path) -> None:
    def open_files() -> list[str]:
        return os.listdir("/proc/self/fd")

    before = open_files()
    split = ShardSplit(built, "train")
    images = split.images(range(len(split)))
    assert open_files() == before
    tar = str(built / "train-00000.tar")
    assert tar in Path("/proc/self/maps").read_text()
    view = split._view(0)
    first = bytes(view)
    del split
    gc.collect()
    assert bytes(view) == first, "a view outlives the split"
    del view
    gc.collect()
    assert tar not in Path("/proc/self/maps").read_text()
    assert len(images)


def test_too_many_open_files_are_said_to_be_that(built: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    split = ShardSplit(built, "train")
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files") as raised:
            split.image(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert describe(raised.value).endswith("(EMFILE); " + ADVICE[errno.EMFILE])
    assert split.image(0).shape == (24, 24, 3), "it is not remembered"


def test_changed_bytes_are_found_with_verify(damaged: Path) -> None:
    tar = damaged / "train-00001.tar"
    data = bytearray(tar.read_bytes())
    data[-1] = 1
    tar.write_bytes(data)
    ShardSplit(damaged, "train")
    with pytest.raises(ShardError, match=r"train-00001.tar has changed"):
        ShardSplit(damaged, "train", verify=True)


def test_bad_sample_error_names_a_damaged_jpeg(damaged: Path) -> None:
    split = ShardSplit(damaged, "train")
    row = json.loads((damaged / "train-00000.index.json").read_text())[2]
    with open(damaged / "train-00000.tar", "r+b") as tar:
        tar.seek(row["offset"])
        tar.write(bytes(row["size"]))
    with pytest.raises(BadSampleError, match=rf"{row['key']} in .*train-00000.tar has other bytes"):
        split.images([0, 1, 2])
    assert split.image(1).shape == (SIZE, SIZE, 3)


def test_bad_sample_error_names_a_truncated_jpeg(damaged: Path) -> None:
    rows = json.loads((damaged / "train-00000.index.json").read_text())
    rows[0]["size"] -= 200
    write_index(damaged, "train-00000", json.dumps(rows).encode())
    with pytest.raises(BadSampleError, match=rows[0]["key"]):
        ShardSplit(damaged, "train").image(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 7}, "format 7"),
        ({"splits": 3}, "invalid field"),
        ({"extra": 1}, "invalid field"),
    ],
)
def test_invalid_manifest_is_rejected(damaged: Path, change: dict[str, object], message: str) -> None:
    values = json.loads((damaged / MANIFEST).read_text())
    (damaged / MANIFEST).write_text(json.dumps({**values, **change}))
    with pytest.raises(ShardError, match=message):
        load_manifest(damaged)


def test_shards_outside_their_folder_and_invalid_indexes_are_rejected(damaged: Path) -> None:
    text = (damaged / MANIFEST).read_text()
    (damaged / MANIFEST).write_text(text.replace("train-00000.tar", "../train-00000.tar"))
    with pytest.raises(ShardError, match="outside"):
        load_manifest(damaged)
    (damaged / MANIFEST).write_text(text)
    rows = json.loads((damaged / "train-00000.index.json").read_text())
    for index, message in (
        (json.dumps(rows[1:]), "does not list"),
        (json.dumps([{**rows[0], "offset": 10**9}, *rows[1:]]), "outside its tar"),
        (json.dumps([{**rows[0], "size": True}, *rows[1:]]), "invalid row"),
        (json.dumps([{**rows[0], "label": "boredom"}, *rows[1:]]), "invalid row"),
        ("[", "cannot be read"),
    ):
        write_index(damaged, "train-00000", index.encode())
        with pytest.raises(ShardError, match=message):
            ShardSplit(damaged, "train")


def test_swapped_labels_in_an_index_are_found_by_checksum(damaged: Path) -> None:
    index = damaged / "train-00000.index.json"
    text = index.read_text()
    index.write_text(text.replace("happiness", "?").replace("sadness", "happiness").replace("?", "sadness"))
    with pytest.raises(ShardError, match=r"train-00000\.index\.json has changed since it was built"):
        ShardSplit(damaged, "train")
    ShardSplit(damaged, "validation")


def test_missing_manifest_and_unknown_split_are_rejected(built: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="made by `pfcluster build`"):
        load_manifest(tmp_path)
    with pytest.raises(ShardError, match="only train, validation"):
        ShardSplit(built, "test")


def test_colour_jpegs_have_no_chroma_subsampling() -> None:
    image = np.array(picture("happy", 3, 16))
    with Image.open(io.BytesIO(encode_jpeg(image, 95))) as written:
        assert written.mode == "RGB"
        assert {layer[1:3] for layer in written.layer} == {(1, 1)}
