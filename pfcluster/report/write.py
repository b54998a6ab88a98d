"""`write_report`: read a study, compute, and write the page, the tables and the CSV files."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pfcluster.files import write_atomically
from pfcluster.report import page, tables
from pfcluster.report.drawn import study_pictures
from pfcluster.report.findings import choose_baseline, compare, poker_sentences
from pfcluster.report.groups import Group, group_runs
from pfcluster.report.page import Report
from pfcluster.report.results import Notice, ReportError, Run, read_runs
from pfcluster.report.statistics import Summary

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
    latex: Path
    report: Report
    notices: tuple[Notice, ...]


def write_report(study: Path, output: Path | None = None, *, baseline: str | None = None) -> ReportFiles:
    """Write report.html, report.md, results.csv, summary.csv and table.tex into `output` (default: study/report).

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
        "table.tex": tables.latex(main) if main else "% no run has a test accuracy\n",
    }
    folder = study / "report" if output is None else Path(output)
    paths = {name: write_file(folder / name, text) for name, text in contents.items()}
    return ReportFiles(
        html=paths["report.html"],
        markdown=paths["report.md"],
        results_csv=paths["results.csv"],
        summary_csv=paths["summary.csv"],
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


def main_table(files: ReportFiles) -> RichTable:
    """The main table for a terminal of 80 columns; the pre-training runs' where nothing was classified."""
    report = files.report
    table = tables.main_table(report.groups) or tables.mae_table(report.groups) or tables.runs_table(report.runs, ())
    on_test = any(group.chosen_on == "test" for group in report.groups)
    return for_terminal(table, ("objective", "parameters at test", *(() if on_test else ("chosen on",))))


def for_terminal(table: tables.Table, left_out: Container[str] = (), *, tight: bool = False) -> RichTable:
    """A table for the terminal, without some of its columns; tight: without a frame."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    frame = box.SIMPLE_HEAD if tight else box.HEAVY_HEAD
    shown = RichTable(title=Text(table.caption), caption=Text(table.note), box=frame, pad_edge=not tight)
    kept = [index for index, column in enumerate(table.columns) if column not in left_out]
    for index in kept:
        justify: Literal["left", "right"] = "left" if index < table.labels else "right"
        shown.add_column(Text(table.columns[index]), justify=justify, no_wrap=True)
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
    """summary.csv: a group's figures as NAME.n, NAME.mean, NAME.std, NAME.low, NAME.high (95 % interval)."""
    row: dict[str, object] = {"name": group.label, "objective": group.objective, "seeds": len(group.runs)}
    row |= {"chosen_on": group.chosen_on, "comparable": group.comparable}
    for path in figure_paths(group.runs):
        summary = group.summary(*path)
        if summary is not None:
            row |= {f"{'.'.join(path)}.{name}": getattr(summary, name) for name in Summary.__dataclass_fields__}
    return row


def write_file(file: Path, text: str) -> Path:
    """Write aside and move into place. Raises ReportError where that cannot be."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, text)
    except OSError as error:
        raise ReportError(f"cannot write {file}: {error.strerror}; give another output folder") from error
    return file
