"""Damaged samples: noticed by their checksum, replaced, named in the run's folder and result, and limited."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pfcluster.cli import evaluate
from pfcluster.config import DataConfig, EvaluateConfig
from pfcluster.data.build.pipeline import build
from pfcluster.data.dataset import cache_train_split, open_dataset
from pfcluster.data.manifest import load_manifest
from pfcluster.data.shards import BadSampleError, ShardError, ShardSplit
from pfcluster.data.splits import sharded
from pfcluster.data.types import DataError, Dataset
from pfcluster.distributed.process_group import World
from pfcluster.evaluate.evaluate_run import evaluate_run
from pfcluster.evaluate.token_probes import token_features
from pfcluster.inference.evaluation_images import EvaluationImages
from pfcluster.models.factory import build as build_modules
from pfcluster.runs.folder import DAMAGED_FILE, WARNINGS_FILE
from pfcluster.training import run
from tests.photos import make_csv, make_folder, options
from tests.tiny import config


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("damaged")
    build(options(make_folder(root / "raw", per_class=16), root / "shards", val_share=0.25, samples_per_shard=16))
    return root / "shards"


@pytest.fixture
def shards(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "shards")
    for path in (tmp_path / "shards").iterdir():
        path.chmod(0o644)
    return tmp_path / "shards"


def damage(folder: Path, rows: list[int], split: str = "train") -> list[str]:
    """Change one pixel value of samples of a split's first shard: they still decode. Returns their keys."""
    index = json.loads((folder / f"{split}-00000.index.json").read_text())
    tar = folder / f"{split}-00000.tar"
    data = bytearray(tar.read_bytes())
    for row in rows:
        data[index[row]["offset"] + index[row]["size"] - 10] ^= 1
    tar.write_bytes(data)
    return [index[row]["key"] for row in rows]


def finetune(folder: Path, **data: object):
    settings = {"shards": str(folder), "size": 24, "max_bad_share": 0.2, **data}
    return config("finetune", data=DataConfig(**settings), epochs=2, evaluate=EvaluateConfig())


def test_a_changed_sample_is_noticed_though_it_decodes(shards: Path) -> None:
    before = ShardSplit(shards, "train").image(3)
    assert before.shape == (24, 24, 3)
    damage(shards, [3])
    with pytest.raises(BadSampleError, match="has other bytes than when it was built"):
        ShardSplit(shards, "train").image(3)
    assert ShardSplit(shards, "train").image(4).shape == (24, 24, 3)


@pytest.mark.parametrize("reading", [{}, {"cache_mode": "host"}, {"decode_on": "device"}])
def test_damaged_samples_are_named_in_folder_and_result(shards: Path, tmp_path: Path, reading: dict) -> None:
    keys = damage(shards, [1, 5])
    settings = finetune(shards, cache=str(tmp_path / "cache"), **reading)
    for attempt in ("first", "second"):  # the second reuses the decoded file
        result = run(settings, tmp_path / attempt)
        assert result["damaged_samples"] == {"train": {"count": 2, "of": 36, "names": sorted(keys)}}
        named = json.loads((tmp_path / attempt / DAMAGED_FILE).read_text())
        assert set(named["train"]) == set(keys)
        assert keys[0] in (tmp_path / attempt / WARNINGS_FILE).read_text()


def decoded_once(folder: Path, cache: Path) -> Dataset:
    settings = DataConfig(shards=str(folder), size=24, max_bad_share=0.2, cache_mode="host", cache=str(cache))
    return cache_train_split(open_dataset(settings, 0), settings, torch.device("cpu"))


