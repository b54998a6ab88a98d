"""What the judge still classifies as an expression in the committed poker faces, by emotion and by part of the face.

    python -m benchmarks.poker_residue    write docs/results/poker_residue.md; half a minute

A face consists of the expression region, where photo and true poker face differ by more than 0.25, and the rest. Two
composites show which part the judge reacts to: the poker face with the true region, and the true face with the poker
face's region.

Legend: b images, n faces, k classes, c columns.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.poker_check import restore
from pfcluster.data import transforms
from pfcluster.data.dataset import SyntheticSplit, open_dataset
from pfcluster.data.labels import neutral_index
from pfcluster.evaluate.classification import load_images
from pfcluster.evaluate.poker_faces import expression_region, masked_squared_error

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
COLUMNS = ("poker_error", "input_error", "neutral", "true_emotion", "other", "true_region", "true_rest", "truth")
BATCH = 100
HEADER = """# What the judge still sees

    python -m benchmarks.poker_residue

The committed checkpoint's poker faces of the test split (one seed), and the judge's classification of them. *True
region*: the poker face with the true face's expression region (where photo and truth differ by more than 0.25); *true
rest*: the true face with the poker face's region. Neutral photos show the effect of the generator's image quality
alone.

| emotion | faces | error in the region / the photo's | neutral | the photo's emotion | another \
| neutral: true region | neutral: true rest | neutral: truth |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""


@torch.inference_mode()
def residue(file: Path, faces: int | None = None) -> tuple[Sequence[str], Tensor, Tensor]:
    """Class names k; labels n and columns n c of a saved run's first test faces.

    poker_error, input_error: squared error of poker face and input inside the region; neutral, true_emotion, other:
    whether the judge's prediction for the poker face is that; true_region, true_rest, truth: whether it classifies the
    two composites and the true poker face as neutral.
    """
    nets, configs = restore(file)
    config = configs["model"]
    dataset = open_dataset(config.data, config.seed)
    split, neutral = dataset.test, neutral_index(dataset.classes)
    assert isinstance(split, SyntheticSplit)
    assert neutral is not None
    count = len(split) if faces is None else min(faces, len(split))
    batches = [
        _batch_rows(nets["model"], nets["judge"], split, indices, config.data.size, neutral)
        for indices in torch.arange(count).split(BATCH)
    ]
    rows = torch.cat(batches)
    return dataset.classes, rows[:, 0].long(), rows[:, 1:]


def summary(rows: Tensor) -> Tensor:
    """Error of the poker faces over that of the inputs, and the means of the other columns: n c -> c - 1."""
    return torch.cat([rows[:, :1].sum(0) / rows[:, 1:2].sum(0), rows[:, 2:].mean(0)])


def _batch_rows(
    model: nn.Module, judge: nn.Module, split: SyntheticSplit, indices: Tensor, size: int, neutral: int
) -> Tensor:
    """Label and `COLUMNS`: b (1 + c)."""
    images, labels = load_images(split, indices, size, torch.device("cpu"))
    poker = model(images, emotion_view=False).poker.float().clamp(-1, 1)
    truth = transforms.to_float(split.poker_faces(indices))
    region = expression_region(images, truth)
    poker_error, input_error = (masked_squared_error(faces, truth, region)[0] for faces in (poker, images))
    predicted = judge(poker).argmax(1)
    composites = torch.where(region, truth, poker), torch.where(region, poker, truth), truth
    is_neutral, is_true = predicted == neutral, predicted == labels
    columns: list[Any] = [labels, poker_error, input_error, is_neutral, is_true, ~(is_neutral | is_true)]
    columns += [judge(faces).argmax(1) == neutral for faces in composites]
    return torch.stack([column.double() for column in columns], 1)


def table(classes: Sequence[str], labels: Tensor, rows: Tensor) -> str:
    """Markdown with a row for each emotion and a last row for all faces with an expression."""
    neutral = neutral_index(tuple(classes))
    assert neutral is not None
    groups = {name: rows[labels == index] for index, name in enumerate(classes)}
    groups["all with an expression"] = rows[labels != neutral]
    lines = []
    for name, faces in groups.items():
        ratio, *shares = summary(faces).tolist()
        cells = ["–" if name == classes[neutral] else f"{ratio:.2f}", *(f"{100 * share:.0f} %" for share in shares)]
        lines.append(f"| {name} | {len(faces)} | {' | '.join(cells)} |")
    return HEADER + "\n".join(lines) + "\n"


def main() -> None:
    """Evaluate, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    text = table(*residue(options.output / "poker_faces.safetensors"))
    (options.output / "poker_residue.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
