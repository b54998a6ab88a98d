"""Learning curves of PF-ViT by several recipes on one axis: draws docs/assets/recipe_curves.png from run folders.

    python -m benchmarks.recipe_curves before=OLD/pf-vit/seed-0 now=runs/demo/mae-vit/seed-0,runs/demo/pf-vit/seed-0

Each argument is a label and a run, or the runs of which each continues the one before, separated by commas. The axis
counts epochs over all of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pfcluster.runs.metrics_file import read_metrics

Line = Mapping[str, Any]
PANELS: Mapping[str, Callable[[Line], float]] = {
    "accuracy, %": lambda line: 100 * line["accuracy"],
    "error in the region / the photo's": lambda line: line["poker_mse_inside"] / line["copy_mse_inside"],
    "error outside / the reconstruction's": lambda line: line["poker_mse_outside"] / line["rec_mse_outside"],
}
"""Title -> value of a validation; KeyError where it was not measured."""


def curve(runs: Sequence[Path], value: Callable[[Line], float]) -> tuple[list[float], list[float]]:
    """Epochs and values of a metric's validations over runs of which each continues the one before."""
    epochs, values, before = [], [], 0.0
    for run in runs:
        lines = read_metrics(run, "validation")
        for line in lines:
            try:
                values.append(value(line))
            except KeyError:
                continue
            epochs.append(before + line["epoch"])
        before += lines[-1]["epoch"] if lines else 0
    return epochs, values


def draw(recipes: Mapping[str, Sequence[Path]], output: Path) -> None:
    """Draw a panel for each of `PANELS`, with a line for each recipe."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(11, 3.2), layout="constrained")
    for axis, (title, value) in zip(axes, PANELS.items(), strict=True):
        for label, runs in recipes.items():
            axis.plot(*curve(runs, value), marker=".", label=label)
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.2)
    axes[1].axhline(1, color="grey", linewidth=0.8, linestyle=":")
    axes[2].axhline(1, color="grey", linewidth=0.8, linestyle=":")
    axes[0].legend()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)


def main() -> None:
    """Read the run folders and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+", metavar="LABEL=RUN[,RUN...]")
    parser.add_argument("--output", type=Path, default=Path("docs/assets/recipe_curves.png"))
    options = parser.parse_args()
    recipes = {}
    for text in options.recipes:
        label, _, runs = text.partition("=")
        folders = [Path(run) for run in runs.split(",")]
        for folder in folders:
            if not read_metrics(folder, "validation"):
                parser.error(f"{text}: {folder} is not the folder of a run that was validated; give LABEL=RUN[,RUN...]")
        recipes[label] = folders
    draw(recipes, options.output)
    print(options.output)


if __name__ == "__main__":
    main()
