"""The curves of two games side by side, a dead and a living one: `python -m benchmarks.game_curves DEAD LIVING --output
docs/game.png` draws them from the metrics of two PF-MAG runs' folders (docs/guides/pf-mag.md says how those were made).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

ROWS = {
    "Δ is right about real / generated, %": {
        "disc_real": "real image",
        "disc_fake_rec": "reconstruction",
        "disc_fake_poker": "poker face",
    },
    "Δ is right about the emotion, %": {
        "disc_emotion_real": "real image",
        "disc_neutral_poker": "poker face: neutral",
    },
    "mask saturated, %": {"mask_class_saturated": "class token", "mask_patch_saturated": "patches"},
    "error where the expression is": {
        "copy_mse_inside": "the photo itself",
        "poker_mse_inside": "poker face",
        "rec_mse_inside": "reconstruction against the photo",
    },
}
SHARES = ("discriminator", "mask")
WINDOW = 5
"""Lines of metrics that a point is the mean of."""


def curve(lines: Sequence[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric, smoothed where it is taken often."""
    found = [(line["step"], line[name]) for line in lines if name in line]
    scale = 100 if name.startswith(SHARES) else 1
    width = WINDOW if len(found) > 40 else 1
    parts = [found[max(0, end - width) : end] for end in range(1, len(found) + 1)]
    return [step for step, _ in found], [scale * sum(value for _, value in part) / len(part) for part in parts]


def draw(runs: Sequence[Path], names: Sequence[str], output: Path) -> None:
    """A column for each run, a row for each question."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(ROWS), len(runs), figsize=(9, 9), sharey="row", squeeze=False)
    for column, (run, title) in enumerate(zip(runs, names, strict=True)):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for row, (question, metrics) in enumerate(ROWS.items()):
            axis = axes[row][column]
            for metric, label in metrics.items():
                axis.plot(*curve(lines, metric), label=label, linewidth=1.2)
            axis.set_title(f"{title}: {question}" if row == 0 else question, fontsize=9)
            axis.grid(alpha=0.3)
            if column == 0:
                axis.legend(fontsize=7, loc="lower right" if question.endswith("%") else "best")
        axes[-1][column].set_xlabel("step")
    for row, question in zip(axes, ROWS, strict=True):
        row[0].set_ylim(0, 105 if question.endswith("%") else None)
    figure.tight_layout()
    figure.savefig(output, dpi=110)


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of PF-MAG runs")
    parser.add_argument("--names", nargs="+", default=["dead", "living"])
    parser.add_argument("--output", type=Path, required=True)
    known = parser.parse_args()
    draw(known.runs, known.names, known.output)


if __name__ == "__main__":
    main()
