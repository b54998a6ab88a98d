"""`pfcluster measure`: one measurement of a reproduction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from pfcluster.cli.outputs import Output, results_below, write_output
from pfcluster.launch.command_line import parse


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """Make one measurement on the runs of a reproduction, into its folder `measured`."""

    what: tyro.conf.Positional[str]
    """Name of the measurement: cross, costs."""
    output: tyro.conf.Positional[Path]
    """Output folder of `pfcluster reproduce`."""


def main(arguments: list[str]) -> int:
    """Write one measurement of a reproduction."""
    from pfcluster.experiments.measure import MEASURES, measure

    options = parse(MeasureOptions, arguments, prog="pfcluster measure")
    if options.what not in MEASURES:
        raise ValueError(f"no measurement {options.what!r}; there are {', '.join(sorted(MEASURES))}")
    inputs = results_below(options.output)
    write_output(options.what, inputs, lambda: Output(measure(options.what, options.output)))
    return 0
