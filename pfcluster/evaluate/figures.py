"""PNG figures of several runs: attention maps, 2-D embeddings of features, failures.

Legend: n samples, b images, h w pixels.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfcluster.data.transforms import to_uint8
from pfcluster.evaluate.attention import attention_maps, overlay
from pfcluster.evaluate.failures import Failure
from pfcluster.evaluate.run_comparison import ClassifierOutputs, ComparedRun
from pfcluster.system.atomic_files import write_atomically

CORRECT_COLOUR, WRONG_COLOUR = "#1c7a4b", "#b3261e"
CLASS_COLOURS = ("#3b82d6", "#e0762f", "#2f9e6e", "#b05cc6", "#c9a227", "#d64f5c", "#2ab0c5", "#5b5148")
CLASS_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Classes differ in marker shape too, for colour-blind readers."""
SIDE = 1.5
"""Side of a face, in inches."""


def attention_picture(path: Path, runs: Sequence[ComparedRun], indices: Tensor) -> None:
    """Draw a row for each face: the input, then for each run the Grad-CAM++ map of its predicted class."""
    inputs, labels = runs[0].images(indices)
    classes = runs[0].classes
    figure, cells = _grid(len(indices), 1 + len(runs), below=0.27, above=0.2 + 0.16 * _lines(runs))
    for row, label in enumerate(labels.tolist()):
        _face(cells[row][0], _pixels(inputs[row]), f"truth: {classes[label]}", "black")
    for column, run in enumerate(runs, 1):
        images, _ = run.images(indices)
        maps, logits = attention_maps(run.model, images)
        pictures = overlay(images, maps)
        probabilities, predicted = (values.tolist() for values in logits.softmax(1).max(1))
        for row, (probability, label) in enumerate(zip(probabilities, predicted, strict=True)):
            colour = CORRECT_COLOUR if label == labels[row] else WRONG_COLOUR
            _face(cells[row][column], pictures[row].numpy(), f"{classes[label]} {percent(probability)}", colour)
    for cell, title in zip(cells[0], ["input", *(run.label for run in runs)], strict=True):
        cell.set_title(_wrapped(title), fontsize=9)
    _save(figure, path)


def failures_picture(path: Path, run: ComparedRun, failures: Sequence[Failure], columns: int = 4) -> None:
    """Draw a grid of misclassified faces, each with its label and the most probable classes."""
    images, _ = run.images(torch.tensor([failure.index for failure in failures]))
    columns = min(columns, len(failures))
    figure, cells = _grid(math.ceil(len(failures) / columns), columns, below=0.58, above=0.06, side=1.75)
    axes = [cell for row in cells for cell in row]
    for cell, failure, image in zip(axes, failures, images, strict=False):
        top = "\n".join(f"{run.classes[label]} {percent(share)}" for label, share in failure.top_classes)
        _face(cell, _pixels(image), f"truth: {run.classes[failure.truth]}\n{top}", "black")
    for cell in axes[len(failures) :]:
        cell.set_visible(False)
    _save(figure, path)


def embedding_picture(
    path: Path,
    titles: Sequence[str],
    points: Sequence[NDArray[np.float32]],
    labels: Sequence[Tensor],
    classes: Sequence[str],
) -> None:
    """Draw a scatter plot of each run, at most three in a row: points n 2 in the colour of their class, one legend."""
    rows = math.ceil(len(points) / 3)
    columns = math.ceil(len(points) / rows)
    figure = _figure(3.3 * max(columns, 2), 3.4 * rows + 0.75)
    boxes = figure.subplots(rows, columns, squeeze=False).flatten()
    for box, title, run_points, run_labels in zip(boxes, titles, points, labels, strict=False):
        for index, name in enumerate(classes):
            class_points = run_points[(run_labels == index).numpy()]
            colour, marker = CLASS_COLOURS[index % len(CLASS_COLOURS)], CLASS_MARKERS[index % len(CLASS_MARKERS)]
            box.scatter(*class_points.T, s=14, c=colour, marker=marker, label=name, alpha=0.75, linewidths=0)
        box.set_title(title, fontsize=9)
        box.set(xticks=[], yticks=[])
        box.spines[:].set_color("#bbbbbb")
    for box in boxes[len(points) :]:
        box.set_visible(False)
    handles, names = boxes[0].get_legend_handles_labels()
    legend = figure.legend(
        handles, names, loc="outside lower center", ncols=min(4, len(classes)), frameon=False, fontsize=9, markerscale=2
    )
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    _save(figure, path)


def embedding_title(run: ComparedRun, score: float | None, count: int) -> str:
    """The run's label, silhouette and number of faces."""
    text = "–" if score is None else f"{score:.3f}".replace("-", "−")
    return f"{_wrapped(run.label, 40)}\nsilhouette {text} (n = {count:,})"


def percent(share: float) -> str:
    """A probability in whole percent; values below 1 are never rounded up to 100 %."""
    return "> 99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"


def correct_count(outputs: ClassifierOutputs) -> str:
    """`743 of 800 correct`."""
    correct = int((outputs.logits.argmax(1) == outputs.labels).sum())
    return f"{correct:,} of {len(outputs.labels):,} correct"


def _pixels(image: Tensor) -> NDArray[np.uint8]:
    """3 h w in -1..1 -> h w 3."""
    return to_uint8(image.unsqueeze(0).cpu())[0].permute(1, 2, 0).numpy()


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _grid(rows: int, columns: int, *, below: float, above: float, side: float = SIDE) -> tuple[Any, Any]:
    """A figure with a grid of square axes, and the axes by row. `below`: inches below each cell; `above`: above all."""
    figure = _figure(columns * (side + 0.12), rows * (side + below) + above)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _face(cell: Any, pixels: NDArray[np.uint8], caption: str, colour: str) -> None:
    cell.imshow(pixels, interpolation="bilinear")
    cell.set(xticks=[], yticks=[])
    cell.spines[:].set_visible(False)
    cell.set_xlabel(caption, fontsize=8.5, color=colour, labelpad=3)


def _wrapped(text: str, width: int = 20) -> str:
    return "\n".join(textwrap.wrap(text.replace("$", r"\$"), width)) or text


def _lines(runs: Sequence[ComparedRun]) -> int:
    return max(_wrapped(run.label).count("\n") + 1 for run in runs)


def _save(figure: Any, path: Path) -> None:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, out.getvalue())
