"""Linear probes, Fréchet distance, and the evaluation networks."""

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
from pfcluster.evaluate.linear_probe import pool_tokens, probe_accuracy, probe_features, split_halves_by_identity
from tests.tiny import config


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_frechet_distance_equals_that_of_two_normal_distributions():
    first, second = normal(300, 4), 2 * normal(400, 4, seed=1) + torch.tensor([1.0, 0.0, 0.0, 0.0])
    means = first.mean(0) - second.mean(0)
    a, b = (np.cov(features.double().numpy(), rowvar=False) for features in (first, second))
    expected = float(means.double().square().sum()) + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(first, first) == pytest.approx(0.0, abs=1e-4)
    assert frechet_distance(first, first[:1]) is None


def test_probe_accuracy_is_high_for_separable_and_near_chance_for_random_features():
    labels = torch.arange(200) % 4
    separable = normal(200, 8) + 3 * nn.functional.one_hot(labels, 8)
    assert probe_accuracy(separable[:100], labels[:100], separable[100:], labels[100:]) > 0.9
    assert probe_accuracy(normal(100, 8), labels[:100], normal(100, 8, seed=2), labels[100:]) < 0.45


def test_probe_accuracy_of_constant_features_is_chance():
    labels = torch.arange(20) % 2
    assert probe_accuracy(torch.ones(20, 3), labels, torch.ones(20, 3), labels) == 0.5


def test_identities_with_few_faces_are_left_out_and_the_others_split_in_halves():
    identities = ["a"] * 5 + ["b"] * 3 + ["c"] * 4 + [""] * 9
    halves = split_halves_by_identity(identities, 40)
    assert halves.train.tolist() == [0, 2, 4, 8, 10]
    assert halves.test.tolist() == [1, 3, 9, 11]
    assert halves.train_labels.tolist() == [0, 0, 0, 1, 1]
    assert halves.test_labels.tolist() == [0, 0, 1, 1]
    assert split_halves_by_identity(["a"] * 9, 40) is None
    assert split_halves_by_identity([""] * 9, 40) is None
    assert split_halves_by_identity([*identities, *"dddddeeeee"], 2).train_labels.unique().tolist() == [0, 1]


def test_probes_of_separated_features_read_emotion_and_identity_from_one_part_each():
    emotions, identities = torch.arange(160) % 4, torch.arange(160) // 4 % 5
    face = nn.functional.one_hot(identities, 6) + 0.1 * normal(160, 6)
    emotion = nn.functional.one_hot(emotions, 6) + 0.1 * normal(160, 6, seed=1)
    features = {"f_e": emotion, "f_p": face}
    names = [str(identity) for identity in identities.tolist()]
    probes = probe_features(features, emotions, features, emotions, names, 40)
    assert probes["rows"]["f_e"]["emotion"] == probes["rows"]["f_p"]["identity"] == 1.0
    assert probes["rows"]["f_e"]["identity"] < 0.4
    assert probes["rows"]["f_p"]["emotion"] < 0.5
    assert probes["emotion_chance"] == 0.25
    assert probes["n"] == {"train": 160, "test": 160, "identities": 5}
    assert probe_features(features, emotions, features, emotions, [""] * 160, 40)["rows"]["f_e"]["identity"] is None


@pytest.mark.parametrize("count", [1, 5])
def test_training_samples_of_one_class_give_no_probe(count):
    """evaluate.n_probe_images may be small, and must not end a run after its training."""
    features = {"f": normal(40, 6)}
    train, test = torch.zeros(count, dtype=torch.long), torch.arange(40) % 4
    probes = probe_features({"f": features["f"][:count]}, train, features, test, [""] * 40, 40)
    assert probes["rows"] == {"f": {"emotion": None, "identity": None}}
    assert probes["emotion_chance"] == 0.25


def test_features_without_training_features_have_an_identity_probe_only():
    emotions, identities = torch.arange(40) % 4, torch.arange(40) // 4 % 5
    pixels = {"input": nn.functional.one_hot(identities, 5).repeat(1, 18) + 0.1 * normal(40, 90)}
    names = [str(identity) for identity in identities.tolist()]
    probes = probe_features({}, emotions, pixels, emotions, names, 40)
    assert probes["rows"] == {"input": {"emotion": None, "identity": 1.0}}


def test_projection_onto_the_span_of_the_samples_does_not_change_probe_accuracy():
    labels = torch.arange(90) % 3
    features = normal(90, 200) + 0.3 * nn.functional.one_hot(labels, 3).repeat(1, 67)[:, :200]
    train, test = features[:60], features[60:]
    mean, std = train.mean(0), train.std(0)
    reference = LogisticRegression(max_iter=500, tol=1e-8)
    reference.fit(((train - mean) / std).numpy(), labels[:60].numpy())
    expected = float(reference.score(((test - mean) / std).numpy(), labels[60:].numpy()))
    assert 0.4 < expected < 1
    assert probe_accuracy(train, labels[:60], test, labels[60:]) == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as in the evaluation of a bf16 run
        assert probe_accuracy(train, labels[:60], test, labels[60:]) == expected


def test_pool_tokens_concatenates_class_token_and_patch_mean():
    tokens = normal(2, 5, 3)
    assert torch.equal(pool_tokens(tokens), torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1))


def test_inception_loads_a_local_file(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:  # the class cannot be constructed without weights
        patched.setattr(nn.Module, "load_state_dict", lambda *_, **__: None)
        torch.save({"nothing": torch.zeros(1)}, tmp_path / "nothing.pth")
        torch.save(Inception(str(tmp_path / "nothing.pth")).net.state_dict(), tmp_path / "inception.pth")
    net = Inception(str(tmp_path / "inception.pth")).eval()
    images = normal(2, 3, 48, 48).clamp(-1, 1)
    assert net(images).shape == (2, 2048)
    with pytest.raises(ConfigError, match=r"evaluate\.fid: cannot load InceptionV3 from .*nothing\.pth"):
        Inception(str(tmp_path / "nothing.pth"))


def test_missing_evaluators_raise_before_training():
    world = World(0, 1, torch.device("cpu"))
    for field, why in (("fid", "neither a file nor a folder: gone"), ("judge", "gone"), ("identity_net", "gone")):
        values = config("pf_mag")
        values = replace(values, evaluate=replace(values.evaluate, **{field: "gone"}))
        with pytest.raises(ConfigError, match=rf"evaluate\.{field}: .*{why}"):
            load_evaluators(values, open_dataset(values.data, 0), None, world)


def test_a_probe_ignores_features_that_are_constant_in_training() -> None:
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4
    features = torch.nn.functional.one_hot(labels, 4) + 0.1 * torch.randn(200, 4, generator=draws)
    constant = torch.ones(200, 50)
    deviating = constant - 0.1 * (torch.rand(200, 50, generator=draws) < 0.05)
    train, test = torch.cat([features, constant], 1), torch.cat([features, deviating], 1)
    assert probe_accuracy(train, labels, test, labels) == 1
