"""Scores against torchmetrics on raw predictions, and figures of poker faces that cannot be flattered."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix, multiclass_f1_score

from pfcluster.config import DataConfig, SyntheticConfig
from pfcluster.data.dataset import open_dataset
from pfcluster.data.transforms import to_float
from pfcluster.data.types import DataError, RawBatch
from pfcluster.distributed.process_group import World
from pfcluster.evaluate.classification import chunks, confusion, predict, scores
from pfcluster.evaluate.evaluators import Evaluators, Judge
from pfcluster.evaluate.image_grid import pick
from pfcluster.evaluate.poker_faces import measure, region_error
from pfcluster.evaluate.shared_classes import SharedClasses
from pfcluster.models.pf_vit import Views

HERE = World(0, 1, torch.device("cpu"))
CLASSES = ("neutral", "happiness", "anger", "fear")


def test_scores_equal_those_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (200,), generator=generator)
    guesses = torch.where(
        torch.rand(200, generator=generator) < 0.6, labels, torch.randint(0, 4, (200,), generator=generator)
    )
    found = scores(multiclass_confusion_matrix(guesses, labels, num_classes=4), CLASSES)
    assert found["accuracy"] == pytest.approx((guesses == labels).float().mean().item())
    assert found["macro_f1"] == pytest.approx(
        multiclass_f1_score(guesses, labels, num_classes=4, average="macro").item()
    )
    by_class = multiclass_accuracy(guesses, labels, num_classes=4, average="none").tolist()
    assert found["mean_class_accuracy"] == pytest.approx(sum(by_class) / 4)
    assert list(found["per_class"].values()) == pytest.approx(by_class)
    assert found["n"] == 200


def test_a_class_that_is_absent_has_no_accuracy_and_no_part_in_the_mean():
    found = scores(torch.tensor([[3, 1], [0, 0]]), ("neutral", "fear"))
    assert found["per_class"] == {"neutral": 0.75}
    assert found["mean_class_accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx(2 * 3 / (4 + 3))


class Labelled:
    """A split of numbers: sample i is a picture of the grey value i."""

    def __init__(self, classes, labels):
        self.classes, self._labels = classes, torch.tensor(labels)

    def __len__(self):
        return len(self._labels)

    def labels(self):
        return self._labels

    def batch(self, indices):
        images = indices.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
        return RawBatch(images, self._labels[indices])

    def keys(self, indices):
        return [str(index) for index in indices.tolist()]


def test_another_dataset_meets_a_classifier_by_names_and_what_either_lacks_is_left_out():
    fer = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
    data = Labelled(fer, [6, 3, 0, 5, 3, 1, 1])
    shared = SharedClasses(data, ("neutral", "happiness", "anger", "contempt"))
    assert shared.classes == ("neutral", "happiness", "anger")
    assert shared.labels().tolist() == [0, 1, 2, 1]
    assert shared.keys(torch.arange(4)) == ["0", "1", "2", "4"]
    assert shared.batch(torch.tensor([3, 0])).labels.tolist() == [1, 0]
    assert shared.columns.tolist() == [0, 1, 2]
    assert (shared.dropped(), shared.unanswered) == ({"disgust": 2, "surprise": 1}, ("contempt",))
    with pytest.raises(DataError, match="share 1"):
        SharedClasses(data, ("neutral", "contempt"))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_see_every_sample_once(ranks):
    seen = torch.cat([part for rank in range(ranks) for part in chunks(10, 3, World(rank, ranks, HERE.device))])
    assert sorted(seen.tolist()) == list(range(10))


@pytest.fixture(scope="module")
def faces():
    return open_dataset(DataConfig(size=32, synthetic=SyntheticConfig(train=8, validation=8, test=24, identities=4)), 0)


def test_confusion_counts_a_perfect_and_a_constant_classifier(faces):
    truth = torch.bincount(faces.test.labels(), minlength=8)
    images = to_float(faces.test.batch(torch.arange(24)).images)

    def perfect(shown):
        which = (shown.flatten(1).unsqueeze(1) - images.flatten(1)).abs().sum(2).argmin(1)
        return nn.functional.one_hot(faces.test.labels()[which], 8).float()

    options = {"size": 32, "batch_size": 5, "classes": 8, "world": HERE}
    logits, labels = predict(perfect, faces.test, **options)
    assert torch.equal(labels, faces.test.labels())
    assert torch.equal(confusion(logits, labels), truth.diag())
    counts = confusion(*predict(lambda shown: torch.eye(8)[[2] * len(shown)], faces.test, **options))
    assert torch.equal(counts[:, 2], truth)


class Copycat(nn.Module):
    """A "PF-ViT" whose poker face is its input, or what it is told to show."""

    def __init__(self, poker=None):
        super().__init__()
        self.poker = poker
        self.separator = nn.Identity()
        self.shown = 0

    def forward(self, images, *, emotion_view=True):
        poker = images if self.poker is None else self.poker[self.shown : self.shown + len(images)]
        self.shown += len(images)
        return Views(torch.zeros(len(images), 8), images, poker, None, images, images)


def figures(faces, model, judge=None):
    judge = judge or Judge(lambda shown: torch.eye(8)[[1] * len(shown)], 32, neutral=0)
    options = {"size": 32, "count": 24, "batch_size": 7, "instruments": Evaluators(judge), "world": HERE}
    return measure(model, faces.test, **options)


def test_a_poker_face_that_copies_its_input_scores_as_the_input_does(faces):
    rows = figures(faces, Copycat())["rows"]
    assert (
        rows["poker face"].pop("neutralised_x_agreement")
        == rows["input"]["neutralised_rate"] * rows["input"]["emotion_agreement"]
    )
    assert rows["poker face"] == pytest.approx(rows["input"])
    assert rows["input"]["mse_inside"] > 0.05
    assert rows["input"]["mse_outside"] < 0.02
    assert rows["input"]["neutral_rate"] == rows["input"]["neutralised_rate"] == 0.0
    assert rows["input"]["identity_cosine"] is None
    assert rows["truth"]["mse_inside"] == rows["truth"]["mse_outside"] == 0.0


def test_a_judge_is_asked_apart_of_faces_with_an_expression(faces):
    labels, calm = faces.test.labels()[:24], Judge(lambda shown: torch.eye(8)[[0] * len(shown)], 32, neutral=0)
    row = figures(faces, Copycat(), calm)["rows"]["poker face"]
    assert row["neutral_rate"] == row["neutralised_rate"] == 1.0
    assert row["emotion_agreement"] == pytest.approx(float((labels == 0).float().mean()))
    assert 0 < row["emotion_agreement"] < 1


def test_the_true_poker_face_scores_best(faces):
    truth = to_float(faces.test.poker_faces(torch.arange(24)))
    rows = figures(faces, Copycat(truth))["rows"]
    assert rows["poker face"]["mse_inside"] == pytest.approx(0.0, abs=1e-9)
    assert rows["poker face"]["ssim"] == pytest.approx(1.0)
    assert rows["poker face"]["psnr"] == 100.0


def test_the_region_is_where_input_and_truth_differ():
    truth, inputs = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    inputs[0, 0, 0, 0] = 0.5  # one pixel, in one channel
    inputs[0, :, 3, 3] = 0.2  # too little to count
    squared, values = region_error(torch.full((1, 3, 4, 4), 0.1), truth, inputs)
    assert values.item() == 3
    assert squared.item() == pytest.approx(3 * 0.01)


def test_pictures_go_round_the_classes():
    labels = torch.tensor([1, 1, 1, 0, 2, 0])
    assert pick(labels, 3, 5).tolist() == [3, 0, 4, 5, 1]
