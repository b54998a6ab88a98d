"""Measures of a separation: probes, Fréchet distances, and the nets they read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import linalg
from sklearn.linear_model import LogisticRegression
from torch import nn

from pfcluster.config import ConfigError
from pfcluster.data.dataset import open_dataset
from pfcluster.distributed.process_group import World
from pfcluster.evaluate.evaluators import Inception, load_evaluators
from pfcluster.evaluate.frechet import frechet_distance
from pfcluster.evaluate.linear_probe import halves_by_person, pooled, probe, probe_accuracy
from tests.tiny import config


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_distance_is_that_of_two_normal_distributions():
    one, two = drawn(300, 4), 2 * drawn(400, 4, seed=1) + torch.tensor([1.0, 0.0, 0.0, 0.0])
    means = one.mean(0) - two.mean(0)
    a, b = (np.cov(each.double().numpy(), rowvar=False) for each in (one, two))
    wanted = float(means.double().square().sum()) + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert frechet_distance(two, one) == pytest.approx(wanted, rel=1e-4)
    assert frechet_distance(one, one) == pytest.approx(0.0, abs=1e-4)
    assert frechet_distance(one, one[:1]) is None


def test_a_probe_finds_what_is_there_and_nothing_where_there_is_nothing():
    labels = torch.arange(200) % 4
    told = drawn(200, 8) + 3 * nn.functional.one_hot(labels, 8)
    assert probe_accuracy(told[:100], labels[:100], told[100:], labels[100:]) > 0.9
    assert probe_accuracy(drawn(100, 8), labels[:100], drawn(100, 8, seed=2), labels[100:]) < 0.45


def test_constant_features_do_not_break_a_probe():
    labels = torch.arange(20) % 2
    assert probe_accuracy(torch.ones(20, 3), labels, torch.ones(20, 3), labels) == 0.5


def test_people_with_few_faces_are_left_out_and_half_of_the_others_teach():
    people = ["a"] * 5 + ["b"] * 3 + ["c"] * 4 + [""] * 9
    teach, who, ask, answer = halves_by_person(people, 40)
    assert teach.tolist() == [0, 2, 4, 8, 10]
    assert ask.tolist() == [1, 3, 9, 11]
    assert who.tolist() == [0, 0, 0, 1, 1]
    assert answer.tolist() == [0, 0, 1, 1]
    assert halves_by_person(["a"] * 9, 40) is None
    assert halves_by_person([""] * 9, 40) is None
    assert halves_by_person([*people, *"dddddeeeee"], 2)[1].unique().tolist() == [0, 1]


def test_probes_of_a_perfect_separation_find_each_in_its_own_part():
    emotions, people = torch.arange(160) % 4, torch.arange(160) // 4 % 5
    face = nn.functional.one_hot(people, 6) + 0.1 * drawn(160, 6)
    emotion = nn.functional.one_hot(emotions, 6) + 0.1 * drawn(160, 6, seed=1)
    features = {"f_e": emotion, "f_p": face}
    found = probe(features, emotions, features, emotions, [str(each) for each in people.tolist()], 40)
    assert found["rows"]["f_e"]["emotion"] == found["rows"]["f_p"]["identity"] == 1.0
    assert found["rows"]["f_e"]["identity"] < 0.4
    assert found["rows"]["f_p"]["emotion"] < 0.5
    assert found["emotion_chance"] == 0.25
    assert found["n"] == {"train": 160, "test": 160, "people": 5}
    assert probe(features, emotions, features, emotions, [""] * 160, 40)["rows"]["f_e"]["identity"] is None


def test_features_of_the_asked_alone_are_asked_for_people_alone():
    emotions, people = torch.arange(40) % 4, torch.arange(40) // 4 % 5
    pixels = {"input": nn.functional.one_hot(people, 5).repeat(1, 18) + 0.1 * drawn(40, 90)}
    found = probe({}, emotions, pixels, emotions, [str(each) for each in people.tolist()], 40)
    assert found["rows"] == {"input": {"emotion": None, "identity": 1.0}}


def test_more_features_than_samples_are_answered_as_they_would_be_unturned():
    labels = torch.arange(90) % 3
    features = drawn(90, 200) + 0.3 * nn.functional.one_hot(labels, 3).repeat(1, 67)[:, :200]
    teach, ask = features[:60], features[60:]
    mean, std = teach.mean(0), teach.std(0)
    whole = LogisticRegression(max_iter=500, tol=1e-8).fit(((teach - mean) / std).numpy(), labels[:60].numpy())
    wanted = float(whole.score(((ask - mean) / std).numpy(), labels[60:].numpy()))
    assert 0.4 < wanted < 1
    assert probe_accuracy(teach, labels[:60], ask, labels[60:]) == wanted


def test_pooled_tokens_are_the_class_token_beside_the_patches_mean():
    tokens = drawn(2, 5, 3)
    assert torch.equal(pooled(tokens), torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1))


def test_inception_is_read_from_a_local_file(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:  # its own class cannot be made without weights
        patched.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
        torch.save({}, tmp_path / "nothing.pth")
        torch.save(Inception(str(tmp_path / "nothing.pth")).net.state_dict(), tmp_path / "inception.pth")
    net = Inception(str(tmp_path / "inception.pth")).eval()
    images = drawn(2, 3, 48, 48).clamp(-1, 1)
    assert net(images).shape == (2, 2048)
    with pytest.raises(ConfigError, match=r"evaluate\.fid: no InceptionV3 from .*nothing\.pth"):
        Inception(str(tmp_path / "nothing.pth"))


def test_measures_that_cannot_be_had_are_refused_before_training():
    here = World(0, 1, torch.device("cpu"))
    for field, why in (("fid", "neither a file nor a folder: gone"), ("judge", "gone"), ("identity_net", "gone")):
        values = config("pf_mag")
        values = replace(values, evaluate=replace(values.evaluate, **{field: "gone"}))
        with pytest.raises(ConfigError, match=rf"evaluate\.{field}: .*{why}"):
            load_evaluators(values, open_dataset(values.data, 0), None, here)
