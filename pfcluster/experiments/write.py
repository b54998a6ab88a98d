"""The tables of a reproduction as files: a page, Markdown and JSON."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pfcluster.experiments.claims import judge
from pfcluster.experiments.results import Found, collect
from pfcluster.experiments.tables import all_tables
from pfcluster.report import tables
from pfcluster.report.page import provenance, render_template
from pfcluster.report.tables import Table
from pfcluster.report.write import write_file

FOLDER = "tables"


@dataclass(frozen=True)
class Files:
    """What was written."""

    sentences: tuple[str, ...]
    html: Path
    markdown: Path
    json: Path


def write_tables(root: Path) -> Files:
    """Read a reproduction and write its tables. Raises RecordError, ReportError."""
    found = collect(root)
    made = all_tables(found)
    sentences = sentences_of(found)
    about = about_of(found)
    folder = root / FOLDER
    context = {"title": root.resolve().name, "about": about, "sentences": sentences, "tables": made, "found": found}
    context |= {"links": _links(found), "anchors": _anchors(made)}
    context |= provenance([run for group in found.groups.values() for run in group.runs])
    return Files(
        tuple(sentences),
        write_file(folder / "tables.html", render_template("page.html.j2", context, "pfcluster.experiments")),
        write_file(folder / "tables.md", markdown(about, sentences, made)),
        write_file(folder / "tables.json", json.dumps(values(found), indent=1) + "\n"),
    )


def about_of(found: Found) -> dict[str, str]:
    """Where the figures come from: command, commits, machine, days."""
    runs = [run for group in found.groups.values() for run in group.runs]
    context = provenance(runs) if runs else {"commits": [], "days": []}
    return {
        "command": found.record.command,
        "commit": ", ".join(context["commits"]) or "unknown",
        "machine": machine(),
        "date": " to ".join(context["days"]) or f"{datetime.now(timezone.utc):%Y-%m-%d}",
        "runs": f"{len(runs)} finished, on seeds {', '.join(map(str, found.record.seeds))}",
        "φ": found.record.phi,
    }


def machine() -> str:
    """Processor and number of cores."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{os.cpu_count()} cores of {name}"


def sentences_of(found: Found) -> list[str]:
    """The paper's claims in words, grouped by what became of them."""
    by_verdict: dict[str, list[str]] = {}
    for one in judge(found):
        by_verdict.setdefault(one.verdict, []).append(f"{one.claim.text} ({one.dataset})")
    return [f"{verdict[:1].upper()}{verdict[1:]}: {'; '.join(texts)}." for verdict, texts in by_verdict.items()]


def markdown(about: dict[str, str], sentences: list[str], made: list[Table]) -> str:
    """All of it as Markdown."""
    head = [
        f"- {name}: {f'`{value}`' if name == 'command' else tables.markdown_text(value)}"
        for name, value in about.items()
    ]
    said = [f"- {tables.markdown_text(sentence)}" for sentence in sentences]
    return "\n".join(["\n".join(head) + "\n", "\n".join(said) + "\n", *map(tables.markdown, made)])


def values(found: Found) -> dict[str, Any]:
    """Figures for programs: every cell's accuracies by seed, every claim's difference."""
    cells = [
        {
            "dataset": dataset,
            "cell": name,
            "accuracy": group.by_seed("test", "accuracy"),
            "mean_class_accuracy": group.by_seed("test", "mean_class_accuracy"),
        }
        for (dataset, name), group in found.groups.items()
    ]
    judged = [
        {
            "dataset": one.dataset,
            "claim": one.claim.name,
            "n": one.paired.difference.n if one.paired else 0,
            "points": one.paired.difference.mean if one.paired else None,
            "low": one.paired.difference.low if one.paired else None,
            "high": one.paired.difference.high if one.paired else None,
            "p_holm": one.p,
            "verdict": one.verdict,
        }
        for one in judge(found)
    ]
    return {"about": about_of(found), "cells": cells, "claims": judged, "missing": _missing(found)}


def _missing(found: Found) -> list[dict[str, str]]:
    return [{"dataset": dataset, "cell": name, "why": why} for (dataset, name), why in found.missing.items()]


def _links(found: Found) -> list[tuple[str, str]]:
    """Pages of the datasets that are there: title and address."""
    pages = [
        (f"{name}: {what}", f"../{name}/{page}")
        for name in found.record.datasets
        for what, page in (("report", "report/report.html"), ("pictures", "pictures/index.html"))
    ]
    return [(title, place) for title, place in pages if (found.root / FOLDER / place).exists()]


def _anchors(made: list[Table]) -> list[tuple[str, str]]:
    return [(f"table-{number}", table.caption) for number, table in enumerate(made, start=1)]
