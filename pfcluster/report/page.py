"""The HTML page: everything inlined, every string escaped (jinja2's autoescape), a section only for what there is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pfcluster.report import figures, gan_curves, tables
from pfcluster.report.errors import Notice, ReportError
from pfcluster.report.findings import Comparison, comparison_sentence, poker_sentences
from pfcluster.report.formatting import MISSING, count, mean_std, number
from pfcluster.report.groups import RunGroup
from pfcluster.report.results import Run, UnfinishedRun
from pfcluster.report.statistics import sum_matrices
from pfcluster.runs.folder import metric_series, read_metrics

TERMS = {
    "loss": "Training loss",
    "cls": "Classification, L_cls",
    "rec": "Reconstruction, L_rec",
    "adv": "Adversarial, L_adv",
    "ort": "Orthogonality, L_ort",
    "discriminator": "Discriminator's loss",
}
"""Training metrics that are drawn, and their titles."""


@dataclass(frozen=True)
class Picture:
    """An image of a run, inlined."""

    uri: str
    caption: str


@dataclass(frozen=True)
class Report:
    """All that a report shows, read and computed; `write.py` puts it into files."""

    title: str
    runs: tuple[Run, ...]
    unfinished: tuple[UnfinishedRun, ...]
    groups: tuple[RunGroup, ...]
    baseline: RunGroup | None
    comparisons: tuple[Comparison, ...]
    notices: tuple[Notice, ...]
    pictures: tuple[Picture, ...] = ()
    """What `gallery.write_pictures` left in the study's folder."""


def findings(report: Report) -> list[str]:
    """The study in sentences."""
    sentences = [_score(group) for group in report.groups if group.classifies]
    sentences += map(comparison_sentence, report.comparisons)
    for group in report.groups:
        if group.has_poker_faces:
            sentences.append(f"{group.label}: {' '.join(poker_sentences(group)[:2])}")
    return sentences + cautions(report)


def _score(group: RunGroup) -> str:
    accuracy = group.summary("test", "accuracy", scale=100)
    assert accuracy is not None
    if not group.comparable:
        return f"{group.label} has no score: its runs differ in more than their seed."
    seeds = f"{accuracy.n} seeds" if accuracy.n > 1 else "one seed: no spread, no test"
    figure = number(accuracy.mean, 2) if accuracy.n == 1 else mean_std(accuracy, 2)
    optimistic = (
        "; its checkpoint was chosen on the test split, so this is optimistic" if group.selection_split == "test" else ""
    )
    sizes = set(group.by_seed("test", "n").values())
    faces = f"{count(sizes.pop())} test faces" if len(sizes) == 1 else "test faces"
    return f"{group.label} recognises {figure} % of the {faces} ({seeds}{optimistic})."


def cautions(report: Report) -> list[str]:
    """What the number of seeds allows to be seen; what always guessing would score."""
    sentences = []
    pairs = sorted({one.accuracy.difference.n for one in report.comparisons if one.accuracy})
    if any(1 < n < 5 for n in pairs):
        few = min(n for n in pairs if n > 1)
        sentences.append(
            f"With n = {few} only large differences can be seen; finding none does not show that there is none."
        )
    guesses = {}
    for group in report.groups:
        matrix = summed_confusion(group)
        total = sum(map(sum, matrix)) if matrix else 0
        if matrix and total:
            most = max(range(len(matrix)), key=lambda index: sum(matrix[index]))
            dataset = group.runs[0].dataset or "the test split"
            guesses[dataset] = (group.classes[most], 100 * sum(matrix[most]) / total)
    for dataset, (name, share) in guesses.items():
        sentences.append(f"Answering “{name}” every time would score {number(share, 2)} % on {dataset}.")
    return sentences


def summed_confusion(group: RunGroup) -> list[list[float]] | None:
    """Counts over all seeds of a group; None where no run has a matrix of the group's classes."""
    found = [(run.values.get("test") or {}).get("confusion") for run in group.runs if run.classes == group.classes]
    matrices = [matrix for matrix in found if matrix]
    return sum_matrices(matrices) if matrices else None


def confusion_figures(groups: Sequence[RunGroup]) -> list[str]:
    """A heat map for each group that has a confusion matrix."""
    drawn = []
    for group in groups:
        matrix = summed_confusion(group)
        if matrix:
            seeds = "one seed" if len(group.runs) == 1 else f"{len(group.runs)} seeds, summed"
            drawn.append(figures.confusion(f"{group.title} ({seeds})", group.classes, matrix))
    return drawn


