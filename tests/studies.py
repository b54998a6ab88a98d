"""Write small studies without training, and read their reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from pfcluster.evaluate import predictions
from pfcluster.report.write import ReportFiles

CLASSES = ["neutral", "happiness"]


def write_run(study: Path, name: str, seed: int, /, **changes: Any) -> Path:
    """A finished fine-tuning run with an accuracy of 0.75.

    `changes` replace fields of result.json, `config` those of config.json. `correct`: correctness of each test sample.
    """
    folder = study / "runs" / f"{name}-seed{seed}-{changes.pop('suffix', 0)}"
    folder.mkdir(parents=True)
    config = {"name": name, "seed": seed, "batch_size": 64, "model": {"depth": 4}} | changes.pop("config", {})
    (folder / "config.json").write_text(json.dumps(config))
    correct = changes.pop("correct", None)
    accuracy = changes.pop("accuracy", 0.75 if correct is None else float(np.mean(correct)))
    result = {
        "format": 1, "name": name, "objective": "finetune", "seed": seed, "status": "finished", "steps": 100,
        "seconds": 61.0, "images_per_second": 900.0, "parameters": {"train": 1234567, "test": 1000000},
        "dataset": {"name": "synthetic", "classes": CLASSES, "train": 80, "validation": 10, "test": 8},
        "selection_split": "validation", "best": {"step": 90, "value": 0.8}, "validation": {"accuracy": 0.8},
        "test": {"n": 8, "accuracy": accuracy, "macro_f1": accuracy - 0.05,
                 "per_class": {"neutral": 0.5, "happiness": 1.0}, "confusion": [[2, 2], [0, 4]]},
        "poker": None, "reconstruction": None, "pictures": {}, "command": f"pfcluster finetune --seeds {seed}",
        "versions": {"torch": "2.15"}, "git_commit": "abc",
    }  # fmt: skip
    if correct is not None:
        result["test"] |= {"n": len(correct), "mean_class_accuracy": accuracy}
        write_predictions(folder, correct, changes.pop("samples", "a"), changes.pop("classes", CLASSES))
    (folder / "result.json").write_text(json.dumps(result | changes))
    return folder


def write_predictions(
    folder: Path, correct: Sequence[bool], samples: str = "a", classes: Sequence[str] = CLASSES
) -> None:
    """Predictions of two classes with the given correctness, for labels 0, 1, 0, 1, ..."""
    labels = np.arange(len(correct)) % 2
    predicted = np.where(correct, labels, 1 - labels)
    logits = np.eye(2, dtype=np.float32)[predicted]
    predictions.write(folder, predictions.Predictions(logits, labels, tuple(classes), samples))


def write_group(study: Path, name: str, accuracies: list[float], **changes: Any) -> None:
    for seed, accuracy in enumerate(accuracies):
        write_run(study, name, seed, accuracy=accuracy, **changes)


def poker(face: float, *, source: float = 0.15, reconstruction: float = 0.10, psnr: float = 22.0) -> Mapping[str, Any]:
    """Poker-face metrics with these values of mse_inside."""

    def row(mse: float | None, psnr: float | None) -> dict[str, float | None]:
        return {"neutral_rate": 0.5, "identity_cosine": 0.9, "psnr": psnr, "ssim": None, "mse_inside": mse}

    rows = {"input": row(source, 24.0), "reconstruction": row(reconstruction, 25.0)}
    return {"n": 8, "rows": rows | {"poker face": row(face, psnr), "truth": row(0.0, None)}}


def text(files: ReportFiles) -> str:
    """The report's Markdown without escapes and non-breaking spaces."""
    return files.markdown.read_text().replace("\\", "").replace("\u00a0", " ")


class Page(HTMLParser):
    """Parsed HTML: tags with attributes, text, and unclosed elements."""

    void = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]
