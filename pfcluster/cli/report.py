"""`pfcluster report`: mean ± std over seeds, tables and pictures of a study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from pfcluster.cli.outputs import Output, results_below, write_output
from pfcluster.launch.command_line import parse


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Write the report of a study, and print its main table and findings."""

    study: tyro.conf.Positional[Path]
    """Folder of runs, at any depth."""
    output: Path | None = None
    """Folder of the report; default: STUDY/report."""
    baseline: str | None = None
    """Name of the runs that the others are tested against."""


def main(arguments: list[str]) -> int:
    """Write the report of a study."""
    from pfcluster.report.findings import findings
    from pfcluster.report.terminal import main_table
    from pfcluster.report.write import write_report
    from pfcluster.tracking.trackers import send_report

    options = parse(ReportOptions, arguments, prog="pfcluster report")

    def write() -> Output:
        files = write_report(options.study, options.output, baseline=options.baseline)
        return Output(files.html, findings(files.report), main_table(files.report))

    page = write_output("report", results_below(options.study), write)
    send_report(options.study, page)
    return 0
