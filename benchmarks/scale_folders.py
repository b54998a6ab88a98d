"""Fabricated folders of any size for `benchmarks.scale`: shards with sparse tars, runs that were never trained."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from pfcluster.config import presets
from pfcluster.config.io import to_json
from pfcluster.data.labels import CANONICAL
from pfcluster.data.manifest import (
    CRC32_BYTES,
    FORMAT,
    MANIFEST,
    Manifest,
    ShardFile,
    SplitInfo,
    crc32_name,
    index_name,
)
from pfcluster.evaluate import predictions
from pfcluster.evaluate.predictions import Predictions
from pfcluster.report.gan_curves import PANELS
from pfcluster.report.page import LOSSES
from pfcluster.runs.folder import CONFIG_FILE, METRICS_FILE, RESULT_FILE

SAMPLES_PER_SHARD = 10_000
SAMPLE_BYTES = 8192
TEST_SAMPLES = 2000
EVALUATE_EVERY = 16
"""Lines of the training split for each line of the validation split."""


def write_shards(folder: Path, samples: int) -> None:
    """A shard folder with this many training samples; its tars are holes."""
    folder.mkdir(parents=True)
    splits = {"train": samples, "validation": 100}
    infos = {split: _split(folder, split, count) for split, count in splits.items()}
    manifest = Manifest(
        FORMAT, "fabricated", CANONICAL, None, 112, infos, sum(splits.values()), {}, "left_out.csv", {},
        {"known_identities": 0}, {},
    )  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest)))


def _split(folder: Path, split: str, samples: int) -> SplitInfo:
    shards = []
    for number, start in enumerate(range(0, samples, SAMPLES_PER_SHARD)):
        count = min(SAMPLES_PER_SHARD, samples - start)
        tar = f"{split}-{number:05d}.tar"
        rows = ",\n".join(
            f'{{"key": "{split}-{n:08d}", "offset": {512 + (n - start) * SAMPLE_BYTES}, "size": {4000 + n * 37 % 2000},'
            f' "label": "{CANONICAL[n * 7 % len(CANONICAL)]}", "identity": "photo-{n * 13 % samples:08d}"}}'
            for n in range(start, start + count)
        )
        data = f"[\n{rows}\n]\n".encode()
        (folder / index_name(tar)).write_bytes(data)
        size = 512 + count * SAMPLE_BYTES
        with open(folder / tar, "wb") as file:
            file.truncate(size)
        checksums = bytes(CRC32_BYTES * count)
        (folder / crc32_name(tar)).write_bytes(checksums)
        sha256, index_sha256, crc32_sha256 = (
            hashlib.sha256(content).hexdigest() for content in (tar.encode(), data, checksums)
        )
        shards.append(ShardFile(tar, count, sha256, size, index_sha256, crc32_sha256))
    per_class = dict.fromkeys(CANONICAL, 0)
    for n in range(samples):
        per_class[CANONICAL[n * 7 % len(CANONICAL)]] += 1
    return SplitInfo(samples, per_class, samples, tuple(shards))


def write_study(folder: Path, runs: int, lines: int, *, seeds: int = 3) -> None:
    """A study of finished PF-MAG runs, `seeds` of each name, each with a grid, test predictions and `lines` metrics."""
    grid = _grid()
    for number in range(runs):
        name, seed = f"pf-vit-{number // seeds:03d}", number % seeds
        _write_run(folder / name / f"seed-{seed}", name, seed, lines, grid)


def _write_run(folder: Path, name: str, seed: int, lines: int, grid: bytes) -> None:
    random = np.random.default_rng([seed, *name.encode()])
    classes = CANONICAL
    labels = np.arange(TEST_SAMPLES) % len(classes)
    logits = random.normal(size=(TEST_SAMPLES, len(classes))).astype(np.float32)
    logits[np.arange(TEST_SAMPLES), labels] += 2 + 0.2 * random.normal()
    folder.mkdir(parents=True)
    predictions.write(folder, Predictions(logits, labels, tuple(classes), "fabricated"))
    predicted = logits.argmax(1)
    confusion = np.zeros((len(classes), len(classes)), int)
    np.add.at(confusion, (labels, predicted), 1)
    accuracy = float((predicted == labels).mean())
    config = presets.recipe("mini")["pf-vit"]
    (folder / CONFIG_FILE).write_text(to_json(config))
    (folder / "pictures").mkdir()
    (folder / "pictures" / "views.jpg").write_bytes(grid)
    scores = {"n": TEST_SAMPLES, "accuracy": accuracy, "mean_class_accuracy": accuracy, "macro_f1": accuracy}
    result = {
        "format": 1, "name": name, "seed": seed, "objective": "pf_mag", "status": "finished", "steps": lines,
        "seconds": 60.0, "images_per_second": 100.0, "selection_split": "validation",
        "command": f"pfcluster study --name {name}",
        "dataset": {"name": "fabricated", "classes": list(classes)}, "pictures": {"views": "pictures/views.jpg"},
        "test": {**scores, "per_class": dict.fromkeys(classes, accuracy), "confusion": confusion.tolist()},
        "validation": {"accuracy": accuracy, "macro_f1": accuracy},
    }  # fmt: skip
    (folder / RESULT_FILE).write_text(json.dumps(result))
    _write_metrics(folder / METRICS_FILE, lines, Random(seed))


def _write_metrics(path: Path, lines: int, random: Random) -> None:
    """As a PF-MAG run with all diagnostics logs them: about forty training metrics a line."""
    names = {
        split: [n for panel in PANELS if panel.split == split for n in panel.lines] for split in ("train", "validation")
    }
    names["train"] = [*LOSSES, *names["train"]]
    names["validation"] = ["accuracy", "macro_f1", *names["validation"]]
    with open(path, "w") as file:
        for number in range(lines):
            split = "train" if number % EVALUATE_EVERY else "validation"
            fall = math.exp(-number / (lines / 4))
            values: dict[str, Any] = {name: fall + 0.1 * random.random() for name in names[split]}
            file.write(
                json.dumps({"split": split, "step": number + 1, "epoch": round(number / 100, 4), **values}) + "\n"
            )


def _grid() -> bytes:
    """A picture of the size of a run's grid: 300 kB."""
    import io

    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (450, 700, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=75)
    return file.getvalue()
