"""Figures of a sweep's report: parallel coordinates and learning curves. All return inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pfcluster.report.figures import COLOURS, INK, escape_mathtext, new_figure, svg_of
from pfcluster.sweep.report.data import SweepData
from pfcluster.sweep.report.metrics import metric_digits, metric_title
from pfcluster.sweep.report.rows import Row, curve_metric
from pfcluster.sweep.space import Parameter

LOW, HIGH = "#8a94a3", COLOURS[0]
"""Colours of the worst and the best score."""
WINNER = COLOURS[1]
BEST_LINE: dict[str, Any] = {"color": WINNER, "linewidth": 2.8}
BASELINE_LINE: dict[str, Any] = {"color": INK, "linewidth": 2.2, "linestyle": (0, (5, 2))}
GOLDEN_RATIO = 0.618
"""Spreads trials with the same choice so that their lines do not overlap."""


def parallel_coordinates(data: SweepData, names: dict[str, str]) -> str:
    """One line for each scored trial through its values, each parameter on its own scale; "" without scores."""
    scored = [row for row in data.rows if row.score is not None]
    if not scored:
        return ""
    space, scores = data.spec.space, [row.score or 0.0 for row in scored]
    low, high = min(scores), max(scores)
    figure, axes = new_figure(max(6.5, 1.25 * (len(space) + 1)), 4.0)
    for row in sorted(scored, key=lambda row: (drawing_order(data, row), data.spec.sign * (row.score or 0.0))):
        height = 0.5 if high == low else ((row.score or 0.0) - low) / (high - low)
        quality = height if data.spec.sign > 0 else 1 - height
        points = [*(_height(one, row) for one in space), height]
        axes.plot(range(len(points)), points, **_line_style(data, row, quality))
    for index, one in enumerate(space):
        _draw_axis(axes, index, one)
    axes.axvline(len(space), color=INK, linewidth=0.9)
    for at, value in ((0, low), (1, high)) if high > low else ((0.5, low),):
        text = f"{value:.{metric_digits(data.spec.metric)}f}"
        axes.text(len(space) + 0.05, at, text, va="center", fontsize=8, color=INK)
    titles = [escape_mathtext(names[one.name]).replace(".", ".\n") for one in space]
    titles.append(escape_mathtext(metric_title(data.spec.metric)))
    axes.set_xticks(range(len(titles)), titles, fontsize=8.5)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_yticks([])
    axes.set(xlim=(-0.1, len(space) + 0.45), ylim=(-0.07, 1.07))
    axes.spines[:].set_visible(False)
    stopped = ["stopped"] if any(row.state == "stopped" for row in scored) else []
    _draw_legend(axes, [*_emphasised(data, scored), *stopped])
    parameters = ", ".join(names.values())
    return svg_of(
        figure, f"Parallel coordinates of {len(scored)} trials: {parameters}, {metric_title(data.spec.metric)}"
    )


def drawing_order(data: SweepData, row: Row) -> int:
    """The baseline is drawn above other trials, and the best one above all."""
    return 2 if is_best(data, row) else 1 if row.trial.number == 0 else 0


def is_best(data: SweepData, row: Row) -> bool:
    """Whether a trial is the winner, or the search's best if nothing was confirmed."""
    return data.best is not None and data.best.trial.number == row.trial.number


def best_name(data: SweepData) -> str:
    """The legend's key for the best trial."""
    return "winner" if data.winner else "best"


def _line_style(data: SweepData, row: Row, quality: float) -> dict[str, Any]:
    """quality: 0 for the worst and 1 for the best score."""
    from matplotlib.colors import to_hex, to_rgb

    if is_best(data, row):
        return BEST_LINE
    if row.trial.number == 0:
        return BASELINE_LINE
    red, green, blue = (a + (b - a) * quality for a, b in zip(to_rgb(LOW), to_rgb(HIGH), strict=True))
    colour = to_hex((red, green, blue))
    if row.state == "stopped":
        return {"color": colour, "linewidth": 0.8, "linestyle": (0, (2, 2)), "alpha": 0.8}
    return {"color": colour, "linewidth": 1.4, "alpha": 0.9}


