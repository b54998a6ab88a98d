"""A dataset's people as its classes; synthetic faces that are rendered once for a machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pfcluster.config import ConfigError, DataConfig, SyntheticConfig
from pfcluster.data.dataset import open_dataset
from pfcluster.data.identity_task import identity_dataset
from pfcluster.data.splits import identities_of
from pfcluster.data.types import DataError

FACES = SyntheticConfig(train=96, validation=8, test=8, identities=12)
PEOPLE = DataConfig(size=32, target="identity", synthetic=FACES)


def test_people_are_the_classes_and_every_eighth_face_validates():
    whole, people = open_dataset(replace(PEOPLE, target="emotion"), 0), open_dataset(PEOPLE, 0)
    assert len(people.classes) == len(set(identities_of(whole.train))) == 12
    assert people.test is None
    assert len(people.train) + len(people.validation) == 96
    assert 8 <= len(people.validation) <= 12
    assert set(people.train.keys(torch.arange(len(people.train)))).isdisjoint(
        people.validation.keys(torch.arange(len(people.validation)))
    )
    assert set(people.train.labels().tolist()) == set(range(12))  # whoever validates was seen
    named = dict(zip(whole.train.keys(torch.arange(96)), identities_of(whole.train), strict=True))
    for split in (people.train, people.validation):
        every = torch.arange(len(split))
        shown = [people.classes[number] for number in split.labels().tolist()]
        assert shown == [named[key] for key in split.keys(every)]
        assert torch.equal(split.batch(every[:3]).labels, split.labels()[:3])


def test_faces_without_names_cannot_be_told_apart():
    dataset = open_dataset(replace(PEOPLE, target="emotion"), 0)
    for names in ([""] * 96, [str(number) for number in range(96)]):
        with pytest.raises(DataError, match="names fewer than two people with two faces or more"):
            identity_dataset(dataset, names)


def test_rendered_faces_are_kept_for_later_runs(tmp_path):
    fresh = open_dataset(replace(PEOPLE, target="emotion"), 0).train
    kept = replace(PEOPLE, target="emotion", cache_mode="host", cache=str(tmp_path))
    some = torch.tensor([3, 90, 17])
    assert torch.equal(open_dataset(kept, 0).train.batch(some).images, fresh.batch(some).images)
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "decoded").glob("*.u8")}
    assert len(files) == 1
    assert torch.equal(open_dataset(kept, 0).train.batch(some).images, fresh.batch(some).images)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "decoded").glob("*.u8")} == files
    other = replace(kept, synthetic=replace(FACES, seed=1))
    assert not torch.equal(open_dataset(other, 0).train.batch(some).images, fresh.batch(some).images)
    assert len(list((tmp_path / "decoded").glob("*.u8"))) == 2


def test_expressions_can_be_chosen_and_unknown_ones_are_named():
    chosen = replace(PEOPLE, target="emotion", synthetic=replace(FACES, classes=("happiness", "neutral")))
    assert open_dataset(chosen, 0).classes == ("neutral", "happiness")
    for wrong in (("happiness", "boredom"), ("happiness",), ("fear", "fear")):
        with pytest.raises(DataError, match=r"data\.synthetic\.classes must be two or more of neutral"):
            open_dataset(replace(chosen, synthetic=replace(FACES, classes=wrong)), 0)


def test_people_are_not_decoded_into_a_shared_file():
    with pytest.raises(ConfigError, match=r'data\.target must be "emotion" with data\.cache_mode host'):
        replace(PEOPLE, cache_mode="host")
