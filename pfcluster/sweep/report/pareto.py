"""Accuracy against metrics of the poker faces, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pfcluster.report.figures import INK, new_figure, svg_of
from pfcluster.sweep.report.data import SweepData
from pfcluster.sweep.report.figures import HIGH, LOW, WINNER, best_name, drawing_order, is_best
from pfcluster.sweep.report.metrics import metric_digits, metric_title
from pfcluster.sweep.report.rows import Row
from pfcluster.sweep.spec import LOWER_IS_BETTER

PARETO_METRICS = {
    "neutral_rate": ("input", "reconstruction", "truth"),
    "identity_cosine": ("reconstruction", "truth"),
    "mse_inside": ("input", "reconstruction"),
}
"""Metrics of poker faces that are drawn against accuracy -> kinds of image drawn as a reference line."""


def pareto_rows(data: SweepData) -> tuple[list[Row], list[str]]:
    """Completed trials with poker faces, and those of `PARETO_METRICS` that were measured."""
    rows = [row for row in data.rows if row.accuracy is not None and row.poker_face]
    return rows, [metric for metric in PARETO_METRICS if any(metric in row.poker_face for row in rows)]


def front(rows: Sequence[Row], metric: str) -> list[Row]:
    """The Pareto front by accuracy: rows that no other row surpasses in accuracy or the metric while being at least as
    good in the other.
    """
    sign = -1 if metric in LOWER_IS_BETTER else 1
    measured = [(row.accuracy, sign * row.poker_face[metric], row) for row in rows
                if row.accuracy is not None and metric in row.poker_face]  # fmt: skip
    best = [
        (x, row) for x, y, row in measured if not any(a >= x and b >= y and (a > x or b > y) for a, b, _ in measured)
    ]
    return [row for _, row in sorted(best, key=lambda one: one[0])]


def pareto_figures(data: SweepData) -> list[str]:
    """Accuracy against each measured metric of the poker faces, completed trials only."""
    rows, metrics = pareto_rows(data)
    return [_pareto_figure(data, [row for row in rows if metric in row.poker_face], metric) for metric in metrics]


def _pareto_figure(data: SweepData, rows: Sequence[Row], metric: str) -> str:
    figure, axes = new_figure(5.2, 3.6)
    best = front(rows, metric)
    axes.plot([row.accuracy for row in best], [row.poker_face[metric] for row in best], color=HIGH, linewidth=1.4)
    on_front = {row.trial.number for row in best}
    for row in sorted(rows, key=lambda row: drawing_order(data, row)):
        style: dict[str, Any] = {"marker": "o", "markersize": 6 if row.trial.number in on_front else 4.5}
        style["color"] = HIGH if row.trial.number in on_front else LOW
        name = ""
        if row.trial.number == 0:
            style, name = {"marker": "s", "markersize": 8, "color": INK}, "baseline"
        if is_best(data, row):
            style, name = {"marker": "*", "markersize": 14, "color": WINNER}, best_name(data)
        axes.plot(row.accuracy, row.poker_face[metric], linestyle="none", label=name or None, **style)
    _draw_references(axes, rows, metric)
    title = metric_title(metric)
    lower = " (lower is better)" if metric in LOWER_IS_BETTER else ""
    axes.set(xlabel="accuracy on validation", ylabel=f"{title}{lower}")
    axes.grid(color=INK, alpha=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return svg_of(figure, f"Accuracy against {title} of {len(rows)} trials, {len(best)} of them on the Pareto front")


def _draw_references(axes: Any, rows: Sequence[Row], metric: str) -> None:
    """The metric of other kinds of image: a line, or text at the edge if a line would compress the points."""
    digits = metric_digits(metric)
    values = [row.poker_face[metric] for row in rows]
    margin = max((max(values) - min(values)) * 0.6, 0.02 * max(map(abs, values)), 10**-digits)
    low, high = min(values) - margin, max(values) + margin
    axes.set_ylim(low, high)
    beyond: dict[bool, list[str]] = {True: [], False: []}
    lines: dict[float, list[str]] = {}
    for kind in PARETO_METRICS[metric]:
        levels = [row.poker[kind][metric] for row in rows if metric in row.poker.get(kind, {})]
        if not levels:
            continue
        level = sum(levels) / len(levels)
        if low < level < high:
            near = next((one for one in lines if abs(one - level) < 0.05 * (high - low)), level)
            lines.setdefault(near, []).append(kind)
        else:
            beyond[level >= high].append(f"{kind} {level:.{digits}f}")
    for level, kinds in lines.items():
        axes.axhline(level, color=INK, linewidth=0.8, alpha=0.6, linestyle=":")
        axes.text(1.0, level, f"{', '.join(kinds)} ", transform=axes.get_yaxis_transform(), ha="right", va="bottom",
                  fontsize=8, color=INK, alpha=0.85)  # fmt: skip
    for above, texts in beyond.items():
        if texts:
            y, side = (0.98, "top") if above else (0.02, "bottom")
            axes.text(0.99, y, f"{'↑' if above else '↓'} {', '.join(texts)}", transform=axes.transAxes, ha="right",
                      va=side, fontsize=8, color=INK, alpha=0.85)  # fmt: skip