def _height(parameter: Parameter, row: Row) -> float:
    """Position of a value on its axis, 0..1; values outside the space lie just beyond the end."""
    at = parameter.fraction_of(row.trial.values[parameter.name])
    if parameter.kind == "choice" and math.isfinite(at):
        return at + 0.05 * (row.trial.number * GOLDEN_RATIO % 1 - 0.5)
    return min(max(at, -0.05), 1.05)


def _draw_axis(axes: Any, index: int, parameter: Parameter) -> None:
    axes.axvline(index, color=INK, linewidth=0.9, alpha=0.5)
    for value in parameter.grid(3 if parameter.kind != "choice" else 2):
        text = escape_mathtext(f"{value:.2g}" if isinstance(value, float) else str(value))
        at = parameter.fraction_of(value)
        axes.text(index + 0.05, at, text, va="center", fontsize=8, color=INK, clip_on=False)


def _emphasised(data: SweepData, rows: Sequence[Row]) -> list[str]:
    """Legend keys of the best trial and the baseline, where they are among the rows."""
    numbers = {row.trial.number for row in rows}
    best = data.best
    keys = [] if best is None or best.trial.number not in numbers else [best_name(data)]
    return keys + (["baseline"] if 0 in numbers else [])


def _draw_legend(axes: Any, keys: Sequence[str]) -> None:
    """A legend below the axes."""
    from matplotlib.lines import Line2D

    styles: dict[str, dict[str, Any]] = {
        "winner": BEST_LINE, "best": BEST_LINE, "baseline": BASELINE_LINE,
        "stopped": {"color": LOW, "linewidth": 1, "linestyle": (0, (2, 2))},
        "stopped here": {"color": LOW, "marker": "x", "linestyle": "none"},
    }  # fmt: skip
    titles = {"winner": "winner on fresh seeds", "best": "best of the search", "stopped": "stopped early"}
    handles = [Line2D([], [], label=titles.get(key, key), **styles[key]) for key in keys]
    if handles:
        axes.legend(handles=handles, frameon=False, fontsize=8.5, labelcolor=INK, ncols=len(handles), handlelength=3.2,
                    loc="upper center", bbox_to_anchor=(0.5, -0.14 if axes.get_xlabel() else 0))  # fmt: skip


def learning_curves(data: SweepData) -> str:
    """Validation metric of every trial over steps, with the stops and the rungs; "" without curves."""
    drawn = [row for row in data.rows if row.curve]
    if not drawn:
        return ""
    figure, axes = new_figure(7.2, 3.8)
    lineage = {trial.number for trial in data.lineage} if data.spec.scheduler == "pbt" else set()
    for row in sorted(drawn, key=lambda row: drawing_order(data, row)):
        style: dict[str, Any] = {"color": LOW, "linewidth": 0.9, "alpha": 0.75}
        if row.trial.number in lineage:
            style = BEST_LINE
        elif is_best(data, row) or row.trial.number == 0:
            style = _line_style(data, row, 0)
        steps, values = zip(*row.curve, strict=True)
        axes.plot(steps, values, marker="." if len(steps) == 1 else None, **style)
        if row.state == "stopped":
            axes.plot(steps[-1], values[-1], "x", color=LOW, markersize=6, markeredgewidth=1.6)
    _draw_marked_steps(axes, data)
    metric = metric_title(curve_metric(data.spec))
    axes.set(xlabel="step", ylabel=f"{escape_mathtext(metric)} on validation")
    axes.grid(color=INK, alpha=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    stopped = ["stopped here"] if any(row.state == "stopped" for row in drawn) else []
    keys = [key for key in _emphasised(data, drawn) if not (key == "baseline" and 0 in lineage)]
    _draw_legend(axes, [*keys, *stopped])
    return svg_of(figure, f"Learning curves of {len(drawn)} trials: {metric} on validation over steps")


def _draw_marked_steps(axes: Any, data: SweepData) -> None:
    """Vertical lines at the rungs, or at the ends of a population's generations."""
    name, steps = "rung", list(data.rungs)
    if data.spec.scheduler == "pbt":
        name, steps = "generation", sorted({row.trial.until for row in data.rows if row.trial.until is not None})
    for number, step in enumerate(steps, 1):
        axes.axvline(step, color=INK, linewidth=0.8, alpha=0.6, linestyle=":")
        axes.text(step, 1.01, f"{name} {number}", transform=axes.get_xaxis_transform(), ha="center", fontsize=8,
                  color=INK)  # fmt: skip
