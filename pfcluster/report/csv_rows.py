"""Rows of results.csv, summary.csv and comparisons.csv, at full precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from pfcluster.report.budget import Budget
from pfcluster.report.comparisons import Comparison
from pfcluster.report.groups import RunGroup
from pfcluster.report.resampling import BootstrapInterval
from pfcluster.report.results import Run
from pfcluster.report.statistics import Summary
from pfcluster.report.study import Report


def run_rows(report: Report) -> list[Mapping[str, object]]:
    """results.csv: one row per run; unfinished runs have little more than their status."""
    rows: list[Mapping[str, object]] = [_run_row(run) for run in report.runs]
    for one in report.unfinished:
        rows.append({"folder": one.relative_path, "name": one.name, "seed": one.seed, "status": one.status})
    return rows


def _run_row(run: Run) -> dict[str, object]:
    row: dict[str, object] = {"folder": run.relative_path, "name": run.name, "seed": run.seed, "status": run.status}
    row |= {"objective": run.objective, "finished": run.finished_at.isoformat(timespec="seconds")}
    fields = ("steps", "seconds", "images_per_second", "selection_split", "git_commit")
    row |= {name: run.values.get(name) for name in fields}
    row |= {".".join(path): run.number(*path) for path in _metric_paths((run,))}
    return row | {"warning": run.values.get("warning"), "command": run.values.get("command")}


def _metric_paths(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Paths in result.json of every number that any of these runs has, in a fixed order."""
    fixed = [("parameters", "train"), ("parameters", "test"), ("best", "step"), ("best", "value")]
    paths: dict[tuple[str, ...], None] = dict.fromkeys(fixed)
    for run in runs:
        for part in ("validation", "test", "reconstruction"):
            names = run.values.get(part) or {}
            paths |= dict.fromkeys((part, name) for name in names if run.number(part, name) is not None)
        per_class = (run.values.get("test") or {}).get("per_class") or {}
        paths |= dict.fromkeys(("test", "per_class", name) for name in per_class)
        for row, metrics in ((run.values.get("poker") or {}).get("rows") or {}).items():
            paths |= dict.fromkeys(("poker", "rows", row, name) for name in metrics or {})
    return list(paths)


def group_row(group: RunGroup, budget: Budget | None = None) -> dict[str, object]:
    """summary.csv: a group's metrics as NAME.n, NAME.mean, NAME.std, NAME.low, NAME.high (95 % interval over seeds),
    the accuracy's interval over seeds and samples, and the training budget of a run, alone and in all.
    """
    row: dict[str, object] = {"name": group.label, "objective": group.objective, "seeds": len(group.runs)}
    row |= {"selection_split": group.selection_split, "comparable": group.comparable}
    for path in _metric_paths(group.runs):
        summary = group.summary(*path)
        if summary is not None:
            row |= {f"{'.'.join(path)}.{name}": getattr(summary, name) for name in Summary.__dataclass_fields__}
    bootstrap, reason = group.bootstrap_accuracy
    row |= {"no_predictions": reason}
    for name, cost in (("budget", budget.own), ("budget_in_all", budget.total)) if budget is not None else ():
        row |= {f"{name}.{key}": value for key, value in asdict(cost).items()}
    return row | (_bootstrap_cells("test.accuracy", bootstrap, 0.01) if bootstrap else {})


def comparison_row(one: Comparison) -> dict[str, object]:
    """comparisons.csv: a group minus the baseline, in percentage points; McNemar's test per seed, p before and after
    correction for all seeds of all rows.
    """
    row: dict[str, object] = {"name": one.group.label, "baseline": one.baseline.label}
    row |= {"not_compared": one.not_compared, "no_predictions": one.no_predictions}
    row |= {"seeds": " ".join(map(str, one.seeds))}
    for name, test in (("accuracy", one.accuracy), ("mean_class_accuracy", one.mean_class), ("macro_f1", one.macro_f1)):
        if test:
            row |= {f"{name}.{key}": getattr(test.difference, key) for key in Summary.__dataclass_fields__}
            row |= {f"{name}.t_p": test.t_p, f"{name}.wilcoxon_p": test.wilcoxon_p}
    row |= {"accuracy.holm_p": one.holm_p}
    if one.predictions:
        row |= _bootstrap_cells("accuracy", one.predictions.difference)
        for seed, mcnemar, p in zip(one.predictions.seeds, one.predictions.tests, one.predictions.holm_p, strict=True):
            cells = {"gained": mcnemar.gained, "lost": mcnemar.lost, "p": mcnemar.p, "holm_p": p}
            row |= {f"mcnemar.seed-{seed}.{key}": value for key, value in cells.items()}
    return row


def _bootstrap_cells(name: str, bootstrap: BootstrapInterval, scale: float = 1) -> dict[str, object]:
    low, high = scale * bootstrap.low, scale * bootstrap.high
    return {"samples": bootstrap.samples, f"{name}.seeds_and_samples.low": low, f"{name}.seeds_and_samples.high": high}
