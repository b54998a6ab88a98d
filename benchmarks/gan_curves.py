"""Training curves of PF-MAG runs side by side: draws docs/assets/gan_curves.png from the metrics of two run folders
(docs/guides/pf-mag.md describes the runs).

    python -m benchmarks.gan_curves COLLAPSED RECIPE --output docs/assets/gan_curves.png
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pfcluster.runs.metrics_file import read_metrics

PANELS = {
    "discriminator correct on real / generated, %": {
        "disc_real": "real image",
        "disc_fake_rec": "reconstruction",
        "disc_fake_poker": "poker face",
    },
    "discriminator correct on the emotion, %": {
        "disc_emotion_real": "real image",
        "disc_neutral_poker": "poker face: neutral",
    },
    "mask saturated, %": {"mask_class_saturated": "class token", "mask_patch_saturated": "patches"},
    "MSE inside the expression region": {
        "copy_mse_inside": "the photo itself",
        "poker_mse_inside": "poker face",
        "rec_mse_inside": "reconstruction against the photo",
    },
}
"""Title -> metric -> label."""
PERCENTAGES = ("disc_", "mask_")
WINDOW = 5
"""Points in the moving average of a metric that is logged often."""


def curve(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric; a trailing moving average if it has more than 40 points."""
    points = [(line["step"], line[name]) for line in lines if name in line]
    scale = 100 if name.startswith(PERCENTAGES) else 1
    width = WINDOW if len(points) > 40 else 1
    windows = [points[max(0, end - width) : end] for end in range(1, len(points) + 1)]
    return [step for step, _ in points], [scale * sum(value for _, value in part) / len(part) for part in windows]


def draw(runs: Sequence[Path], names: Sequence[str], output: Path) -> None:
    """Draw a column for each run and a row for each of `PANELS`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(PANELS), len(runs), figsize=(9, 9), sharey="row", squeeze=False)
    for column, (run, name) in enumerate(zip(runs, names, strict=True)):
        lines = read_metrics(run)
        for row, (title, metrics) in enumerate(PANELS.items()):
            axis = axes[row][column]
            for metric, label in metrics.items():
                axis.plot(*curve(lines, metric), label=label, linewidth=1.2)
            axis.set_title(f"{name}: {title}" if row == 0 else title, fontsize=9)
            axis.grid(alpha=0.3)
            if column == 0:
                axis.legend(fontsize=7, loc="lower right" if title.endswith("%") else "best")
        axes[-1][column].set_xlabel("step")
    for row_axes, title in zip(axes, PANELS, strict=True):
        row_axes[0].set_ylim(0, 105 if title.endswith("%") else None)
    figure.tight_layout()
    figure.savefig(output, dpi=110)


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of PF-MAG runs")
    parser.add_argument("--names", nargs="+", default=["collapsed", "recipe"], help="one for each run")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    draw(options.runs, options.names, options.output)


if __name__ == "__main__":
    main()
