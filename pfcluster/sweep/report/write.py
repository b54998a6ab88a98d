"""`write_sweep_report`: read a sweep, compute, and write the page, the Markdown, the CSV files and the winner."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfcluster.report import rendering
from pfcluster.report.errors import Notice, ReportError
from pfcluster.report.page import render_template
from pfcluster.report.terminal import rich_table
from pfcluster.report.write import opening_markdown, write_file
from pfcluster.sweep.report import figures as figures
from pfcluster.sweep.report import tables as sweep_tables
from pfcluster.sweep.report.data import SweepData, read_sweep
from pfcluster.sweep.report.findings import beats, findings, notices, verdict
from pfcluster.sweep.report.importance import importances
from pfcluster.sweep.report.preset import Taken, taken, without_code

if TYPE_CHECKING:
    from rich.table import Table as RichTable

TOP = 12
"""Trials that the terminal shows where nothing is confirmed."""


@dataclass(frozen=True)
class SweepFiles:
    """Where a sweep's report was written, and what it says."""

    html: Path
    markdown: Path
    trials_csv: Path
    """A row for each trial of the search."""
    confirmed_csv: Path
    """A row for each trial on fresh seeds."""
    winner: Path | None
    """The winner's preset as a Python file; None where there is none."""
    data: SweepData
    findings: tuple[str, ...]
    notices: tuple[Notice, ...]


@dataclass(frozen=True)
class Content:
    """All that the page and the Markdown say, computed once."""

    data: SweepData
    findings: list[str]
    notices: list[Notice]
    confirmation: rendering.Table | None
    values: rendering.Table | None
    test: rendering.Table | None
    importance: rendering.Table | None
    no_importance: str
    pareto: rendering.Table | None
    not_measured: list[str]
    lineage: rendering.Table | None
    trials: rendering.Table
    taken: Taken
    no_code: str
    advice: str
    """What to think of the preset."""


def write_sweep_report(folder: Path) -> SweepFiles:
    """Write report.html, report.md, trials.csv, confirmed.csv and, where there is a winner, winner.py into
    FOLDER/report. Raises ConfigError for a folder without a sweep, ReportError for one without trials.
    """
    content = content_of(read_sweep(Path(folder)))
    data = content.data
    texts = {
        "report.html": render_template("page.html.j2", _context(content), "pfcluster.sweep.report"),
        "report.md": markdown(content),
        "trials.csv": rendering.csv_text(sweep_tables.trial_rows(data)),
        "confirmed.csv": rendering.csv_text(sweep_tables.confirmed_rows(data)),
    }
    if content.taken.module:
        texts["winner.py"] = content.taken.module
    paths = {name: write_file(data.folder / "report" / name, text) for name, text in texts.items()}
    return SweepFiles(
        html=paths["report.html"],
        markdown=paths["report.md"],
        trials_csv=paths["trials.csv"],
        confirmed_csv=paths["confirmed.csv"],
        winner=paths.get("winner.py"),
        data=data,
        findings=tuple(content.findings),
        notices=tuple(content.notices),
    )


def content_of(data: SweepData) -> Content:
    """All tables and sentences of a report."""
    importance, no_importance = None, ""
    try:
        importance = sweep_tables.importance_table(importances(data))
    except ReportError as error:
        no_importance = f"Not computed: {error}."
    return Content(
        data=data,
        findings=findings(data),
        notices=notices(data),
        confirmation=sweep_tables.confirmation_table(data),
        values=sweep_tables.values_table(data),
        test=sweep_tables.test_table(data),
        importance=importance,
        no_importance=no_importance,
        pareto=sweep_tables.pareto_table(data),
        not_measured=_not_measured(data),
        lineage=sweep_tables.lineage_table(data),
        trials=sweep_tables.trials_table(data),
        taken=taken(data),
        no_code=without_code(data),
        advice=_advice(data),
    )