def test_repaired_samples_are_read_from_the_shards_where_a_decoded_file_lacks_them(
    built: Path, shards: Path, tmp_path: Path
) -> None:
    keys = damage(shards, [1, 5])
    split = decoded_once(shards, tmp_path).train
    everything = torch.arange(len(split))
    expected = open_dataset(DataConfig(shards=str(built), size=24), 0).train.batch(everything)
    replaced = split.batch(everything)
    assert (replaced.images != expected.images).flatten(1).any(dim=1).nonzero().flatten().tolist() == [1, 5]
    (file,) = (tmp_path / "decoded").glob("*.u8")
    written = file.stat().st_mtime_ns
    for folder in (built, shards):  # an intact copy of the shards, and the repaired ones
        if folder == shards:
            shutil.copy(built / "train-00000.tar", shards)
        again = decoded_once(folder, tmp_path).train
        batch, source = again.batch(everything), sharded(again)
        assert torch.equal(batch.images, expected.images)
        assert torch.equal(batch.labels, expected.labels)
        assert source is not None
        assert source.damaged == {}
    assert file.stat().st_mtime_ns == written
    damage(shards, [5])
    split = decoded_once(shards, tmp_path).train
    source = sharded(split)
    assert source is not None
    assert torch.equal(split.batch(torch.tensor([5, 1, 5])).images[1], expected.images[1])
    assert list(source.damaged) == [keys[1]]


@pytest.mark.parametrize("suffix", [".u8", ".crc32"])
def test_a_decoded_file_that_has_changed_is_noticed_and_written_again(built: Path, tmp_path: Path, suffix: str) -> None:
    expected = open_dataset(DataConfig(shards=str(built), size=24), 0).train.batch(torch.arange(36)).images
    decoded_once(built, tmp_path)
    (file,) = (tmp_path / "decoded").glob("*" + suffix)
    data = bytearray(file.read_bytes())
    row = len(data) // 36
    data[5 * row] ^= 1
    data[7 * row : 8 * row] = bytes(row)
    file.write_bytes(data)
    split = decoded_once(built, tmp_path).train
    with pytest.warns(UserWarning, match=r"\.u8 has changed since it was decoded; its damaged samples"):
        assert torch.equal(split.batch(torch.tensor([4, 5, 6, 7])).images, expected[4:8])
    assert torch.equal(split.batch(torch.arange(36)).images, expected)
    assert not file.with_suffix(".u8").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(split.batch(torch.tensor([7])).images, expected[7:8])  # once
        assert torch.equal(decoded_once(built, tmp_path).train.batch(torch.arange(36)).images, expected)
    assert file.read_bytes() != data


def test_a_damaged_face_is_replaced_by_another_with_its_own_identity(tmp_path: Path) -> None:
    rows = [(f"{number}.png", "happy", f"person-{number % 6}") for number in range(36)]
    (tmp_path / "raw/images").mkdir(parents=True)
    for number, (name, _, _) in enumerate(rows):
        Image.new("RGB", (32, 32), (7 * number, 255 - 7 * number, 128)).save(tmp_path / "raw/images" / name)
    make_csv(tmp_path / "raw", rows)
    folder = tmp_path / "shards"
    build(options(tmp_path / "raw" / "legend.csv", folder, val_share=0.3, samples_per_shard=36))
    data = DataConfig(shards=str(folder), size=24, target="identity", max_bad_share=0.5)
    (folder / "train-00000.tar").chmod(0o644)
    whole = open_dataset(data, 0).train
    everything = torch.arange(len(whole))
    images, labels = whole.batch(everything).images, whole.labels()
    damaged = damage(folder, list(range(0, 24, 3)))
    split = open_dataset(data, 0).train
    lost = torch.tensor([key in damaged for key in split.keys(everything)])
    batch = split.batch(everything)
    assert 0 < lost.sum() < len(split)
    assert torch.equal(batch.images[~lost], images[~lost])
    for index in lost.nonzero().flatten().tolist():
        source = next(other for other in range(len(split)) if torch.equal(batch.images[index], images[other]))
        assert not lost[source]
        assert batch.labels[index] == labels[source]


