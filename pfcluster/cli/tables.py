"""`pfcluster tables`: the paper's tables of a reproduction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from pfcluster.cli.outputs import Output, results_below, write_output
from pfcluster.launch.command_line import parse


@dataclass(frozen=True, kw_only=True)
class TablesOptions:
    """Write the paper's tables of a reproduction, with the runs that have finished so far."""

    output: tyro.conf.Positional[Path]
    """Output folder of `pfcluster reproduce`."""


def main(arguments: list[str]) -> int:
    """Write the tables of a reproduction."""
    from pfcluster.experiments.results import MEASURED_DIR
    from pfcluster.experiments.write import write_tables

    options = parse(TablesOptions, arguments, prog="pfcluster tables")

    def write() -> Output:
        files = write_tables(options.output)
        return Output(files.html, files.sentences)

    measured = (options.output / MEASURED_DIR).glob("*.json")
    write_output("tables", [*results_below(options.output), *measured], write)
    return 0
