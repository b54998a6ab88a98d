"""What the judge still classifies as an expression in the committed poker faces, by emotion and by part of the face.

    python -m benchmarks.poker_residue    write docs/results/poker_residue.md; half a minute

A face consists of the expression region, where photo and true poker face differ by more than 0.25, and the rest. Two
composites show which part the judge reacts to: the poker face with the true region, and the true face with the poker
face's region.

Legend: b images, h w pixels, k classes, c columns.
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
COLUMNS = ("mse_ratio", "neutral", "true_emotion", "other", "true_region", "true_rest", "truth")
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
    """Class names k; means k c by true emotion, in the order of `COLUMNS`, over a saved run's first test faces; counts
    k.

    mse_ratio: the poker face's squared error inside the region over the input's; neutral, true_emotion, other: shares
    of the judge's predictions for the poker face; true_region, true_rest, truth: shares classified as neutral of the
    two composites and of the true poker face.
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
    means, counts = [], []
    for emotion in range(len(dataset.classes)):
        of_emotion = rows[rows[:, 0] == emotion, 1:]
        ratio = of_emotion[:, :1].sum(0) / of_emotion[:, 1:2].sum(0)
        means.append(torch.cat([ratio, of_emotion[:, 2:].mean(0)]))
        counts.append(len(of_emotion))
    return dataset.classes, torch.stack(means), torch.tensor(counts)


def _batch_rows(
    model: nn.Module, judge: nn.Module, split: SyntheticSplit, indices: Tensor, size: int, neutral: int
) -> Tensor:
    """Label, squared errors of poker face and input inside the region, and `COLUMNS` from neutral on: b (2 + c)."""
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


def table(classes: Sequence[str], means: Tensor, counts: Tensor) -> str:
    """Markdown with a row for each emotion and a last row for all faces with an expression."""
    neutral = neutral_index(tuple(classes))
    assert neutral is not None
    expressive = torch.arange(len(classes)) != neutral
    weights = counts[expressive].double() / counts[expressive].sum()
    rows = [(name, int(counts[index]), means[index]) for index, name in enumerate(classes)]
    rows.append(("all with an expression", int(counts[expressive].sum()), (means[expressive].T * weights).sum(1)))
    lines = []
    for name, count, row in rows:
        ratio = "–" if name == classes[neutral] else f"{row[0].item():.2f}"
        shares = " | ".join(f"{100 * share:.0f} %" for share in row[1:].tolist())
        lines.append(f"| {name} | {count} | {ratio} | {shares} |")
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
