"""predictions.safetensors: round trip, validation, and predictions gathered over ranks."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from pfcluster.config import DataConfig, EvaluateConfig, SyntheticConfig
from pfcluster.data.dataset import open_dataset
from pfcluster.distributed.process_group import World
from pfcluster.evaluate import predictions
from pfcluster.evaluate.classification import confusion_matrix, predict, scores
from pfcluster.evaluate.predictions import Predictions, PredictionsError, checksum
from pfcluster.runs.folder import PREDICTIONS_FILE
from pfcluster.training import run
from tests.tiny import config

PREDICTIONS = Predictions(
    np.array([[2, 1, 0], [0, 0, 5], [1, 1, 0]], np.float32), np.array([0, 1, 1]), ("neutral", "fear", "anger"), "abc"
)


def test_write_then_read_round_trips(tmp_path):
    predictions.write(tmp_path, PREDICTIONS)
    read = predictions.read(tmp_path)
    assert (read.classes, read.samples) == (PREDICTIONS.classes, "abc")
    assert np.array_equal(read.logits, PREDICTIONS.logits)
    assert np.array_equal(read.labels, PREDICTIONS.labels)
    assert read.correct.tolist() == [True, False, False]  # the third: the first of equal logits counts
    assert [path.name for path in tmp_path.iterdir()] == [PREDICTIONS_FILE]


def test_checksum_depends_on_names_and_order():
    assert checksum(["a", "b"]) == checksum(["a", "b"])
    assert len({checksum(keys) for keys in (["a", "b"], ["b", "a"], ["a"], ["ab"])}) == 4


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"metadata": {"format": "2"}}, "format must be 1, got '2'"),
        ({"metadata": {"classes": "3"}}, "classes must be a list of names"),
        ({"metadata": {"classes": "["}}, "cannot be read"),
        ({"metadata": {"samples": ""}}, "lack samples"),
        ({"logits": PREDICTIONS.logits[:, :2]}, "logits must be float32, n x 3, got float32 3 x 2"),
        ({"logits": PREDICTIONS.logits.astype(np.float64)}, "got float64 3 x 3"),
        ({"labels": PREDICTIONS.labels[:2]}, "labels must be 3 int64, got int64 2"),
        ({"labels": np.array([0, 3, 1])}, r"lie in 0 \.\.\. 2"),
        ({"labels": np.array([0, -1, 1])}, r"lie in 0 \.\.\. 2"),
    ],
)
def test_malformed_files_raise_and_are_named(tmp_path, changes, why):
    metadata = {"format": "1", "classes": json.dumps(PREDICTIONS.classes), "samples": "abc"} | changes.pop(
        "metadata", {}
    )
    tensors = {"logits": np.ascontiguousarray(PREDICTIONS.logits), "labels": PREDICTIONS.labels} | changes
    save_file(
        {name: np.ascontiguousarray(value) for name, value in tensors.items()}, tmp_path / PREDICTIONS_FILE, metadata
    )
    with pytest.raises(PredictionsError, match=why) as raised:
        predictions.read(tmp_path)
    assert str(tmp_path / PREDICTIONS_FILE) in str(raised.value)


def test_missing_and_damaged_files_raise(tmp_path):
    with pytest.raises(PredictionsError, match=f"has no {PREDICTIONS_FILE}"):
        predictions.read(tmp_path)
    (tmp_path / PREDICTIONS_FILE).write_bytes(b"nonsense")
    with pytest.raises(PredictionsError, match="cannot be read"):
        predictions.read(tmp_path)


def test_each_rank_fills_in_its_share_of_the_predictions():
    data = DataConfig(size=32, synthetic=SyntheticConfig(train=8, validation=8, test=13, identities=4))
    test = open_dataset(data, 0).test

    def classify(images):
        return images.flatten(1)[:, :8]

    def rank_predictions(rank, ranks):
        world = World(rank, ranks, torch.device("cpu"))
        object.__setattr__(world, "sum", lambda values: values)  # this rank's share, without the sum over ranks
        return predict(classify, test, size=32, batch_size=3, classes=8, world=world)

    logits, labels = rank_predictions(0, 1)
    assert torch.equal(labels, test.labels())
    parts = [rank_predictions(rank, 3) for rank in range(3)]
    assert torch.equal(sum(part[0] for part in parts), logits)
    assert torch.equal(sum(part[1] for part in parts), labels)


@pytest.mark.parametrize("objective", ["finetune", "pf_mag"])
def test_scores_in_the_result_equal_those_of_the_predictions(tmp_path, objective):
    result = run(config(objective), tmp_path)
    written = predictions.read(tmp_path)
    counts = confusion_matrix(torch.from_numpy(written.logits), torch.from_numpy(written.labels))
    assert result["test"] == scores(counts, written.classes)
    assert written.correct.mean() == pytest.approx(result["test"]["accuracy"])
    assert list(written.classes) == result["dataset"]["classes"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scored = [line for line in lines if line["split"] in ("validation", "test")]
    assert all("mean_class_accuracy" in line for line in scored)
    assert {line["split"] for line in scored} == {"validation", "test"}


def test_no_predictions_are_written_without_a_test_evaluation(tmp_path):
    run(replace(config("finetune"), evaluate=EvaluateConfig(final_split="validation")), tmp_path)
    assert not (tmp_path / PREDICTIONS_FILE).exists()