def _not_measured(data: SweepData) -> list[str]:
    """Which figures of poker faces there are not, and why."""
    if data.spec.config.objective != "pf_mag":
        return []
    whole = [row for row in data.rows if row.state == "whole"]
    if not whole:
        return ["No trial is whole yet, so there are no poker faces to judge."]
    reasons = {
        "neutral_rate": "neutrality was not measured: no judge",
        "identity_cosine": "identity was not measured: no recognition net (pf_mag.identity_net)",
        "mse_inside": "the distance to the truth is not known: these faces have no true neutral face beside them",
    }
    known = {name for row in whole for name in row.face}
    return [f"{words[0].upper()}{words[1:]}." for name, words in reasons.items() if name not in known]


def _advice(data: SweepData) -> str:
    if data.best is None:
        return ""
    if data.winner is None:
        return f"{data.best.trial.name} is the search's best and is not confirmed: do not rely on it yet."
    if beats(data):
        return verdict(data)
    return "These values are not better than the baseline's as far as these seeds tell."


def _context(content: Content) -> dict[str, Any]:
    data = content.data
    names = sweep_tables.short_names(data.spec.space)
    states = Counter(row.state for row in data.rows)
    titles = {"generation": "whole in their generation", "running": "not over", "stopped": "stopped early"}
    return {
        "content": content,
        "data": data,
        "title": data.folder.resolve().name,
        "heading": heading(data),
        "states": [f"{count} {titles.get(state, state)}" for state, count in states.items()],
        "stopped": states["stopped"],
        "not_drawn": sum(row.score is None for row in data.rows),
        "parallel": figures.parallel_coordinates(data, names),
        "curves": figures.learning_curves(data),
        "fronts": figures.pareto(data),
    }


def heading(data: SweepData) -> str:
    """What the report is called."""
    name = data.folder.resolve().name
    return "Sweep" if name == "sweep" else f"Sweep {name}"


def markdown(content: Content) -> str:
    """The report without its figures."""
    escape = rendering.markdown_text
    parts = [opening_markdown(heading(content.data), content.notices, content.findings)]
    shown = (content.confirmation, content.values, content.test, content.importance, content.pareto, content.trials)
    parts += [rendering.markdown(table) for table in shown if table is not None]
    if content.no_importance:
        parts.append(f"## Importance\n\n{escape(content.no_importance)}\n")
    parts += [f"{escape(sentence)}\n" for sentence in content.not_measured]
    parts.append("## Take it away\n")
    parts += [f"{escape(words)}\n" for words in (content.advice, content.no_code) if words]
    parts += [rendering.markdown(content.lineage)] if content.lineage else []
    if content.taken.code:
        parts.append(_fenced(content.taken.code, "python"))
        parts.append(_fenced("\n".join(content.taken.commands), "sh"))
    if content.data.command:
        parts += ["The whole sweep again:\n", _fenced(content.data.command, "sh")]
    return "\n".join(parts)


def _fenced(text: str, language: str) -> str:
    fence = "```" if "```" not in text else "`````"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def terminal_table(data: SweepData) -> RichTable:
    """The main table for a terminal of 80 columns: what is confirmed, else the best of the search."""
    table = sweep_tables.confirmation_table(data)
    if table is not None and len(data.confirmed) > 1:
        columns = ("trial", "search", "fresh seeds", "difference", "its 95 % interval", "Holm p")
        kept = [table.columns.index(name) for name in columns]
        brief = tuple(tuple(row[index] for index in kept) for row in table.rows)
        return rich_table(rendering.Table(f"{table.caption}: {data.spec.metric}", columns, brief), tight=True)
    table = sweep_tables.trials_table(data)
    order = [*(row.trial.number for row in data.ranked), *(row.trial.number for row in data.rows)]
    rows = tuple(table.rows[number] for number in list(dict.fromkeys(order))[:TOP])
    names = sweep_tables.short_names(data.spec.space).values()
    return rich_table(
        _narrow(rendering.Table(table.caption, table.columns, rows, "", table.labels)), ("time", *names), tight=True
    )


def _narrow(table: rendering.Table, width: int = 34) -> rendering.Table:
    """Long cells cut."""
    cut = tuple(tuple(cell if len(cell) <= width else f"{cell[: width - 1]}…" for cell in row) for row in table.rows)
    return rendering.Table(table.caption, table.columns, cut, table.note, table.labels)
