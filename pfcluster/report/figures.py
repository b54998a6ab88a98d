"""Figures as inline SVG: no outside reference, the same bytes for the same data, for light and dark pages alike.

Words, axes and grids take the page's own text colour (`currentColor`); text stays text; nothing is filled behind.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pfcluster.report.results import ReportError
from pfcluster.report.statistics import row_shares

Points = Sequence[tuple[float, float]]

COLOURS = ("#3b82d6", "#e0762f", "#2f9e6e", "#b05cc6", "#c9a227", "#d64f5c", "#3aa6b9", "#8a7a66")
"""Middle tones with at least 3:1 contrast on white and on near-black, but for the ochre on white."""
INK = "#010203"
"""Stands for the page's text colour while matplotlib draws."""
MAX_POINTS = 300
"""Points a curve is thinned to; each is then the mean of its neighbours."""
PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}


def curves(
    title: str,
    unit: str,
    groups: Mapping[str, Sequence[Points]],
    *,
    limits: tuple[float, float] | None = None,
    logarithmic: bool = False,
) -> str:
    """Learning curves: a thin line for each seed, a thick one for their mean. Groups without points are left out.

    groups: label -> one curve for each seed, each of (step, value). `limits` of the values' axis; on a logarithmic one
    what is not positive is left out. Returns an SVG, or "" where there is nothing.
    """
    with_points = {label: [thin(curve) for curve in seeds if finite(curve)] for label, seeds in groups.items()}
    with_points = {label: seeds for label, seeds in with_points.items() if seeds}
    if not with_points:
        return ""
    figure, axes = new_figure(5.2, 3.0)
    for label, seeds in with_points.items():
        place = list(groups).index(label)
        colour, dash = COLOURS[place % len(COLOURS)], ("-", "--", ":")[place // len(COLOURS) % 3]
        for curve in seeds if len(seeds) > 1 else []:
            axes.plot(*zip(*curve, strict=True), color=colour, linewidth=0.8, alpha=0.45, linestyle=dash)
        mean = mean_curve(seeds)
        marker = "o" if len(mean) == 1 else None
        axes.plot(
            *zip(*mean, strict=True), color=colour, linewidth=2.2, label=plain(label), linestyle=dash, marker=marker
        )
    axes.set(title=plain(title), xlabel="step", ylabel=plain(unit))
    if limits is not None:
        margin = 0.03 * (limits[1] - limits[0])
        axes.set_ylim(limits[0] - margin, limits[1] + margin)
    if logarithmic:
        axes.set_yscale("log", nonpositive="mask")
        axes.tick_params(which="minor", colors=INK, labelsize=7)
    axes.grid(color=INK, alpha=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, ncols=1 + (len(with_points) > 4))
    return svg_of(figure, f"{title}: {unit} over steps for {', '.join(with_points)}")


def finite(curve: Points) -> list[tuple[float, float]]:
    """The points whose value is finite."""
    return [(step, value) for step, value in curve if math.isfinite(value)]


def thin(curve: Points) -> list[tuple[float, float]]:
    """The finite points, or means of neighbours where there are more than `MAX_POINTS`."""
    points = finite(curve)
    size = math.ceil(len(points) / MAX_POINTS)
    if size <= 1:
        return points
    bins = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(step for step, _ in part) / len(part), sum(value for _, value in part) / len(part)) for part in bins]


def mean_curve(seeds: Sequence[Points]) -> list[tuple[float, float]]:
    """Mean over seeds at every step that all seeds span; between its points a curve is taken as straight."""
    import numpy as np

    first, last = max(curve[0][0] for curve in seeds), min(curve[-1][0] for curve in seeds)
    steps = sorted({step for curve in seeds for step, _ in curve if first <= step <= last})
    if not steps:
        return list(seeds[0])
    values = np.mean(
        [np.interp(steps, [step for step, _ in curve], [value for _, value in curve]) for curve in seeds], axis=0
    )
    return list(zip(steps, map(float, values), strict=True))


def confusion(title: str, classes: Sequence[str], counts: Sequence[Sequence[float]]) -> str:
    """Heat map of a confusion matrix: rows are the true class, each cell its row's share in %."""
    from matplotlib.colors import LinearSegmentedColormap

    shares = row_shares(counts)
    side = 1.5 + 0.44 * len(classes)
    figure, axes = new_figure(side + 0.2, side - 0.1)
    steps = [(36 / 255, 99 / 255, 176 / 255, alpha) for alpha in (0.03, 1.0)]
    filled = [[cell or 0.0 for cell in row] for row in shares]
    colours = LinearSegmentedColormap.from_list("share", steps)
    axes.pcolormesh(filled, cmap=colours, vmin=0, vmax=1, edgecolors="none")
    for row, cells in enumerate(shares):
        for column, cell in enumerate(cells):
            text = "–" if cell is None else f"{100 * cell:.0f}"
            ink = "white" if (cell or 0) > 0.8 else INK  # contrast of 4:1 or so on light and dark pages
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=9, color=ink)
    ticks = [index + 0.5 for index in range(len(classes))]
    names = [plain(name) for name in classes]
    axes.set_xticks(ticks, names, rotation=40, ha="right")
    axes.set_yticks(ticks, names)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set(title=plain(title), xlabel="recognised as", ylabel="truth")
    return svg_of(figure, f"{title}: row-normalised confusion matrix over {', '.join(classes)}")


def picture(folder: Path, relative: str) -> str:
    """A run's picture as a data: URI. Raises ReportError for one that is missing, outside the run, or no bitmap."""
    file = (folder / relative).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ReportError(f"the picture {relative} lies outside its run {folder}; it is left out")
    kind = PICTURES.get(file.suffix.lower())
    if kind is None:
        raise ReportError(f"the picture {file} is none of {', '.join(PICTURES)}; it is left out")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ReportError(f"the picture {file} cannot be read: {error.strerror}; it is left out") from error
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """An empty figure of so many inches and its axes, without pyplot's global state."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    axes.tick_params(colors=INK, labelsize=8.5)
    for part in (axes.title, axes.xaxis.label, axes.yaxis.label):
        part.set(color=INK, fontsize=9.5)
    axes.spines[:].set_color(INK)
    return figure, axes


def svg_of(figure: Any, description: str) -> str:
    """The figure as an `<svg>` element with a description for those who do not see it."""
    import matplotlib

    out = io.StringIO()
    salt = hashlib.sha256(description.encode()).hexdigest()[:12]
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(out.getvalue(), description, salt)


def _inline(svg: str, description: str, salt: str) -> str:
    """Matplotlib's file as a part of a page: no header, no metadata, no namespaces, ids its own."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg, count=0).replace("xlink:href=", "href=")
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r'\s+id="([^"]+)"', lambda match: match[0] if match[1] in used else "", svg)
    for name in used:
        svg = re.sub(rf'(id="|url\(#|href="#){re.escape(name)}(?=["\)])', rf"\g<1>{salt}-{name}", svg)
    svg = re.sub(INK, "currentColor", svg, flags=re.IGNORECASE)
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 system-ui, sans-serif", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(description, quote=True)}"', 1).strip()


def plain(text: str) -> str:
    """Text in which matplotlib finds no formula; a leading underscore would hide a legend's entry."""
    return text.replace("$", r"\$") if not text.startswith("_") else f" {text}".replace("$", r"\$")