def curve_figures(groups: Sequence[RunGroup]) -> list[str]:
    """Accuracy and macro F1 on validation (in %), then each training metric of `TERMS`: what any group has of them."""
    read = {run.folder: read_metrics(run.folder) for group in groups for run in group.runs}

    def draw(split: str, metric: str, title: str, unit: str, scale: float = 1) -> str:
        by_label = {}
        for group in groups:
            seeds = [metric_series(read[run.folder], split, metric) for run in group.runs]
            by_label[group.label] = [[(step, scale * value) for step, value in curve] for curve in seeds]
        return figures.curves(title, unit, by_label)

    found = [
        draw("validation", "accuracy", "Validation accuracy", "%", 100),
        draw("validation", "macro_f1", "Validation macro F1", "%", 100),
        *(draw("train", metric, title, "loss") for metric, title in TERMS.items()),
    ]
    return [figure for figure in found if figure]


def pictures(groups: Sequence[RunGroup]) -> tuple[list[Picture], list[Notice]]:
    """Picture grids of each group's first seed; a notice for each that cannot be shown."""
    shown, notices = [], []
    for group in groups:
        run = next((run for run in group.runs if run.values.get("pictures")), None)
        for kind, relative in ((run.values["pictures"] or {}) if run else {}).items():
            assert run is not None
            try:
                uri = figures.picture(run.folder, str(relative))
            except ReportError as error:
                notices.append(Notice("picture left out", str(error)))
                continue
            shown.append(Picture(uri, f"{group.label}, seed {run.seed}: {kind}"))
    return shown, notices


def config_tables(groups: Sequence[RunGroup]) -> tuple[list[tuple[str, str]], tables.Table | None]:
    """The fields that all groups share, and a table of those in which groups differ."""
    configured = [group for group in groups if group.runs[0].config]
    names = list(dict.fromkeys(name for group in configured for name in group.runs[0].config))
    common, rows = [], []
    for name in names:
        values = [_shown(group.runs[0].config.get(name)) for group in configured]
        if name in ("seed", "name"):
            continue
        if len(set(values)) == 1:
            common.append((name, values[0]))
        else:
            rows.append((name, *values))
    columns = ("field", *(group.label for group in configured))
    note = "Each group's first seed. Fields that all groups share are below."
    return common, tables.Table("Where the configs differ", columns, tuple(rows), note) if rows else None


def _shown(value: Any) -> str:
    return MISSING if value is None else value if isinstance(value, str) else json.dumps(value)


def render(report: Report) -> tuple[str, list[Notice]]:
    """The page's HTML, and the notices that came up while its pictures were gathered."""
    context, notices = _context(report)
    return render_template("page.html.j2", context), notices


def render_template(name: str, context: Mapping[str, Any], package: str = "pfcluster.report") -> str:
    """A page from a template of a package, which may use `shared.html.j2`. Every string is escaped."""
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
    mae_pictures, mae_notices = pictures(mae)
    grids, notices = pictures(others)
    common, differing = config_tables(report.groups)
    poker = [(group.title, poker_sentences(group)) for group in others if group.has_poker_faces]
    strips, strip_notices = gan_curves.strips(others)
    notices = [*mae_notices, *notices, *strip_notices]
    return {
        "report": report,
        "notices": [*report.notices, *notices],
        "findings": findings(report),
        "main": tables.main_table(others),
        "comparison": tables.comparison_table(report.comparisons),
        "per_class": tables.per_class_table(others),
        "confusions": confusion_figures(others),
        "curves": curve_figures(others),
        "game": gan_curves.answers(others),
        "strips": strips,
        "poker": tables.poker_table(others),
        "poker_findings": poker,
        "pictures": grids,
        "mae": tables.mae_table(mae),
        "mae_curves": curve_figures(mae),
        "mae_pictures": mae_pictures,
        "runs": tables.runs_table(report.runs, report.unfinished),
        "common": common,
        "differing": differing,
        **provenance(report.runs),
    }, notices


def provenance(runs: Sequence[Run]) -> dict[str, Any]:
    """Commands, versions and commits of the runs, each once; datasets; the days between which they finished."""
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
        "on_test": sorted({run.name for run in runs if run.values.get("selection_split") == "test"}),
    }
