"""The HTML page: self-contained, autoescaped by jinja2; sections without content are omitted."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pfcluster.report import budget, figures, gan_curves, tables
from pfcluster.report.curves import Metric, curve_of, read_curves
from pfcluster.report.errors import Notice, ReportError
from pfcluster.report.figures import MAX_POINTS, Curve
from pfcluster.report.findings import findings, summed_confusion
from pfcluster.report.formatting import MISSING
from pfcluster.report.groups import RunGroup
from pfcluster.report.page_pictures import PagePictures, Picture, PictureFile
from pfcluster.report.poker_faces import poker_sentences
from pfcluster.report.rendering import Table
from pfcluster.report.results import Run
from pfcluster.report.study import Report

LOSSES = {
    "loss": "Training loss",
    "cls": "Classification, L_cls",
    "rec": "Reconstruction, L_rec",
    "adv": "Adversarial, L_adv",
    "ort": "Orthogonality, L_ort",
    "disc_loss": "Discriminator loss",
}
"""Training metrics that are plotted, and their titles."""
VALIDATION = {"accuracy": "Validation accuracy", "macro_f1": "Validation macro F1"}
"""Metrics of the validation split that are plotted in %, and their titles."""
MAX_GROUPS = 16
"""With more groups, only this many have figures of their own, and a colour in the figures of all."""


def confusion_figures(groups: Sequence[RunGroup]) -> list[str]:
    """A heat map for each group that has a confusion matrix."""
    svgs = []
    for group in groups:
        matrix = summed_confusion(group)
        if matrix:
            seeds = "one seed" if len(group.runs) == 1 else f"{len(group.runs)} seeds, summed"
            svgs.append(figures.plot_confusion(f"{group.title} ({seeds})", group.classes, matrix))
    return svgs


def read_group_curves(
    groups: Sequence[RunGroup], with_panels: Sequence[RunGroup] = ()
) -> dict[Path, dict[Metric, Curve]]:
    """The curves of `curve_figures` by run folder, each file read once; of PF-MAG groups in `with_panels` those of
    `gan_curves.panel_figures` too.
    """
    metrics = [*(("validation", name) for name in VALIDATION), *(("train", name) for name in LOSSES)]
    limit = figures.points_per_curve(sum(len(group.runs) for group in groups))
    curves: dict[Path, dict[Metric, Curve]] = {}
    for group in groups:
        has_panels = group.objective == "pf_mag" and any(group is one for one in with_panels)
        wanted, points = ([*metrics, *gan_curves.METRICS], MAX_POINTS) if has_panels else (metrics, limit)
        curves |= {run.folder: read_curves(run.folder, wanted, points) for run in group.runs}
    return curves


def curve_figures(
    groups: Sequence[RunGroup],
    curves: Mapping[Path, Mapping[Metric, Curve]],
    shown: Collection[str] | None = None,
) -> list[str]:
    """Validation accuracy and macro F1 (in %), then the training metrics of `LOSSES`, as far as logged. `curves`: of
    `read_group_curves`; `shown`: labels of the groups that have a colour and stand in the legend, default all.
    """

    def plot(split: str, metric: str, title: str, unit: str, scale: float = 1) -> str:
        by_label = {
            group.label: [curve_of(curves[run.folder], (split, metric), scale) for run in group.runs]
            for group in groups
        }
        return figures.plot_curves(title, unit, by_label, labelled=shown)

    svgs = [
        *(plot("validation", metric, title, "%", 100) for metric, title in VALIDATION.items()),
        *(plot("train", metric, title, "loss") for metric, title in LOSSES.items()),
    ]
    return [svg for svg in svgs if svg]


def shown_groups(groups: Sequence[RunGroup], baseline: RunGroup | None) -> list[RunGroup]:
    """The groups that have figures of their own: the baseline and those with the highest test accuracy, in order."""
    if len(groups) <= MAX_GROUPS:
        return list(groups)

    def rank(group: RunGroup) -> tuple[bool, float]:
        summary = group.summary("test", "accuracy")
        return group is not baseline, -summary.mean if summary else 0.0

    best = {id(group) for group in sorted(groups, key=rank)[:MAX_GROUPS]}
    return [group for group in groups if id(group) in best]


def image_grids(groups: Sequence[RunGroup], page: PagePictures) -> tuple[list[Picture], list[Notice]]:
    """Image grids of each group's first seed that has any; a notice for each unreadable file."""
    runs = [next((run for run in group.runs if run.values.get("pictures")), None) for group in groups]
    return _pictures(
        (
            PictureFile(run.folder, str(file), f"{group.label}, seed {run.seed}: {kind}")
            for group, run in zip(groups, runs, strict=True)
            if run is not None
            for kind, file in run.values["pictures"].items()
        ),
        page,
    )


