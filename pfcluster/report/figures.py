"""Figures as inline SVG: self-contained, deterministic, and legible on light and dark pages.

Text, axes and grids use the page's text colour (`currentColor`); the background is transparent.

Legend: p points of a curve.
"""

from __future__ import annotations

import hashlib
import html
import io
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pfcluster.report.statistics import row_shares

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = NDArray[np.float64]
"""(step, value) in ascending steps: p 2."""
Points = Sequence[tuple[float, float]] | Curve
"""(step, value) pairs."""

COLOURS = ("#3b82d6", "#e0762f", "#2f9e6e", "#b05cc6", "#c9a227", "#d64f5c", "#3aa6b9", "#8a7a66")
"""Mid tones with a contrast of at least 3:1 on white and near-black (except ochre on white)."""
GREY = "#8c8c8c66"
INK = "#010203"
"""Placeholder that `svg_of` replaces by `currentColor`."""
MAX_POINTS = 300
"""Longer curves are downsampled to this many points by averaging neighbours."""
MAX_FIGURE_POINTS = 24_000
"""Points of all curves in a figure: where there are many curves, each has fewer."""
MIN_POINTS = 12
MAX_LEGEND = 8
"""A longer legend stands beside the curves."""
INSIDE, BESIDE = (5.2, 3.0, (0.75, 0.15, 0.5, 0.3)), (7.4, 3.0, (0.75, 2.35, 0.5, 0.3))
"""Sizes of figures of curves with the legend inside and beside the axes: arguments of `new_figure`. Fixed margins take
half the time of margins that follow the text."""


def plot_curves(
    title: str,
    unit: str,
    groups: Mapping[str, Sequence[Points]],
    *,
    limits: tuple[float, float] | None = None,
    logarithmic: bool = False,
    labelled: Collection[str] | None = None,
) -> str:
    """Learning curves: one thin line per seed, a thick line for their mean. Groups without points are omitted.

    groups: label -> one curve of (step, value) per seed. `limits` of the value axis; a logarithmic axis omits
    non-positive values. `labelled`: groups in colour and in the legend, default all; of the others the means are drawn
    thin and grey. Returns an SVG, or "" if there are no points.
    """
    limit = points_per_curve(sum(map(len, groups.values())))
    with_points = {
        label: [points for curve in seeds if len(points := downsample(curve, limit))] for label, seeds in groups.items()
    }
    with_points = {label: seeds for label, seeds in with_points.items() if seeds}
    if not with_points:
        return ""
    names = [label for label in with_points if labelled is None or label in labelled]
    figure, axes = new_figure(*(BESIDE if len(names) > MAX_LEGEND else INSIDE))
    others = [seeds for label, seeds in with_points.items() if label not in names]
    for number, seeds in enumerate(others):
        label = f"{len(others)} others" if number == 0 else None
        axes.plot(*downsample(mean_curve(seeds), limit).T, color=GREY, linewidth=0.5, label=label)
    indices = {
        label: index for index, label in enumerate(name for name in groups if labelled is None or name in labelled)
    }
    for label in names:
        _draw_seeds_and_mean(axes, with_points[label], label, indices[label])
    axes.set(title=escape_mathtext(title), xlabel="step", ylabel=escape_mathtext(unit))
    _set_scale(axes, limits, logarithmic=logarithmic)
    place: dict[str, Any] = {"ncols": 1 + (len(names) > 4)}
    if len(names) > MAX_LEGEND:
        place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, **place)
    drawn = [*names, f"{len(others)} others"] if others else names
    return svg_of(figure, f"{title}: {unit} over steps for {', '.join(drawn)}")


