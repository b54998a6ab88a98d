"""`write_report`: read a study, compute, and write the page, the tables and the CSV files."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pfcluster.report import page, tables
from pfcluster.report.findings import Comparison, choose_baseline, compare, poker_sentences
from pfcluster.report.groups import Group, group_runs
from pfcluster.report.page import Report
from pfcluster.report.resampling import Resampled
from pfcluster.report.results import Notice, ReportError, Run, read_runs
from pfcluster.report.saved_pictures import study_pictures
from pfcluster.report.statistics import Summary
from pfcluster.runs.atomic_files import write_atomically

if TYPE_CHECKING:
    from rich.table import Table as RichTable


@dataclass(frozen=True)
class ReportFiles:
    """Where a report was written, and the report itself."""

    html: Path
    markdown: Path
    results_csv: Path
    """A row for each run, finished or not; shares between 0 and 1, times in seconds."""
    summary_csv: Path
    """A row for each group: n, mean, std (n - 1) and 95 % interval of each figure."""
    comparisons_csv: Path
    """A row for each group but the baseline: differences in percentage points, intervals, tests seed by seed."""
    latex: Path
    report: Report
    notices: tuple[Notice, ...]


def write_report(study: Path, output: Path | None = None, *, baseline: str | None = None) -> ReportFiles:
    """Write report.html, report.md, three CSV files and table.tex into `output` (default: study/report).

    baseline: name of the group that the others are tested against; None takes the first named "scratch", else the
    first. Each file is written aside and moved into place. Raises ReportError for a study without finished runs, a
    malformed result.json, an unknown baseline, or a folder that cannot be written.
    """
    study = Path(study)
    report = read_report(study, baseline)
    html, picture_notices = page.render(report)
    main, notices = tables.main_table(report.groups), (*report.notices, *picture_notices)
    contents = {
        "report.html": html,
        "report.md": report_markdown(report, notices),
        "results.csv": tables.csv_text(run_rows(report)),
        "summary.csv": tables.csv_text([group_row(group) for group in report.groups]),
        "comparisons.csv": tables.csv_text([comparison_row(one) for one in report.comparisons]),
        "table.tex": tables.latex(main) if main else "% no run has a test accuracy\n",
    }
    folder = study / "report" if output is None else Path(output)
    paths = {name: write_file(folder / name, text) for name, text in contents.items()}
    return ReportFiles(
        html=paths["report.html"],
        markdown=paths["report.md"],
        results_csv=paths["results.csv"],
        summary_csv=paths["summary.csv"],
        comparisons_csv=paths["comparisons.csv"],
        latex=paths["table.tex"],
        report=report,
        notices=notices,
    )


def read_report(study: Path, baseline: str | None = None) -> Report:
    """Read a study and compute its findings. Raises ReportError as `write_report`."""
    runs, unfinished, notices = read_runs(study)
    groups, group_notices = group_runs(runs)
    reference = choose_baseline(groups, baseline)
    drawn, picture_notices = study_pictures(study)
    return Report(
        title=study.resolve().name,
        runs=tuple(runs),
        unfinished=tuple(unfinished),
        groups=tuple(groups),
        baseline=reference,
        comparisons=tuple(compare(groups, reference)),
        notices=(*group_notices, *notices, *picture_notices),
        pictures=tuple(drawn),
    )


DROPPED = ("parameters at test", "objective", "samples", "chosen on", "mean class accuracy %", "macro F1 %")
"""Columns of the main table that a narrow terminal leaves to the page, the first first."""


def main_table(files: ReportFiles, width: int | None = None) -> RichTable:
    """The main table for a terminal of so many columns (default: this one's); the pre-training runs' where nothing was
    classified. At 80 columns the two intervals still stand beside the accuracy.
    """
    from rich.console import Console

    report = files.report
    table = tables.main_table(report.groups) or tables.mae_table(report.groups) or tables.runs_table(report.runs, ())
    on_test = any(group.chosen_on == "test" for group in report.groups)
    droppable = [name for name in DROPPED if not (on_test and name == "chosen on")]
    wanted = width or shutil.get_terminal_size().columns
    ruler = Console(width=10_000)
    for dropped in range(2, len(droppable) + 1):
        shown = for_terminal(table, droppable[:dropped])
        if ruler.measure(shown).maximum <= wanted:
            break
    return shown


def for_terminal(table: tables.Table, left_out: Container[str] = (), *, tight: bool = False) -> RichTable:
    """A table for the terminal, without some of its columns; heads break rather than widen a column. tight: without a
    frame.
    """
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    frame = box.SIMPLE_HEAD if tight else box.HEAVY_HEAD
    shown = RichTable(title=Text(table.caption), caption=Text(table.note), box=frame, pad_edge=not tight)
    kept = [index for index, column in enumerate(table.columns) if column not in left_out]
    for index in kept:
        justify: Literal["left", "right"] = "left" if index < table.labels else "right"
        widest = max((len(row[index]) for row in table.rows), default=0)
        head = textwrap.fill(table.columns[index], max(widest, 8), break_long_words=False)
        shown.add_column(Text(head), justify=justify, no_wrap=True)
    for row in table.rows:
        shown.add_row(*(Text(row[index]) for index in kept))
    return shown


def opening_markdown(title: str, notices: Sequence[Notice], findings: Sequence[str]) -> str:
    """A report's head: its title, what is to be known first, its findings."""
    escape = tables.markdown_text
    parts = [f"# {escape(title)}\n"]
    if notices:
        lines = [f"- **{escape(one.name)}** – {escape(one.text)}" for one in notices]
        parts.append("## Before you trust the tables\n\n" + "\n".join(lines) + "\n")
    parts.append("## Findings\n\n" + "\n".join(f"- {escape(one)}" for one in findings) + "\n")
    return "\n".join(parts)


def report_markdown(report: Report, notices: Sequence[Notice]) -> str:
    """The report without its figures, as Markdown."""
    groups, escape = report.groups, tables.markdown_text
    parts = [opening_markdown(report.title, notices, page.findings(report))]
    for table in (
        tables.main_table(groups),
        tables.comparison_table(report.comparisons),
        tables.per_class_table(groups),
    ):
        parts += [tables.markdown(table)] if table else []
    poker = tables.poker_table(groups)
    if poker:
        sentences = [
            f"- {escape(group.title)}: {escape(one)}"
            for group in groups
            if group.has_poker_faces
            for one in poker_sentences(group)
        ]
        parts += [tables.markdown(poker), "\n".join(sentences) + "\n"]
    mae = tables.mae_table(groups)
    parts += [tables.markdown(mae)] if mae else []
    parts.append(tables.markdown(tables.runs_table(report.runs, report.unfinished)))
    parts.append(
        "Poker faces are synthetic images. An expression that appears is not an emotion that is felt. Checkpoints were "
        "chosen on validation faces, but where a table says otherwise.\n"
    )
    return "\n".join(parts)


def run_rows(report: Report) -> list[Mapping[str, object]]:
    """results.csv: a row for each run, unfinished ones with little more than their status."""
    rows: list[Mapping[str, object]] = [_run_row(run) for run in report.runs]
    for one in report.unfinished:
        rows.append({"folder": one.place, "name": one.name, "seed": one.seed, "status": one.status})
    return rows


def _run_row(run: Run) -> dict[str, object]:
    row: dict[str, object] = {"folder": run.place, "name": run.name, "seed": run.seed, "status": run.status}
    row |= {"objective": run.objective, "finished": run.finished_at.isoformat(timespec="seconds")}
    row |= {name: run.values.get(name) for name in ("steps", "seconds", "images_per_second", "chosen_on", "git_commit")}
    row |= {".".join(path): run.number(*path) for path in figure_paths((run,))}
    return row | {"warning": run.values.get("warning"), "command": run.values.get("command")}


def figure_paths(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Paths of every figure that any of these runs has, in a fixed order."""
    fixed = [("parameters", "train"), ("parameters", "test"), ("best", "step"), ("best", "value")]
    found: dict[tuple[str, ...], None] = dict.fromkeys(fixed)
    for run in runs:
        for part in ("validation", "test", "reconstruction"):
            found |= dict.fromkeys(
                (part, name) for name in run.values.get(part) or {} if run.number(part, name) is not None
            )
        for name in (run.values.get("test") or {}).get("per_class") or {}:
            found["test", "per_class", name] = None
        for row, measures in ((run.values.get("poker") or {}).get("rows") or {}).items():
            found |= dict.fromkeys(("poker", "rows", row, name) for name in measures or {})
    return list(found)


def group_row(group: Group) -> dict[str, object]:
    """summary.csv: a group's figures as NAME.n, NAME.mean, NAME.std, NAME.low, NAME.high (95 % interval over seeds),
    and the accuracy's interval over seeds and samples.
    """
    row: dict[str, object] = {"name": group.label, "objective": group.objective, "seeds": len(group.runs)}
    row |= {"chosen_on": group.chosen_on, "comparable": group.comparable}
    for path in figure_paths(group.runs):
        summary = group.summary(*path)
        if summary is not None:
            row |= {f"{'.'.join(path)}.{name}": getattr(summary, name) for name in Summary.__dataclass_fields__}
    over_samples, why_not = group.over_samples
    row |= {"no_answers": why_not}
    return row | (_bootstrap_cells("test.accuracy", over_samples, 0.01) if over_samples else {})


def comparison_row(one: Comparison) -> dict[str, object]:
    """comparisons.csv: a group against the baseline. Differences in percentage points; McNemar's test of each seed, p
    before and after correction for all seeds of all rows.
    """
    row: dict[str, object] = {"name": one.group.label, "baseline": one.baseline.label}
    row |= {"not_compared": one.why_not, "no_answers": one.no_answers, "seeds": " ".join(map(str, one.seeds))}
    for name, test in (("accuracy", one.accuracy), ("mean_class_accuracy", one.mean_class), ("macro_f1", one.macro_f1)):
        if test:
            row |= {f"{name}.{key}": getattr(test.difference, key) for key in Summary.__dataclass_fields__}
            row |= {f"{name}.t_p": test.t_p, f"{name}.wilcoxon_p": test.wilcoxon_p}
    row |= {"accuracy.holm_p": one.holm_p}
    if one.answers:
        row |= _bootstrap_cells("accuracy", one.answers.difference)
        for seed, nets, p in zip(one.answers.seeds, one.answers.tests, one.answers.holm_p, strict=True):
            cells = {"gained": nets.gained, "lost": nets.lost, "p": nets.p, "holm_p": p}
            row |= {f"mcnemar.seed-{seed}.{key}": value for key, value in cells.items()}
    return row


def _bootstrap_cells(name: str, found: Resampled, scale: float = 1) -> dict[str, object]:
    low, high = scale * found.low, scale * found.high
    return {"samples": found.samples, f"{name}.seeds_and_samples.low": low, f"{name}.seeds_and_samples.high": high}


def write_file(file: Path, text: str) -> Path:
    """Write aside and move into place. Raises ReportError where that cannot be."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text)
    except OSError as error:
        raise ReportError(f"cannot write {file}: {error.strerror}; give another output folder") from error
    return file