def _pictures(files: Iterable[PictureFile], page: PagePictures) -> tuple[list[Picture], list[Notice]]:
    """The pictures of a page; a notice for each unreadable file."""
    pictures, notices = [], []
    for file in files:
        try:
            pictures.append(page.picture(file))
        except ReportError as error:
            notices.append(Notice("picture omitted", str(error)))
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


def render(report: Report, pictures: PagePictures) -> tuple[str, list[Notice]]:
    """HTML of the page, and notices about pictures that could not be read and groups that are not shown. Pictures that
    the page has no room for are written beside it.
    """
    context, notices = _context(report, pictures)
    html = render_template("page.html.j2", context)
    pictures.remove_outdated()
    return html, notices


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


def _context(report: Report, page: PagePictures) -> tuple[dict[str, Any], list[Notice]]:
    mae = [group for group in report.groups if group.objective == "mae"]
    others = [group for group in report.groups if group.objective != "mae"]
    shown, shown_mae = shown_groups(others, report.baseline), shown_groups(mae, None)
    mae_pictures, mae_notices = image_grids(shown_mae, page)
    pictures, picture_notices = image_grids(shown, page)
    study_pictures, study_notices = _pictures(report.pictures, page)
    timelines, timeline_notices = gan_curves.grid_timelines(shown, page)
    notices = [*mae_notices, *picture_notices, *study_notices, *timeline_notices]
    if len(shown) + len(shown_mae) < len(report.groups):
        notices.append(_not_shown(len(shown) + len(shown_mae), len(report.groups)))
    common, differing = config_tables(report.groups)
    curves, mae_curves = read_group_curves(others, shown), read_group_curves(mae)
    return {
        "report": report,
        "notices": [*report.notices, *notices],
        "findings": findings(report),
        "main": tables.main_table(others),
        "comparison": tables.comparison_table(report.comparisons),
        "on_budgets": budget.equal_budget_table(report.on_budgets, report.budgets),
        "budget": budget.budget_table(report.groups, report.budgets),
        "per_class": tables.per_class_table(others),
        "confusions": confusion_figures(shown),
        "curves": curve_figures(others, curves, {group.label for group in shown}),
        "gan_panels": gan_curves.panel_figures(shown, curves),
        "grid_timelines": timelines,
        "poker": tables.poker_table(others),
        "poker_findings": [(group.title, poker_sentences(group)) for group in others if group.has_poker_faces],
        "pictures": pictures,
        "study_pictures": study_pictures,
        "mae": tables.mae_table(mae),
        "mae_curves": curve_figures(mae, mae_curves, {group.label for group in shown_mae}),
        "mae_pictures": mae_pictures,
        "runs": tables.runs_table(report.runs, report.unfinished),
        "common": common,
        "differing": differing,
        **provenance(report.runs),
    }, notices


def _not_shown(shown: int, groups: int) -> Notice:
    return Notice(
        "figures of some groups",
        f"{shown} of {groups} groups have figures of their own: the baseline and those with the highest test accuracy."
        " All are in the tables. For the others, write reports of parts of the study: `pfcluster report STUDY/FOLDER`.",
    )


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