def _draw_seeds_and_mean(axes: Axes, seeds: Sequence[NDArray[np.float64]], label: str, index: int) -> None:
    """The curves of a group's seeds and their mean, in the colour and dash of its index."""
    colour, dash = COLOURS[index % len(COLOURS)], ("-", "--", ":")[index // len(COLOURS) % 3]
    for curve in seeds if len(seeds) > 1 else []:
        axes.plot(*curve.T, color=colour, linewidth=0.8, alpha=0.45, linestyle=dash)
    mean = downsample(mean_curve(seeds), MAX_POINTS)
    marker = "o" if len(mean) == 1 else None
    axes.plot(*mean.T, color=colour, linewidth=2.2, label=escape_mathtext(label), linestyle=dash, marker=marker)


def _set_scale(axes: Axes, limits: tuple[float, float] | None, *, logarithmic: bool) -> None:
    """Limits and scale of the value axis, grid and frame."""
    if limits is not None:
        margin = 0.03 * (limits[1] - limits[0])
        axes.set_ylim(limits[0] - margin, limits[1] + margin)
    if logarithmic:
        axes.set_yscale("log", nonpositive="mask")
        axes.tick_params(which="minor", colors=INK, labelsize=7)
    axes.grid(color=INK, alpha=0.12)
    axes.spines[["top", "right"]].set_visible(False)


def points_per_curve(curves: int) -> int:
    """How many points each of the curves in a figure may have."""
    return max(MIN_POINTS, min(MAX_POINTS, MAX_FIGURE_POINTS // max(1, curves)))


def downsample(points: Points, limit: int = MAX_POINTS) -> Curve:
    """The finite points; means of neighbours if there are more than `limit`."""
    curve = np.asarray(points, float).reshape(-1, 2)
    curve = curve[np.isfinite(curve[:, 1])]
    size = math.ceil(len(curve) / limit)
    if size <= 1:
        return curve
    starts = np.arange(0, len(curve), size)
    counts = np.diff(starts, append=len(curve))
    means: Curve = np.add.reduceat(curve, starts) / counts[:, None]
    return means


def mean_curve(seeds: Sequence[Curve]) -> Curve:
    """Mean over seeds at every step within the range of all seeds, with linear interpolation between points."""
    first, last = max(curve[0, 0] for curve in seeds), min(curve[-1, 0] for curve in seeds)
    steps = np.unique(np.concatenate([curve[:, 0] for curve in seeds]))
    steps = steps[(first <= steps) & (steps <= last)]
    if not len(steps):
        return seeds[0]
    values = np.mean([np.interp(steps, curve[:, 0], curve[:, 1]) for curve in seeds], axis=0)
    return np.stack([steps, values], 1)


def plot_confusion(title: str, classes: Sequence[str], counts: Sequence[Sequence[float]]) -> str:
    """Heat map of a row-normalised confusion matrix: rows are true classes, cells are in %."""
    from matplotlib.colors import LinearSegmentedColormap

    shares = row_shares(counts)
    side = 1.5 + 0.44 * len(classes)
    figure, axes = new_figure(side + 0.2, side - 0.1)
    endpoints = [(36 / 255, 99 / 255, 176 / 255, alpha) for alpha in (0.03, 1.0)]
    filled = [[cell or 0.0 for cell in row] for row in shares]
    colours = LinearSegmentedColormap.from_list("share", endpoints)
    axes.pcolormesh(filled, cmap=colours, vmin=0, vmax=1, edgecolors="none")
    for row, cells in enumerate(shares):
        for column, cell in enumerate(cells):
            text = "–" if cell is None else f"{100 * cell:.0f}"
            ink = "white" if (cell or 0) > 0.8 else INK  # contrast of about 4:1 on light and dark pages
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=9, color=ink)
    ticks = [index + 0.5 for index in range(len(classes))]
    names = [escape_mathtext(name) for name in classes]
    axes.set_xticks(ticks, names, rotation=40, ha="right")
    axes.set_yticks(ticks, names)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(title=escape_mathtext(title), xlabel="predicted class", ylabel="true class")
    return svg_of(figure, f"{title}: row-normalised confusion matrix over {', '.join(classes)}")


def new_figure(
    width: float, height: float, margins: tuple[float, float, float, float] | None = None
) -> tuple[Any, Any]:
    """An empty figure and its axes, without pyplot's global state. All sizes are in inches; margins: left, right,
    bottom, top, by default as wide as the text around the axes.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained" if margins is None else None)
    FigureCanvasSVG(figure)
    if margins is not None:
        left, right, bottom, top = margins
        figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    axes.tick_params(colors=INK, labelsize=8.5)
    for part in (axes.title, axes.xaxis.label, axes.yaxis.label):
        part.set(color=INK, fontsize=9.5)
    axes.spines[:].set_color(INK)
    return figure, axes


def svg_of(figure: Any, description: str) -> str:
    """The figure as an `<svg>` element with `description` as its aria-label."""
    import matplotlib

    out = io.StringIO()
    salt = hashlib.sha256(description.encode()).hexdigest()[:12]
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(out.getvalue(), description, salt)


def _inline(svg: str, description: str, salt: str) -> str:
    """Make matplotlib's SVG file embeddable: no header, metadata or namespaces, and ids prefixed by `salt`."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg, count=0).replace("xlink:href=", "href=")
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r'\s+id="([^"]+)"', lambda match: match[0] if match[1] in used else "", svg)
    for name in used:
        svg = re.sub(rf'(id="|url\(#|href="#){re.escape(name)}(?=["\)])', rf"\g<1>{salt}-{name}", svg)
    svg = re.sub(INK, "currentColor", svg, flags=re.IGNORECASE)
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 system-ui, sans-serif", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(description, quote=True)}"', 1).strip()


def escape_mathtext(text: str) -> str:
    """Escape mathtext; a leading space keeps labels that start with an underscore in the legend."""
    return text.replace("$", r"\$") if not text.startswith("_") else f" {text}".replace("$", r"\$")
