"""FER2013's own photos through `pfcluster predict` give what the run's evaluation gave, photo by photo."""

from __future__ import annotations

import csv
import json
import os
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import release_models
from benchmarks.release_models import RELEASES, check, write
from pfcluster.cli.main import main
from pfcluster.config import DataConfig, presets
from pfcluster.evaluate import predictions
from pfcluster.runs.folder import read_result
from pfcluster.training import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("PFCLUSTER_REAL_DATA" not in os.environ, reason="PFCLUSTER_REAL_DATA is not set"),
]


def extract(tar: Path, per_class: int, folder: Path) -> None:
    """The first photos of each class of one of FER2013's parts."""
    taken: Counter[str] = Counter()
    with tarfile.open(tar) as opened:
        for member in opened:
            name = Path(member.name).parent.name
            if member.isfile() and taken[name] < per_class:
                taken[name] += 1
                opened.extract(member, folder, filter="data")


def stored_test_photos(shards: Path) -> list[tuple[str, str]]:
    """File and emotion of each photo of the test split, in its order."""
    photos = []
    for tar in sorted(shards.glob("test-*.tar")):
        with tarfile.open(tar) as opened:
            for member in opened:
                if member.name.endswith(".json"):
                    values = json.load(opened.extractfile(member))  # type: ignore[arg-type]
                    photos.append((values["source"], values["label"]))
    return photos


def predicted_labels(model: Path, photos: Path, output: Path) -> dict[str, str]:
    """File below `photos` -> label in the table of `pfcluster predict`."""
    words = ["predict", str(photos), "--no-detect", "--model", str(model), "--output", str(output), "--device", "cpu"]
    assert main(words) == 0
    with open(output, newline="") as file:
        return {str(Path(row["source"]).relative_to(photos)): row["label"] for row in csv.DictReader(file)}


def test_predict_repeats_the_runs_public_test_to_the_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Path(os.environ["PFCLUSTER_REAL_DATA"]) / "fer2013"
    extract(data / "train.tar", 25, tmp_path)
    extract(data / "public_test.tar", 20, tmp_path)
    shards, photos, trained = tmp_path / "shards", tmp_path / "public_test", tmp_path / "seed-0"
    words = ["--input", str(tmp_path / "train"), "--test-input", str(photos), "--output", str(shards)]
    assert main(["build", *words, "--align", "none", "--size", "48"]) == 0
    judge = presets.recipe("small")["judge"]  # it learns fastest
    cpu = replace(judge.engine, device="cpu")
    run(replace(judge, data=DataConfig(shards=str(shards), size=48), epochs=15, batch_size=16, engine=cpu), trained)
    stored, result, recorded = stored_test_photos(shards), read_result(trained), predictions.read(trained)
    assert result is not None
    labels = predicted_labels(trained, photos, tmp_path / "run.csv")
    evaluated = [recorded.classes[index] for index in recorded.logits.argmax(1)]
    assert [labels[source] for source, _ in stored] == evaluated
    assert len(set(evaluated)) > 1
    right = Counter(emotion for source, emotion in stored if labels[source] == emotion)
    assert sum(right.values()) / len(stored) == result["test"]["accuracy"]
    total = Counter(emotion for _, emotion in stored)
    assert {name: right[name] / total[name] for name in total} == pytest.approx(result["test"]["per_class"])

    (tmp_path / "results").mkdir()
    monkeypatch.setattr(release_models, "RESULTS", tmp_path / "results")
    release = replace(RELEASES["fer2013"], role="mae-vit")
    record = json.loads(json.dumps(write("fer2013", release, trained, None, shards, tmp_path / "weights", "")))
    assert record["correct_float32"] == sum(right.values())
    labels = predicted_labels(tmp_path / "weights" / "fer2013", photos, tmp_path / "model.csv")
    assert sum(labels[source] == emotion for source, emotion in stored) == record["correct"]
    assert check("fer2013", record, tmp_path / "weights" / "fer2013", shards) == []
