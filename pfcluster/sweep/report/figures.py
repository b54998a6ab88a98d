"""The figures of a sweep's report: parallel coordinates, learning curves, accuracy against the poker faces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pfcluster.report.figures import COLOURS, INK, escape_mathtext, new_figure, svg_of
from pfcluster.sweep.report.data import SweepData
from pfcluster.sweep.report.rows import Row
from pfcluster.sweep.space import Parameter
from pfcluster.sweep.spec import FINAL_METRICS

LOW, HIGH = "#8a94a3", COLOURS[0]
"""Colours of the worst and the best score."""
WINNER = COLOURS[1]
GOLDEN = 0.618
"""Spreads trials of one choice, so that their lines do not hide each other."""


@dataclass(frozen=True)
class Panel:
    """A figure of poker faces that is drawn against accuracy."""

    key: str
    title: str
    better: Literal[1, -1]
    digits: int
    references: tuple[str, ...]
    """Kinds of image whose figure is drawn as a line."""


PANELS = (
    Panel("neutral_rate", "neutral_rate", 1, 3, ("input", "reconstruction", "truth")),
    Panel("identity_cosine", "identity kept", 1, 3, ("reconstruction", "truth")),
    Panel("mse_inside", "error in the expression's region", -1, 4, ("input", "reconstruction")),
)


def parallel_coordinates(data: SweepData, names: dict[str, str]) -> str:
    """A line for each scored trial through its values, each parameter on its own scale; "" without scores."""
    scored = [row for row in data.rows if row.score is not None]
    if not scored:
        return ""
    space, scores = data.spec.space, [row.score or 0.0 for row in scored]
    low, high = min(scores), max(scores)
    figure, axes = new_figure(max(6.5, 1.25 * (len(space) + 1)), 4.0)
    place = {row.trial.number: (0.5 if high == low else ((row.score or 0.0) - low) / (high - low)) for row in scored}
    for row in sorted(scored, key=lambda row: (_rank(data, row), data.spec.sign * (row.score or 0.0))):
        points = [*(_place(one, row) for one in space), place[row.trial.number]]
        good = place[row.trial.number] if data.spec.sign > 0 else 1 - place[row.trial.number]
        axes.plot(range(len(points)), points, **_line(data, row, good))
    for index, one in enumerate(space):
        _axis(axes, index, one)
    axes.axvline(len(space), color=INK, linewidth=0.9)
    for at, value in ((0, low), (1, high)) if high > low else ((0.5, low),):
        axes.text(len(space) + 0.05, at, f"{value:.3f}", va="center", fontsize=8, color=INK)
    titles = [
        *(escape_mathtext(names[one.name]).replace(".", ".\n") for one in space),
        escape_mathtext(data.spec.metric),
    ]
    axes.set_xticks(range(len(titles)), titles, fontsize=8.5)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_yticks([])
    axes.set(xlim=(-0.1, len(space) + 0.45), ylim=(-0.07, 1.07))
    axes.spines[:].set_visible(False)
    _legend(axes, [*_emphasised(data, scored), *(["stopped"] if any(r.state == "stopped" for r in scored) else [])])
    return svg_of(
        figure, f"Parallel coordinates of {len(scored)} trials: {', '.join(names.values())}, {data.spec.metric}"
    )


def _rank(data: SweepData, row: Row) -> int:
    """What is drawn last lies on top."""
    return 2 if _is_winner(data, row) else 1 if row.trial.number == 0 else 0


def _is_winner(data: SweepData, row: Row) -> bool:
    return data.best is not None and data.best.trial.number == row.trial.number


def _line(data: SweepData, row: Row, good: float) -> dict[str, Any]:
    from matplotlib.colors import to_hex, to_rgb

    if _is_winner(data, row):
        return {"color": WINNER, "linewidth": 2.8}
    if row.trial.number == 0:
        return {"color": INK, "linewidth": 2.2, "linestyle": (0, (5, 2))}
    red, green, blue = (a + (b - a) * good for a, b in zip(to_rgb(LOW), to_rgb(HIGH), strict=True))
    mixed = to_hex((red, green, blue))
    if row.state == "stopped":
        return {"color": mixed, "linewidth": 0.8, "linestyle": (0, (2, 2)), "alpha": 0.8}
    return {"color": mixed, "linewidth": 1.4, "alpha": 0.9}


def _place(parameter: Parameter, row: Row) -> float:
    """Where a value lies on its axis; outside of the space a little beyond the end."""
    value = row.trial.values[parameter.name]
    at = parameter.fraction_of(value)
    if parameter.kind == "choice" and math.isfinite(at):
        return at + 0.05 * (row.trial.number * GOLDEN % 1 - 0.5)
    return min(max(at, -0.05), 1.05)


def _axis(axes: Any, index: int, parameter: Parameter) -> None:
    axes.axvline(index, color=INK, linewidth=0.9, alpha=0.5)
    values = parameter.grid(3 if parameter.kind != "choice" else 2)
    for value in values:
        text = f"{value:.2g}" if isinstance(value, float) else str(value)
        mark = axes.text(
            index + 0.05, parameter.fraction_of(value), escape_mathtext(text), va="center", fontsize=8, color=INK
        )
        mark.set_clip_on(False)


def _emphasised(data: SweepData, rows: Sequence[Row]) -> list[str]:
    numbers = {row.trial.number for row in rows}
    best = data.best
    found = [] if best is None or best.trial.number not in numbers else ["winner" if data.winner else "best"]
    return found + (["baseline"] if 0 in numbers else [])


def _legend(axes: Any, names: Sequence[str]) -> None:
    """Below the axes: what the emphasised lines and marks are."""
    from matplotlib.lines import Line2D

    looks: dict[str, dict[str, Any]] = {
        "winner": {"color": WINNER, "linewidth": 2.8}, "best": {"color": WINNER, "linewidth": 2.8},
        "baseline": {"color": INK, "linewidth": 2.2, "linestyle": (0, (5, 2))},
        "stopped": {"color": LOW, "linewidth": 1, "linestyle": (0, (2, 2))},
        "stopped here": {"color": LOW, "marker": "x", "linestyle": "none"},
    }  # fmt: skip
    titles = {"winner": "winner on fresh seeds", "best": "best of the search", "stopped": "stopped early"}
    handles = [Line2D([], [], label=titles.get(name, name), **looks[name]) for name in names]
    if handles:
        axes.legend(handles=handles, frameon=False, fontsize=8.5, labelcolor=INK, ncols=len(handles), handlelength=3.2,
                    loc="upper center", bbox_to_anchor=(0.5, -0.14 if axes.get_xlabel() else 0))  # fmt: skip


def learning_curves(data: SweepData) -> str:
    """Validation metric over steps of every trial, with the stopping points and the rungs; "" without curves."""
    drawn = [row for row in data.rows if row.curve]
    if not drawn:
        return ""
    figure, axes = new_figure(7.2, 3.8)
    line = {trial.number for trial in data.lineage} if data.spec.scheduler == "pbt" else set()
    for row in sorted(drawn, key=lambda row: _rank(data, row)):
        plain_line = {"color": LOW, "linewidth": 0.9, "alpha": 0.75}
        own = _is_winner(data, row) or row.trial.number == 0
        look = _line(data, row, 0) if own and row.trial.number not in line else plain_line
        look = {"color": WINNER, "linewidth": 2.8} if row.trial.number in line else look
        steps, values = zip(*row.curve, strict=True)
        axes.plot(steps, values, marker="." if len(steps) == 1 else None, **look)
        if row.state == "stopped":
            axes.plot(steps[-1], values[-1], "x", color=LOW, markersize=6, markeredgewidth=1.6)
    marks = {"rung": data.rungs} if data.rungs else {}
    if data.spec.scheduler == "pbt":
        ends = sorted({row.trial.until for row in data.rows if row.trial.until is not None})
        marks = {"generation": tuple(ends)}
    for name, steps in marks.items():
        for number, step in enumerate(steps, 1):
            axes.axvline(step, color=INK, linewidth=0.8, alpha=0.6, linestyle=":")
            axes.text(step, 1.01, f"{name} {number}", transform=axes.get_xaxis_transform(), ha="center", fontsize=8,
                      color=INK)  # fmt: skip
    metric = "accuracy" if data.spec.metric in FINAL_METRICS else data.spec.metric
    axes.set(xlabel="step", ylabel=f"{escape_mathtext(metric)} on validation")
    axes.grid(color=INK, alpha=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    stopped = ["stopped here"] if any(row.state == "stopped" for row in drawn) else []
    special = [name for name in _emphasised(data, drawn) if not (name == "baseline" and 0 in line)]
    _legend(axes, [*special, *stopped])
    return svg_of(figure, f"Learning curves of {len(drawn)} trials: {metric} on validation over steps")


def front(rows: Sequence[Row], panel: Panel) -> list[Row]:
    """Rows than which no other is better in one, accuracy or the panel's figure, and at least as good in the other; by
    accuracy.
    """
    known = [(row.accuracy, panel.better * row.face[panel.key], row) for row in rows
             if row.accuracy is not None and panel.key in row.face]  # fmt: skip
    found = [(x, row) for x, y, row in known if not any(a >= x and b >= y and (a > x or b > y) for a, b, _ in known)]
    return [row for _, row in sorted(found, key=lambda one: one[0])]


def pareto(data: SweepData) -> list[str]:
    """Accuracy against each known figure of the poker faces, whole trials only."""
    whole = [row for row in data.rows if row.accuracy is not None and row.face]
    return [_pareto(data, whole, panel) for panel in PANELS if any(panel.key in row.face for row in whole)]


def _pareto(data: SweepData, whole: Sequence[Row], panel: Panel) -> str:
    rows = [row for row in whole if panel.key in row.face]
    figure, axes = new_figure(5.2, 3.6)
    best = front(rows, panel)
    axes.plot([row.accuracy for row in best], [row.face[panel.key] for row in best], color=HIGH, linewidth=1.4)
    on_front = {row.trial.number for row in best}
    for row in sorted(rows, key=lambda row: _rank(data, row)):
        look: dict[str, Any] = {"marker": "o", "markersize": 6 if row.trial.number in on_front else 4.5}
        look["color"] = HIGH if row.trial.number in on_front else LOW
        name = ""
        if row.trial.number == 0:
            look, name = {"marker": "s", "markersize": 8, "color": INK}, "baseline"
        if _is_winner(data, row):
            look, name = {"marker": "*", "markersize": 14, "color": WINNER}, "winner" if data.winner else "best"
        axes.plot(row.accuracy, row.face[panel.key], linestyle="none", label=name or None, **look)
    _references(axes, rows, panel)
    less = " (less is better)" if panel.better < 0 else ""
    axes.set(xlabel="accuracy on validation", ylabel=f"{panel.title}{less}")
    axes.grid(color=INK, alpha=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return svg_of(figure, f"Accuracy against {panel.title} of {len(rows)} trials, {len(best)} of them on the front")


def _references(axes: Any, rows: Sequence[Row], panel: Panel) -> None:
    """Other images' figures: a line each; a word at the edge where that would press the points together."""
    values = [row.face[panel.key] for row in rows]
    room = max((max(values) - min(values)) * 0.6, 0.02 * max(map(abs, values)), 10**-panel.digits)
    low, high = min(values) - room, max(values) + room
    axes.set_ylim(low, high)
    beyond: dict[bool, list[str]] = {True: [], False: []}
    lines: dict[float, list[str]] = {}
    for kind in panel.references:
        known = [row.poker[kind][panel.key] for row in rows if panel.key in row.poker.get(kind, {})]
        if not known:
            continue
        level = sum(known) / len(known)
        if low < level < high:
            near = next((one for one in lines if abs(one - level) < 0.05 * (high - low)), level)
            lines.setdefault(near, []).append(kind)
        else:
            beyond[level >= high].append(f"{kind} {level:.{panel.digits}f}")
    for level, kinds in lines.items():
        axes.axhline(level, color=INK, linewidth=0.8, alpha=0.6, linestyle=":")
        axes.text(1.0, level, f"{', '.join(kinds)} ", transform=axes.get_yaxis_transform(), ha="right", va="bottom",
                  fontsize=8, color=INK, alpha=0.85)  # fmt: skip
    for above, words in beyond.items():
        if words:
            place, side = (0.98, "top") if above else (0.02, "bottom")
            axes.text(0.99, place, f"{'↑' if above else '↓'} {', '.join(words)}", transform=axes.transAxes, ha="right",
                      va=side, fontsize=8, color=INK, alpha=0.85)  # fmt: skip
