"""The HTML page: self-contained, autoescaped by jinja2; sections without content are omitted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pfcluster.report import budget, figures, gan_curves, tables
from pfcluster.report.errors import Notice, ReportError
from pfcluster.report.figures import Picture
from pfcluster.report.findings import findings, summed_confusion
from pfcluster.report.formatting import MISSING
from pfcluster.report.groups import RunGroup
from pfcluster.report.poker_faces import poker_sentences
from pfcluster.report.rendering import Table
from pfcluster.report.results import Run
from pfcluster.report.study import Report
from pfcluster.runs.folder import metric_series, read_metrics

LOSSES = {
    "loss": "Training loss",
    "cls": "Classification, L_cls",
    "rec": "Reconstruction, L_rec",
    "adv": "Adversarial, L_adv",
    "ort": "Orthogonality, L_ort",
    "discriminator": "Discriminator loss",
}
"""Training metrics that are plotted, and their titles."""


def confusion_figures(groups: Sequence[RunGroup]) -> list[str]:
    """A heat map for each group that has a confusion matrix."""
    svgs = []
    for group in groups:
        matrix = summed_confusion(group)
        if matrix:
            seeds = "one seed" if len(group.runs) == 1 else f"{len(group.runs)} seeds, summed"
            svgs.append(figures.plot_confusion(f"{group.title} ({seeds})", group.classes, matrix))
    return svgs


def curve_figures(groups: Sequence[RunGroup]) -> list[str]:
    """Validation accuracy and macro F1 (in %), then the training metrics of `LOSSES`, as far as logged."""
    metrics = {run.folder: read_metrics(run.folder) for group in groups for run in group.runs}

    def plot(split: str, metric: str, title: str, unit: str, scale: float = 1) -> str:
        by_label = {}
        for group in groups:
            seeds = [metric_series(metrics[run.folder], split, metric) for run in group.runs]
            by_label[group.label] = [[(step, scale * value) for step, value in curve] for curve in seeds]
        return figures.plot_curves(title, unit, by_label)

    svgs = [
        plot("validation", "accuracy", "Validation accuracy", "%", 100),
        plot("validation", "macro_f1", "Validation macro F1", "%", 100),
        *(plot("train", metric, title, "loss") for metric, title in LOSSES.items()),
    ]
    return [svg for svg in svgs if svg]


def image_grids(groups: Sequence[RunGroup]) -> tuple[list[Picture], list[Notice]]:
    """Image grids of each group's first seed that has any; a notice for each unreadable file."""
    pictures, notices = [], []
    for group in groups:
        run = next((run for run in group.runs if run.values.get("pictures")), None)
        if run is None:
            continue
        for kind, relative_path in run.values["pictures"].items():
            try:
                uri = figures.inline_picture(run.folder, str(relative_path))
            except ReportError as error:
                notices.append(Notice("picture omitted", str(error)))
                continue
            pictures.append(Picture(uri, f"{group.label}, seed {run.seed}: {kind}"))
    return pictures, notices


def config_tables(groups: Sequence[RunGroup]) -> tuple[list[tuple[str, str]], Table | None]:
    """Config fields with the same value in all groups, and a table of those that differ."""
    configured = [group for group in groups if group.runs[0].config]
    names = list(dict.fromkeys(name for group in configured for name in group.runs[0].config))
    common, rows = [], []
    for name in names:
        values = [_config_text(group.runs[0].config.get(name)) for group in configured]
        if name in ("seed", "name"):
            continue
        if len(set(values)) == 1:
            common.append((name, values[0]))
        else:
            rows.append((name, *values))
    columns = ("field", *(group.label for group in configured))
    note = "First seed of each group. Fields with equal values are listed below."
    return common, Table("Config differences", columns, tuple(rows), note) if rows else None


def _config_text(value: Any) -> str:
    return MISSING if value is None else value if isinstance(value, str) else json.dumps(value)


def render(report: Report) -> tuple[str, list[Notice]]:
    """HTML of the page, and notices about pictures that could not be read."""
    context, notices = _context(report)
    return render_template("page.html.j2", context), notices


def render_template(name: str, context: Mapping[str, Any], package: str = "pfcluster.report") -> str:
    """Render a template of `package`, which may import macros from `shared.html.j2`. Strings are escaped."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(one, ".") for one in dict.fromkeys((package, "pfcluster.report"))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(context)


def _context(report: Report) -> tuple[dict[str, Any], list[Notice]]:
    mae = [group for group in report.groups if group.objective == "mae"]
    others = [group for group in report.groups if group.objective != "mae"]
    mae_pictures, mae_notices = image_grids(mae)
    pictures, picture_notices = image_grids(others)
    timelines, timeline_notices = gan_curves.grid_timelines(others)
    notices = [*mae_notices, *picture_notices, *timeline_notices]
    common, differing = config_tables(report.groups)
    return {
        "report": report,
        "notices": [*report.notices, *notices],
        "findings": findings(report),
        "main": tables.main_table(others),
        "comparison": tables.comparison_table(report.comparisons),
        "on_budgets": budget.equal_budget_table(report.on_budgets, report.budgets),
        "budget": budget.budget_table(report.groups, report.budgets),
        "per_class": tables.per_class_table(others),
        "confusions": confusion_figures(others),
        "curves": curve_figures(others),
        "gan_panels": gan_curves.panel_figures(others),
        "grid_timelines": timelines,
        "poker": tables.poker_table(others),
        "poker_findings": [(group.title, poker_sentences(group)) for group in others if group.has_poker_faces],
        "pictures": pictures,
        "mae": tables.mae_table(mae),
        "mae_curves": curve_figures(mae),
        "mae_pictures": mae_pictures,
        "runs": tables.runs_table(report.runs, report.unfinished),
        "common": common,
        "differing": differing,
        **provenance(report.runs),
    }, notices


def provenance(runs: Sequence[Run]) -> dict[str, Any]:
    """Commands, versions and commits of the runs without repetition; datasets; first and last day of the results."""
    versions: dict[str, list[str]] = {}
    for run in runs:
        for package, version in (run.values.get("versions") or {}).items():
            if str(version) not in versions.setdefault(str(package), []):
                versions[str(package)].append(str(version))
    days = sorted(run.finished_at for run in runs)
    datasets = {
        json.dumps(run.values.get("dataset")): {**run.values["dataset"], "name": run.dataset}
        for run in runs
        if run.values.get("dataset")
    }
    return {
        "commands": [(run.relative_path, str(run.values["command"])) for run in runs if run.values.get("command")],
        "versions": versions,
        "commits": list(dict.fromkeys(str(run.values["git_commit"]) for run in runs if run.values.get("git_commit"))),
        "datasets": list(datasets.values()),
        "days": list(dict.fromkeys((f"{days[0]:%Y-%m-%d}", f"{days[-1]:%Y-%m-%d}"))),
        "selected_on_test": sorted({run.name for run in runs if run.values.get("selection_split") == "test"}),
    }
