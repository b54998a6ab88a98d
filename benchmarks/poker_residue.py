"""What does the judge still see in the committed poker faces? `python -m benchmarks.poker_residue` writes
docs/results/poker_residue.md, in half a minute: its answers by emotion, and where in the face they come from.

A face has the expression's region, where photo and true poker face differ by more than 0.25, and the rest. Faces pasted
together tell which of the two the judge minds: the poker face with the true region, the true face with the poker
face's region.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.poker_check import restore
from pfcluster.data import transforms
from pfcluster.data.dataset import open_dataset
from pfcluster.data.labels import neutral_index
from pfcluster.data.splits import SyntheticSplit
from pfcluster.evaluate.classification import load_images
from pfcluster.evaluate.poker_faces import expression_region, region_error

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results"
COLUMNS = ("region", "neutral", "own", "other", "true_region", "true_rest", "truth")
BATCH = 100


@torch.inference_mode()
def residue(file: Path, faces: int | None = None) -> tuple[Sequence[str], Tensor, Tensor]:
    """Emotions K; means K C over a saved run's test faces by true emotion, in the order of COLUMNS; counts K.

    region: the poker face's error there over the input's; neutral, own, other: what the judge says of the poker face;
    true_region, true_rest, truth: share called neutral of both pasted faces and of the true poker face.
    """
    nets, configs = restore(file)
    model, judge, config = nets["model"], nets["judge"], configs["model"]
    dataset = open_dataset(config.data, config.seed)
    split, neutral = dataset.test, neutral_index(dataset.classes)
    assert isinstance(split, SyntheticSplit)
    rows: list[Tensor] = []
    count = len(split) if faces is None else min(faces, len(split))
    for start in range(0, count, BATCH):
        indices = torch.arange(start, min(start + BATCH, count))
        images, labels = load_images(split, indices, config.data.size, torch.device("cpu"))
        poker = model(images, emotion_view=False).poker.float().clamp(-1, 1)
        truth = transforms.to_float(split.poker_faces(indices))
        region = expression_region(images, truth)
        (left, _), (whole, _) = (region_error(shown, truth, images) for shown in (poker, images))
        answers = judge(poker).argmax(1)
        pasted = torch.where(region, truth, poker), torch.where(region, poker, truth), truth
        calm, own = answers == neutral, answers == labels
        shares = [calm, own, ~(calm | own), *(judge(shown).argmax(1) == neutral for shown in pasted)]
        rows.append(
            torch.stack([labels.double(), left.double(), whole.double(), *(share.double() for share in shares)], 1)
        )
    found = torch.cat(rows)
    table, counts = [], []
    for emotion in range(len(dataset.classes)):
        own_rows = found[found[:, 0] == emotion, 1:]
        table.append(torch.cat([own_rows[:, :1].sum(0) / own_rows[:, 1:2].sum(0), own_rows[:, 2:].mean(0)]))
        counts.append(len(own_rows))
    return dataset.classes, torch.stack(table), torch.tensor(counts)


def table(classes: Sequence[str], shares: Tensor, counts: Tensor) -> str:
    """As Markdown, an emotion a row and all faces with an expression in the last."""
    title = (
        "| emotion | faces | error in the region / the photo's | neutral | the photo's own | another | neutral: true "
    )
    lines = [
        "# What the judge still sees",
        "",
        "    python -m benchmarks.poker_residue",
        "",
        "The committed checkpoint's poker faces of the test split (one seed), and what the judge calls them. *True "
        "region*: the poker face with the true face pasted in where the expression is (photo and truth differ by more "
        "than 0.25); *true rest*: the other way round. Neutral photos come back as the net paints any face.",
        "",
        f"{title}region | neutral: true rest | neutral: truth |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    neutral = neutral_index(tuple(classes))
    expressive = torch.arange(len(classes)) != neutral
    weights = counts[expressive].double() / counts[expressive].sum()
    rows = [(name, int(counts[index]), shares[index]) for index, name in enumerate(classes)]
    rows.append(("all with an expression", int(counts[expressive].sum()), (shares[expressive].T * weights).sum(1)))
    for name, count, row in rows:
        cells = dict(zip(COLUMNS, row.tolist(), strict=True))
        ratio = "–" if name == classes[neutral or 0] else f"{cells['region']:.2f}"
        answers = " | ".join(f"{100 * cells[column]:.0f} %" for column in COLUMNS[1:])
        lines.append(f"| {name} | {count} | {ratio} | {answers} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS)
    known = parser.parse_args()
    text = table(*residue(known.output / "poker_faces.safetensors"))
    (known.output / "poker_residue.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