@pytest.mark.slow
def test_an_evaluation_names_the_damaged_samples_of_its_split(
    built: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(finetune(shards), tmp_path / "run")
    damage(shards, [0, 2])  # of another split
    keys = damage(shards, [1, 4], "validation")
    file = tmp_path / "figures.json"
    assert evaluate.main([str(tmp_path / "run"), "--split", "validation", "--output", str(file)]) == 0
    record = {"count": 2, "of": 12, "names": sorted(keys)}
    assert json.loads(file.read_text())["damaged_samples"] == {"validation": record}
    sentence = f"2 damaged samples of the validation split were replaced by the next ones: {', '.join(sorted(keys))}"
    assert f"warning: {sentence}" in capsys.readouterr().out
    assert evaluate_run(tmp_path / "run", "validation", str(built))["damaged_samples"] == {}


def test_int8_is_compared_by_the_labels_of_the_images_that_are_read(shards: Path) -> None:
    """A damaged sample is replaced by the next one, whose label is another one here."""
    whole = ShardSplit(shards, "train")
    changes = (whole.labels()[:-1] != whole.labels()[1:]).nonzero().flatten()[:3]
    damage(shards, changes.tolist())
    split = open_dataset(finetune(shards).data, 0).train
    class_of = {
        whole.image(number).tobytes(): int(label)
        for number, label in enumerate(whole.labels())
        if number not in changes
    }

    def perfect(crops: np.ndarray) -> np.ndarray:
        return np.eye(3, dtype=np.float32)[[class_of[crop.tobytes()] for crop in crops]]

    figures, _ = EvaluationImages(np.zeros((0, 24, 24, 3), np.uint8), "", split, "test", None).compare(perfect, perfect)
    assert figures is not None
    assert (figures.n, figures.accuracy_float32, figures.accuracy_int8) == (len(split), 1.0, 1.0)


def test_an_intact_run_names_none(shards: Path, tmp_path: Path) -> None:
    assert run(finetune(shards), tmp_path / "run")["damaged_samples"] == {}
    assert not (tmp_path / "run" / DAMAGED_FILE).exists()


def test_exchanged_tars_of_equal_size_are_caught(shards: Path, tmp_path: Path) -> None:
    first, second = shards / "train-00000.tar", shards / "train-00001.tar"
    sizes = {shard.file: shard.bytes for shard in load_manifest(shards).splits["train"].shards}
    assert sizes[first.name] == sizes[second.name]
    first.rename(shards / "other")
    second.rename(first)
    (shards / "other").rename(second)
    with pytest.raises(DataError, match=r"samples of the train split cannot be read .*has other bytes"):
        run(finetune(shards), tmp_path / "run")


def test_damaged_checksums_are_named(shards: Path) -> None:
    (shards / "train-00000.crc32").write_bytes(b"1234")
    with pytest.raises(ShardError, match=r"train-00000\.crc32 has changed since it was built"):
        ShardSplit(shards, "train").image(0)
    with pytest.raises(ShardError, match=r"train-00000\.crc32 has changed"):
        ShardSplit(shards, "train", verify=True)
    (shards / "train-00000.crc32").unlink()
    with pytest.raises(ShardError, match=r"train-00000\.crc32 is missing"):
        ShardSplit(shards, "train").image(0)


def test_a_manifest_without_checksums_of_samples_is_refused(shards: Path) -> None:
    values = json.loads((shards / "manifest.json").read_text())
    for shard in (shard for split in values["splits"].values() for shard in split["shards"]):
        del shard["crc32_sha256"]
    (shards / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(ShardError, match=r"missing or invalid field \(.*'crc32_sha256'.*; build it again"):
        ShardSplit(shards, "train")


def test_probes_take_the_labels_of_the_images_that_replace_damaged_ones(shards: Path) -> None:
    whole = ShardSplit(shards, "train").labels()
    damage(shards, [int(row) for row in (whole[:-1] != whole[1:]).nonzero().flatten()[:3]])
    settings = finetune(shards)
    dataset = open_dataset(settings.data, 0)
    encoder = build_modules(settings, len(dataset.classes))["model"]
    world = World(0, 1, torch.device("cpu"))
    everything = torch.arange(len(dataset.train))
    features, labels = token_features(settings, dataset.train, everything, encoder, world)
    assert labels.tolist() == dataset.train.batch(everything).labels.tolist() != whole.tolist()
    assert len(features["f"]) == len(labels)
