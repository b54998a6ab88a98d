"""`write_sweep_report`: read a sweep and write its report as HTML, Markdown and CSV, and the winner as JSON."""

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
from pfcluster.sweep.report import figures, tables
from pfcluster.sweep.report.csv_rows import confirmed_rows, trial_rows
from pfcluster.sweep.report.data import SweepData, read_sweep
from pfcluster.sweep.report.findings import conclusion, findings
from pfcluster.sweep.report.importance import importances
from pfcluster.sweep.report.metrics import metric_title
from pfcluster.sweep.report.notices import notices
from pfcluster.sweep.report.pareto import pareto_figures
from pfcluster.sweep.report.winner import WINNER_FILE, Winner, no_winner_reason, winner_of

if TYPE_CHECKING:
    from rich.table import Table as RichTable

MAX_TERMINAL_TRIALS = 12
"""Trials that the terminal shows if nothing is confirmed."""


@dataclass(frozen=True)
class SweepFiles:
    """The files of a sweep's report, and its content."""

    html: Path
    markdown: Path
    trials_csv: Path
    """One row for each trial of the search."""
    confirmed_csv: Path
    """One row for each trial on fresh seeds."""
    winner: Path | None
    """winner.json, a file of overrides; None if there is no winner."""
    data: SweepData
    findings: tuple[str, ...]
    notices: tuple[Notice, ...]


@dataclass(frozen=True)
class Content:
    """The content that the page and the Markdown file share."""

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
    winner: Winner | None
    no_winner: str
    conclusion: str
    """Whether the winner should be used."""


def write_sweep_report(folder: Path) -> SweepFiles:
    """Write report.html, report.md, trials.csv, confirmed.csv and, if there is a winner, winner.json into
    FOLDER/report. Raises ConfigError for a folder without a sweep, ReportError for one without trials.
    """
    content = content_of(read_sweep(Path(folder)))
    data = content.data
    texts = {
        "report.html": render_template("page.html.j2", _context(content), "pfcluster.sweep.report"),
        "report.md": markdown(content),
        "trials.csv": rendering.csv_text(trial_rows(data)),
        "confirmed.csv": rendering.csv_text(confirmed_rows(data)),
    }
    if content.winner is not None:
        texts[WINNER_FILE] = content.winner.to_json()
    paths = {name: write_file(data.folder / "report" / name, text) for name, text in texts.items()}
    return SweepFiles(
        html=paths["report.html"],
        markdown=paths["report.md"],
        trials_csv=paths["trials.csv"],
        confirmed_csv=paths["confirmed.csv"],
        winner=paths.get(WINNER_FILE),
        data=data,
        findings=tuple(content.findings),
        notices=tuple(content.notices),
    )


def content_of(data: SweepData) -> Content:
    """All tables and sentences of a report."""
    importance, no_importance = None, ""
    try:
        importance = tables.importance_table(importances(data))
    except ReportError as error:
        no_importance = f"Not computed: {error}."
    return Content(
        data=data,
        findings=findings(data),
        notices=notices(data),
        confirmation=tables.confirmation_table(data),
        values=tables.values_table(data),
        test=tables.test_table(data),
        importance=importance,
        no_importance=no_importance,
        pareto=tables.pareto_table(data),
        not_measured=_not_measured(data),
        lineage=tables.lineage_table(data),
        trials=tables.trials_table(data),
        winner=winner_of(data),
        no_winner=no_winner_reason(data),
        conclusion=_conclusion(data),
    )


def _not_measured(data: SweepData) -> list[str]:
    """Which metrics of poker faces are missing, and why."""
    if data.spec.config.objective != "pf_mag":
        return []
    completed = [row for row in data.rows if row.state == "completed"]
    if not completed:
        return ["No trial is completed yet, so no poker faces were evaluated."]
    reasons = {
        "neutral_rate": "The neutral rate was not measured: the sweep has no judge.",
        "identity_cosine": "Identity cosine was not measured: no identity net (pf_mag.identity_net).",
        "mse_inside": "MSE inside was not measured: the dataset has no true neutral faces.",
    }
    measured = {name for row in completed for name in row.poker_face}
    return [reason for name, reason in reasons.items() if name not in measured]


