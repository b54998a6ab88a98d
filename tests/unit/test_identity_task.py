"""The identity task; caching and classes of the synthetic faces."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pfcluster.config import ConfigError, DataConfig, SyntheticConfig
from pfcluster.data.build.pipeline import build
from pfcluster.data.dataset import missing_test_split, open_dataset
from pfcluster.data.identity_task import identity_dataset
from pfcluster.data.splits import ShardedSplit, identities_of, may_share_photos, sample_ids
from pfcluster.data.types import DataError
from pfcluster.evaluate.evaluate_run import evaluate_run
from pfcluster.training import run
from tests.photos import make_csv, options
from tests.tiny import config

FACES = SyntheticConfig(train=96, validation=8, test=8, identities=12)
IDENTITY_TASK = DataConfig(size=32, target="identity", synthetic=FACES)


def test_identities_are_classes_and_every_eighth_face_is_held_out():
    emotions, identities = open_dataset(replace(IDENTITY_TASK, target="emotion"), 0), open_dataset(IDENTITY_TASK, 0)
    assert len(identities.classes) == len(set(identities_of(emotions.train))) == 12
    assert identities.test is None
    assert len(identities.train) + len(identities.validation) == 96
    assert 8 <= len(identities.validation) <= 12
    assert set(identities.train.keys(torch.arange(len(identities.train)))).isdisjoint(
        identities.validation.keys(torch.arange(len(identities.validation)))
    )
    assert set(identities.train.labels().tolist()) == set(range(12))
    identity_of = dict(zip(emotions.train.keys(torch.arange(96)), identities_of(emotions.train), strict=True))
    for split in (identities.train, identities.validation):
        indices = torch.arange(len(split))
        labelled = [identities.classes[number] for number in split.labels().tolist()]
        assert labelled == [identity_of[key] for key in split.keys(indices)]
        assert torch.equal(split.batch(indices[:3]).labels, split.labels()[:3])


def test_dataset_without_repeated_identities_is_rejected():
    dataset = open_dataset(replace(IDENTITY_TASK, target="emotion"), 0)
    for identities in ([""] * 96, [str(number) for number in range(96)]):
        with pytest.raises(DataError, match="has fewer than two identities with two faces or more"):
            identity_dataset(dataset, identities)


def test_unknown_persons_are_no_identities(tmp_path):
    """A build names them by their photo, which two of its faces, or its copies, have in common."""
    rows = [(f"{number}.png", "happy", f"person-{number}" if number % 2 else "") for number in range(20)]
    make_csv(tmp_path / "raw", [*rows, *rows])
    build(options(tmp_path / "raw" / "legend.csv", tmp_path / "shards", val_share=0.3, duplicates="keep"))
    data = DataConfig(shards=str(tmp_path / "shards"), size=24)
    train = open_dataset(data, 0).train
    known = identities_of(train)
    persons = {name for name in known if name}
    assert 2 < len(persons) == sum(name.startswith("person-") for name in persons)
    assert known.count("") > 4
    assert len(set(sample_ids(train))) == len(train)
    assert open_dataset(replace(data, target="identity"), 0).classes == tuple(sorted(persons))


def test_identities_tell_whether_two_splits_may_share_photos():
    def split(*identities):
        return ShardedSplit(SimpleNamespace(identities=lambda: list(identities)), 0)

    assert not may_share_photos(split("anna", "anna", "ben"), split("carla"))
    assert not may_share_photos(split("photo-1", "photo-2"), split("photo-3"))
    assert may_share_photos(split("anna", "ben"), split("carla", "ben"))
    assert may_share_photos(split("photo-1", "photo-2"), split("photo-2"))
    assert may_share_photos(split("anna", "ben"), split("photo-1"))  # may be a photo of Anna
    assert may_share_photos(split("anna"), open_dataset(IDENTITY_TASK, 0).train)


def test_identity_datasets_have_no_test_split_to_build():
    with_identities, emotions = (
        open_dataset(IDENTITY_TASK, 0),
        open_dataset(replace(IDENTITY_TASK, target="emotion"), 0),
    )
    assert missing_test_split(with_identities, config("finetune", data=IDENTITY_TASK)) is None
    without = replace(emotions, test=None)
    settings = config("finetune", data=replace(IDENTITY_TASK, target="emotion"))
    assert "has no test split" in missing_test_split(without, settings)


@pytest.mark.slow
def test_an_identity_net_is_evaluated_on_the_validation_split(tmp_path):
    result = run(config("finetune", data=IDENTITY_TASK, epochs=1), tmp_path)
    figures = evaluate_run(tmp_path, "validation")
    assert (figures["n"], figures["accuracy"]) == (result["dataset"]["validation"], result["validation"]["accuracy"])
    assert set(figures["per_class"]) <= set(result["dataset"]["classes"])
    assert figures["missing_classes"] == []
    with pytest.raises(DataError, match="has no test split; use --split validation"):
        evaluate_run(tmp_path)


def test_rendered_faces_are_cached_for_later_runs(tmp_path):
    rendered = open_dataset(replace(IDENTITY_TASK, target="emotion"), 0).train
    cached = replace(IDENTITY_TASK, target="emotion", cache_mode="host", cache=str(tmp_path))
    indices = torch.tensor([3, 90, 17])
    assert torch.equal(open_dataset(cached, 0).train.batch(indices).images, rendered.batch(indices).images)
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "decoded").glob("*.u8")}
    assert len(files) == 1
    assert torch.equal(open_dataset(cached, 0).train.batch(indices).images, rendered.batch(indices).images)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "decoded").glob("*.u8")} == files
    (file,) = (tmp_path / "decoded").glob("*.u8")
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.warns(UserWarning, match="has changed since it was decoded"):
        assert torch.equal(open_dataset(cached, 0).train.batch(indices).images, rendered.batch(indices).images)
    assert torch.equal(open_dataset(cached, 0).train.batch(indices).images, rendered.batch(indices).images)
    other = replace(cached, synthetic=replace(FACES, seed=1))
    assert not torch.equal(open_dataset(other, 0).train.batch(indices).images, rendered.batch(indices).images)
    assert len(list((tmp_path / "decoded").glob("*.u8"))) == 2


def test_classes_can_be_selected_and_invalid_ones_are_rejected():
    config = replace(IDENTITY_TASK, target="emotion", synthetic=replace(FACES, classes=("happiness", "neutral")))
    assert open_dataset(config, 0).classes == ("neutral", "happiness")
    for classes in (("happiness", "boredom"), ("happiness",), ("fear", "fear")):
        with pytest.raises(DataError, match=r"data\.synthetic\.classes must be two or more of neutral"):
            open_dataset(replace(config, synthetic=replace(FACES, classes=classes)), 0)


def test_identity_task_cannot_be_cached_on_the_host():
    with pytest.raises(ConfigError, match=r'data\.target must be "emotion" with data\.cache_mode host'):
        replace(IDENTITY_TASK, cache_mode="host")
