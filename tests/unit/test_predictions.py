"""A run's answers to its test split: written whole, read back with a check, gathered from all ranks."""

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
from pfcluster.evaluate.classification import confusion, predict, scores
from pfcluster.evaluate.predictions import FILE, Predictions, PredictionsError, checksum
from pfcluster.training.trainer import run
from tests.tiny import config

FOUND = Predictions(
    np.array([[2, 1, 0], [0, 0, 5], [1, 1, 0]], np.float32), np.array([0, 1, 1]), ("neutral", "fear", "anger"), "abc"
)


def test_what_is_written_is_read(tmp_path):
    predictions.write(tmp_path, FOUND)
    read = predictions.read(tmp_path)
    assert (read.classes, read.samples) == (FOUND.classes, "abc")
    assert np.array_equal(read.logits, FOUND.logits)
    assert np.array_equal(read.labels, FOUND.labels)
    assert read.correct.tolist() == [True, False, False]  # the third: of equal logits the first counts
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_samples_of_other_names_or_another_order_have_another_checksum():
    assert checksum(["a", "b"]) == checksum(["a", "b"])
    assert len({checksum(keys) for keys in (["a", "b"], ["b", "a"], ["a"], ["ab"])}) == 4


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"metadata": {"format": "2"}}, "format must be 1, got '2'"),
        ({"metadata": {"classes": "3"}}, "classes must be a list of names"),
        ({"metadata": {"classes": "["}}, "cannot be read"),
        ({"metadata": {"samples": ""}}, "lack samples"),
        ({"logits": FOUND.logits[:, :2]}, "logits must be float32, n x 3, got float32 3 x 2"),
        ({"logits": FOUND.logits.astype(np.float64)}, "got float64 3 x 3"),
        ({"labels": FOUND.labels[:2]}, "labels must be 3 int64, got int64 2"),
        ({"labels": np.array([0, 3, 1])}, r"lie in 0 \.\.\. 2"),
        ({"labels": np.array([0, -1, 1])}, r"lie in 0 \.\.\. 2"),
    ],
)
def test_files_of_another_form_are_refused_by_name(tmp_path, changes, why):
    metadata = {"format": "1", "classes": json.dumps(FOUND.classes), "samples": "abc"} | changes.pop("metadata", {})
    tensors = {"logits": np.ascontiguousarray(FOUND.logits), "labels": FOUND.labels} | changes
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, tmp_path / FILE, metadata)
    with pytest.raises(PredictionsError, match=why) as raised:
        predictions.read(tmp_path)
    assert str(tmp_path / FILE) in str(raised.value)


def test_missing_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(PredictionsError, match=f"has no {FILE}"):
        predictions.read(tmp_path)
    (tmp_path / FILE).write_bytes(b"nonsense")
    with pytest.raises(PredictionsError, match="cannot be read"):
        predictions.read(tmp_path)


def test_every_rank_answers_its_own_samples_in_their_places():
    data = DataConfig(size=32, synthetic=SyntheticConfig(train=8, validation=8, test=13, identities=4))
    test = open_dataset(data, 0).test

    def classify(images):
        return images.flatten(1)[:, :8]

    def answers(rank, ranks):
        here = World(rank, ranks, torch.device("cpu"))
        object.__setattr__(here, "sum", lambda values: values)  # each rank's own part, before they are added
        return predict(classify, test, size=32, batch_size=3, classes=8, world=here)

    logits, labels = answers(0, 1)
    assert torch.equal(labels, test.labels())
    parts = [answers(rank, 3) for rank in range(3)]
    assert torch.equal(sum(part[0] for part in parts), logits)
    assert torch.equal(sum(part[1] for part in parts), labels)


@pytest.mark.parametrize("objective", ["finetune", "pf_mag"])
def test_a_runs_scores_are_those_of_its_predictions(tmp_path, objective):
    result = run(config(objective), tmp_path)
    found = predictions.read(tmp_path)
    counted = confusion(torch.from_numpy(found.logits), torch.from_numpy(found.labels))
    assert result["test"] == scores(counted, found.classes)
    assert found.correct.mean() == pytest.approx(result["test"]["accuracy"])
    assert list(found.classes) == result["dataset"]["classes"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scored = [line for line in lines if line["split"] in ("validation", "test")]
    assert all("mean_class_accuracy" in line for line in scored)
    assert {line["split"] for line in scored} == {"validation", "test"}


def test_a_run_that_leaves_the_test_split_alone_writes_none(tmp_path):
    run(replace(config("finetune"), evaluate=EvaluateConfig(final_split="validation")), tmp_path)
    assert not (tmp_path / FILE).exists()
