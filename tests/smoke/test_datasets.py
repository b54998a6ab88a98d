"""From a dataset's original layout to runs, by command: all ways of reading the data give the same weights."""

from __future__ import annotations

import dataclasses
import functools
import http.server
import json
import os
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pfcluster.config.io import load
from pfcluster.data.labels import VOCABULARIES
from pfcluster.data.synthetic.dataset import SyntheticFaces
from pfcluster.runs.folder import REQUESTED_CONFIG_FILE
from tests.commands import command
from tests.tiny import final_weights, train_here

pytestmark = pytest.mark.slow

TINY = shlex.split(
    "--data.size 32 --model.patch 8 --model.width 32 --model.depth 2 --model.heads 2 --model.decoder-width 16"
    " --model.decoder-depth 2 --model.decoder-heads 2 --batch-size 8 --max-steps 8 --engine.device cpu"
    " --engine.log-every 1 --checkpoint.every-steps 4"
)
COUNT = 120


def ferplus(root: Path) -> Path:
    """Synthetic faces in the format of FER2013 and FERPlus: grey values as text, ten votes each."""
    root.mkdir(parents=True)
    faces = SyntheticFaces(COUNT, size=32, seed=1)
    names = list(VOCABULARIES["ferplus"].values())
    values, votes = ["emotion,pixels,Usage"], ["Usage,Image name," + ",".join(names)]
    for number, (image, label) in enumerate(zip(faces.images(), faces.labels().tolist(), strict=True)):
        usage = ("Training", "Training", "Training", "PublicTest", "PrivateTest")[number % 5]
        grey = image.float().mean(0).round().to(torch.uint8).numpy().reshape(-1)
        values.append(f"0,{' '.join(map(str, grey))},{usage}")
        counts = np.zeros(10, dtype=int)
        counts[names.index(faces.classes[label])] = 8
        counts[8] = 2
        votes.append(f"{usage},fer{number:07d}.png," + ",".join(map(str, counts)))
    (root / "fer2013.csv").write_text("\n".join(values) + "\n")
    (root / "fer2013new.csv").write_text("\n".join(votes) + "\n")
    return root


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    done = command(
        "build",
        *("--input", ferplus(root / "raw"), "--output", root / "shards", "--size", 32, "--align", "none"),
        *("--workers", 1, "--samples-per-shard", 16, "--votes", "probability"),
    )
    assert done.returncode == 0, done.stderr
    return root / "shards"


@pytest.fixture(scope="module")
def streamed(built: Path) -> Path:
    """A run that streams from the folder."""
    output = built.parent / "streamed"
    done = command("finetune", *TINY, "--data.shards", built, "--output", output)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture
def url(built: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(built)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_votes_mode_is_recorded_in_manifest_result_and_report(built: Path, streamed: Path) -> None:
    manifest = json.loads((built / "manifest.json").read_text())
    assert (manifest["votes"], manifest["options"]["votes"]) == ("probability", "probability")
    assert {name: split["samples"] for name, split in manifest["splits"].items()} == {
        "train": 72,
        "validation": 24,
        "test": 24,
    }
    assert json.loads((streamed / "scratch/seed-0/result.json").read_text())["dataset"]["votes"] == "probability"
    done = command("report", streamed)
    assert done.returncode == 0, done.stderr
    assert "ferplus (probability votes)" in (streamed / "report/report.html").read_text()


@pytest.mark.parametrize("reading", [{"cache_mode": "host"}, {"cache_mode": "device"}, {"workers": 0}, {"workers": 5}])
def test_cache_modes_and_workers_train_the_same_weights(streamed: Path, tmp_path: Path, reading: dict) -> None:
    config = load(streamed / "scratch/seed-0" / REQUESTED_CONFIG_FILE)
    data = dataclasses.replace(config.data, cache=str(tmp_path / "cache"), **reading)
    train_here(dataclasses.replace(config, data=data), tmp_path / "run", threads=os.cpu_count() or 1)
    expected, actual = final_weights(streamed / "scratch/seed-0"), final_weights(tmp_path / "run")
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def test_run_from_a_url_resumes_in_another_cache_mode(built: Path, url: str, tmp_path: Path) -> None:
    """Interrupted half-way and resumed from the decoded cache: the weights of the uninterrupted run."""
    common = [
        *TINY,
        "--data.shards",
        url,
        "--data.cache",
        tmp_path / "cache",
        "--data.block",
        16,
        "--data.shuffle-window",
        2,
    ]
    done = command("finetune", *common, "--output", tmp_path / "uninterrupted")
    assert done.returncode == 0, done.stderr
    interrupted = [*common, "--output", tmp_path / "interrupted"]
    done = command("finetune", *interrupted)
    assert done.returncode == 0, done.stderr
    interrupted_run = tmp_path / "interrupted/scratch/seed-0"
    (interrupted_run / "result.json").unlink()
    for folder in sorted((interrupted_run / "checkpoints").glob("*"))[1:]:  # as if it had ended after step 4
        for file in folder.glob("*"):
            file.unlink()
        folder.rmdir()
    done = command("finetune", *interrupted, "--data.cache-mode", "host", "--data.workers", 3)
    assert done.returncode == 0, done.stderr
    expected, actual = final_weights(tmp_path / "uninterrupted/scratch/seed-0"), final_weights(interrupted_run)
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


def test_evaluation_on_other_shards_matches_classes_by_name(built: Path, streamed: Path, tmp_path: Path) -> None:
    done = command(
        "build",
        *("--input", built.parent / "raw", "--output", tmp_path / "other", "--size", 32, "--align", "none"),
        *("--workers", 1, "--votes", "majority", "--exclude-classes", "neutral", "fear", "--name", "other"),
    )
    assert done.returncode == 0, done.stderr
    done = command("evaluate", streamed / "scratch/seed-0", "--shards", tmp_path / "other")
    assert done.returncode == 0, done.stderr
    output = " ".join(done.stdout.split())
    assert "other (majority votes)" in output
    assert "the data has no neutral, fear" in output


def test_shards_without_labels_can_be_used_for_pre_training_only(built: Path, tmp_path: Path) -> None:
    done = command(
        "build",
        *("--input", built.parent / "raw/fer2013.csv", "--output", tmp_path / "faces", "--size", 32),
        *("--align", "none", "--workers", 1, "--labels", "ignored"),
    )
    assert done.returncode == 0, done.stderr
    options = [*TINY, "--data.shards", tmp_path / "faces", "--output", tmp_path / "runs"]
    done = command("pretrain", *options)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/mae/seed-0/pictures/mae.png").exists()
    rejected = command("finetune", *options)
    assert rejected.returncode == 2
    assert "was built with --labels ignored" in rejected.stderr
    rejected = command("evaluate", tmp_path / "runs/mae/seed-0")
    assert rejected.returncode == 2
