"""Write the tables of a reproduction as HTML, Markdown and JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pfcluster.experiments import tables
from pfcluster.experiments.claims import ClaimResult, check_claims
from pfcluster.experiments.results import Results, read_results
from pfcluster.report import rendering
from pfcluster.report.errors import Notice
from pfcluster.report.page import provenance, render_template
from pfcluster.report.rendering import Table
from pfcluster.report.write import write_file

TABLES_DIR = "tables"


@dataclass(frozen=True)
class TableFiles:
    """Files of the tables, and the claims in sentences."""

    sentences: tuple[str, ...]
    html: Path
    markdown: Path
    json: Path


def write_tables(root: Path) -> TableFiles:
    """Read a reproduction and write its tables. Raises RecordError, ReportError."""
    results = read_results(root)
    all_tables, sentences, about = tables.all_tables(results), claim_sentences(results), _about(results)
    folder = root / TABLES_DIR
    context = {
        "title": root.resolve().name,
        "about": about,
        "notices": results.notices,
        "sentences": sentences,
        "tables": all_tables,
        "anchors": [(f"table-{number}", table.caption) for number, table in enumerate(all_tables, start=1)],
        "links": _links(results),
        **provenance([run for group in results.groups.values() for run in group.runs]),
    }
    return TableFiles(
        tuple(sentences),
        write_file(folder / "tables.html", render_template("page.html.j2", context, "pfcluster.experiments")),
        write_file(folder / "tables.md", _markdown(about, results.notices, sentences, all_tables)),
        write_file(folder / "tables.json", json.dumps(_values(results, about), indent=1) + "\n"),
    )


def _about(results: Results) -> dict[str, str]:
    """Command, commits, machine and dates."""
    runs = [run for group in results.groups.values() for run in group.runs]
    origin = provenance(runs) if runs else {"commits": [], "days": []}
    return {
        "command": results.record.command,
        "commit": ", ".join(origin["commits"]) or "unknown",
        "machine": _machine(),
        "date": " to ".join(origin["days"]) or f"{datetime.now(timezone.utc):%Y-%m-%d}",
        "runs": f"{len(runs)} finished, with seeds {', '.join(map(str, results.record.seeds))}",
        "identity_net": results.record.identity_net,
    }


def _machine() -> str:
    """Number of cores and processor model."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{os.cpu_count()} cores of {name}"


def claim_sentences(results: Results) -> list[str]:
    """The claims grouped by outcome."""
    by_outcome: dict[str, list[str]] = {}
    for one in check_claims(results):
        by_outcome.setdefault(one.outcome, []).append(f"{one.claim.text} ({one.dataset})")
    return [f"{outcome[:1].upper()}{outcome[1:]}: {'; '.join(texts)}." for outcome, texts in by_outcome.items()]


def _markdown(
    about: dict[str, str], notices: Sequence[Notice], sentences: Sequence[str], all_tables: Sequence[Table]
) -> str:
    head = [
        f"- {name}: {f'`{value}`' if name == 'command' else rendering.markdown_text(value)}"
        for name, value in about.items()
    ]
    head += [f"- **{rendering.markdown_text(one.name)}** – {rendering.markdown_text(one.text)}" for one in notices]
    claims = [f"- {rendering.markdown_text(sentence)}" for sentence in sentences]
    return "\n".join(["\n".join(head) + "\n", "\n".join(claims) + "\n", *map(rendering.markdown, all_tables)])


def _values(results: Results, about: dict[str, str]) -> dict[str, Any]:
    """Content of tables.json: accuracies by cell and seed, differences by claim, missing cells, and warnings."""
    cells = [
        {
            "dataset": dataset,
            "cell": name,
            "accuracy": group.by_seed("test", "accuracy"),
            "mean_class_accuracy": group.by_seed("test", "mean_class_accuracy"),
        }
        for (dataset, name), group in results.groups.items()
    ]
    missing = [
        {"dataset": dataset, "cell": name, "reason": reason} for (dataset, name), reason in results.missing.items()
    ]
    claims = [_claim_values(one) for one in check_claims(results)]
    notices = [one.text for one in results.notices]
    return {"about": about, "notices": notices, "cells": cells, "claims": claims, "missing": missing}


def _claim_values(one: ClaimResult) -> dict[str, Any]:
    difference = one.difference.difference if one.difference else None
    return {
        "dataset": one.dataset,
        "claim": one.claim.name,
        "n": difference.n if difference else 0,
        "difference": difference.mean if difference else None,
        "low": difference.low if difference else None,
        "high": difference.high if difference else None,
        "holm_p": one.holm_p,
        "outcome": one.outcome,
    }


def _links(results: Results) -> list[tuple[str, str]]:
    """Existing pages of the datasets: title and relative address."""
    pages = [
        (f"{dataset}: {title}", f"../{dataset}/{page}")
        for dataset in results.record.datasets
        for title, page in (("report", "report/report.html"), ("pictures", "pictures/index.html"))
    ]
    return [(title, address) for title, address in pages if (results.root / TABLES_DIR / address).exists()]
