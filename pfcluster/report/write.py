"""`write_report`: read a study and write its report as HTML, Markdown, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pfcluster.report import budget, page, tables
from pfcluster.report.csv_rows import comparison_row, group_row, run_rows
from pfcluster.report.errors import Notice, ReportError
from pfcluster.report.findings import findings
from pfcluster.report.page_pictures import PagePictures
from pfcluster.report.poker_faces import poker_sentences
from pfcluster.report.rendering import csv_text, latex, markdown, markdown_text
from pfcluster.report.study import Report, read_report
from pfcluster.system.atomic_files import write_atomically

HTML_FILE = "report.html"
DISCLAIMER = (
    "Poker faces are synthetic images. A recognised expression is not a felt emotion. Checkpoints were selected on the "
    "validation split unless a table states otherwise."
)


@dataclass(frozen=True)
class ReportFiles:
    """The files of a report, and its content."""

    html: Path
    markdown: Path
    results_csv: Path
    """One row per run, finished or not; rates in 0..1, times in seconds."""
    summary_csv: Path
    """One row per group: n, mean, std (n - 1) and 95 % interval of each metric."""
    comparisons_csv: Path
    """One row per group except the baseline, and for PF-ViT against the other controls of equal budget: differences
    in percentage points, intervals and tests."""
    latex: Path
    report: Report
    notices: tuple[Notice, ...]


def write_report(study: Path, output: Path | None = None, *, baseline: str | None = None) -> ReportFiles:
    """Write report.html, report.md, three CSV files and table.tex into `output` (default: study/report).

    baseline: name of the group that the others are compared with; None selects the first one whose name contains
    "scratch", else the first one. Files are written atomically. Raises ReportError for a study without finished runs,
    a malformed result.json, an unknown baseline, or a folder that cannot be written.
    """
    study = Path(study)
    report = read_report(study, baseline)
    folder = study / "report" if output is None else Path(output)
    html, picture_notices = page.render(report, PagePictures(folder / HTML_FILE))
    main, notices = tables.main_table(report.groups), (*report.notices, *picture_notices)
    contents = {
        HTML_FILE: html,
        "report.md": report_markdown(report, notices),
        "results.csv": csv_text(run_rows(report)),
        "summary.csv": csv_text([group_row(group, report.budgets.get(group.label)) for group in report.groups]),
        "comparisons.csv": csv_text([comparison_row(one) for one in report.all_comparisons]),
        "table.tex": latex(main) if main else "% no run has a test accuracy\n",
    }
    paths = {name: write_file(folder / name, text) for name, text in contents.items()}
    return ReportFiles(
        html=paths[HTML_FILE],
        markdown=paths["report.md"],
        results_csv=paths["results.csv"],
        summary_csv=paths["summary.csv"],
        comparisons_csv=paths["comparisons.csv"],
        latex=paths["table.tex"],
        report=report,
        notices=notices,
    )


def opening_markdown(title: str, notices: Sequence[Notice], sentences: Sequence[str]) -> str:
    """The head of a report: title, warnings, findings."""
    parts = [f"# {markdown_text(title)}\n"]
    if notices:
        lines = [f"- **{markdown_text(one.name)}** – {markdown_text(one.text)}" for one in notices]
        parts.append("## Warnings\n\n" + "\n".join(lines) + "\n")
    parts.append("## Findings\n\n" + "\n".join(f"- {markdown_text(one)}" for one in sentences) + "\n")
    return "\n".join(parts)


def report_markdown(report: Report, notices: Sequence[Notice]) -> str:
    """The report without its figures, as Markdown."""
    groups = report.groups
    parts = [opening_markdown(report.title, notices, findings(report))]
    recognition = (
        tables.main_table(groups),
        tables.comparison_table(report.comparisons),
        budget.equal_budget_table(report.on_budgets, report.budgets),
        budget.budget_table(groups, report.budgets),
        tables.per_class_table(groups),
    )
    parts += [markdown(table) for table in recognition if table]
    poker = tables.poker_table(groups)
    if poker:
        sentences = [
            f"- {markdown_text(group.title)}: {markdown_text(sentence)}"
            for group in groups
            if group.has_poker_faces
            for sentence in poker_sentences(group)
        ]
        parts += [markdown(poker), "\n".join(sentences) + "\n"]
    mae = tables.mae_table(groups)
    parts += [markdown(mae)] if mae else []
    parts += [markdown(tables.runs_table(report.runs, report.unfinished)), f"{DISCLAIMER}\n"]
    return "\n".join(parts)


def write_file(file: Path, text: str) -> Path:
    """Write a file atomically, creating its folder. Raises ReportError if that fails."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text)
    except OSError as error:
        raise ReportError(f"cannot write {file}: {error.strerror}; use another output folder") from error
    return file