def _conclusion(data: SweepData) -> str:
    if data.best is None:
        return ""
    if data.winner is None:
        return f"{data.best.trial.name} is the best of the search, but it is not confirmed on fresh seeds."
    return conclusion(data)


def _context(content: Content) -> dict[str, Any]:
    data = content.data
    names = tables.short_names(data.spec.space)
    states = Counter(row.state for row in data.rows)
    titles = {"generation": "completed in their generation", "stopped": "stopped early"}
    return {
        "content": content,
        "data": data,
        "title": data.folder.resolve().name,
        "heading": heading(data),
        "metric": metric_title(data.spec.metric),
        "states": [f"{count} {titles.get(state, state)}" for state, count in states.items()],
        "stopped": states["stopped"],
        "not_drawn": sum(row.score is None for row in data.rows),
        "parallel": figures.parallel_coordinates(data, names),
        "curves": figures.learning_curves(data),
        "fronts": pareto_figures(data),
    }


def heading(data: SweepData) -> str:
    """Title of the report."""
    name = data.folder.resolve().name
    return "Sweep" if name == "sweep" else f"Sweep {name}"


def markdown(content: Content) -> str:
    """The report without its figures."""
    escape = rendering.markdown_text
    parts = [opening_markdown(heading(content.data), content.notices, content.findings)]
    sections = (content.confirmation, content.values, content.test, content.importance, content.pareto, content.trials)
    parts += [rendering.markdown(table) for table in sections if table is not None]
    if content.no_importance:
        parts.append(f"## Importance\n\n{escape(content.no_importance)}\n")
    parts += [f"{escape(sentence)}\n" for sentence in content.not_measured]
    parts.append("## Use the winner\n")
    parts += [f"{escape(text)}\n" for text in (content.conclusion, content.no_winner) if text]
    parts += [rendering.markdown(content.lineage)] if content.lineage else []
    if content.winner is not None:
        parts += [f"{WINNER_FILE}:\n", _fenced(content.winner.to_json(), "json")]
        parts += ["Train it and measure the test split:\n", _fenced("\n".join(content.winner.commands), "sh")]
    if content.data.command:
        parts += ["Repeat the sweep:\n", _fenced(content.data.command, "sh")]
    return "\n".join(parts)


def _fenced(text: str, language: str) -> str:
    fence = "```" if "```" not in text else "`````"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def terminal_table(data: SweepData) -> RichTable:
    """The main table for a terminal of 80 columns: the confirmed trials, else the best of the search."""
    table = tables.confirmation_table(data)
    if table is not None and len(data.confirmed) > 1:
        columns = ("trial", "search", "fresh seeds", "difference", "its 95 % interval", "Holm p")
        kept = [table.columns.index(name) for name in columns]
        brief = tuple(tuple(row[index] for index in kept) for row in table.rows)
        return rich_table(
            rendering.Table(f"{table.caption}: {metric_title(data.spec.metric)}", columns, brief), tight=True
        )
    table = tables.trials_table(data)
    order = [*(row.trial.number for row in data.ranked), *(row.trial.number for row in data.rows)]
    rows = tuple(table.rows[number] for number in list(dict.fromkeys(order))[:MAX_TERMINAL_TRIALS])
    names = tables.short_names(data.spec.space).values()
    short = _shortened(rendering.Table(table.caption, table.columns, rows, "", table.labels))
    return rich_table(short, ("time", *names), tight=True)


def _shortened(table: rendering.Table, width: int = 34) -> rendering.Table:
    """The table with cells of at most `width` characters."""
    short = tuple(tuple(cell if len(cell) <= width else f"{cell[: width - 1]}…" for cell in row) for row in table.rows)
    return rendering.Table(table.caption, table.columns, short, table.note, table.labels)
