"""All tables of a reproduction, in their order."""

from __future__ import annotations

from pfcluster.experiments.accuracy_tables import accuracy_table, claims_table, cross_table
from pfcluster.experiments.cells import TABLES
from pfcluster.experiments.measure_tables import (
    cost_table,
    mask_ratio_table,
    poker_face_table,
    probe_table,
    time_table,
)
from pfcluster.experiments.results import Results
from pfcluster.report.rendering import Table


def all_tables(results: Results) -> list[Table]:
    """Every table that has a row, the claims first."""
    tables: list[Table | None] = [claims_table(results)]
    for dataset in results.record.datasets:
        tables += [accuracy_table(results, dataset, key) for key in TABLES]
        tables += [
            mask_ratio_table(results, dataset),
            poker_face_table(results, dataset),
            probe_table(results, dataset),
        ]
    tables += [cross_table(results), cost_table(results), time_table(results), missing_table(results)]
    return [table for table in tables if table is not None]


def missing_table(results: Results) -> Table | None:
    """Cells without all of their runs, and the reasons; cells with equal datasets and reason share a row."""
    datasets: dict[tuple[str, str], list[str]] = {}
    for (dataset, name), reason in results.missing.items():
        datasets.setdefault((name, reason), []).append(dataset)
    cells: dict[tuple[str, str], list[str]] = {}
    for (name, reason), names in datasets.items():
        cells.setdefault((", ".join(names), reason), []).append(name)
    rows = tuple((", ".join(names), where, reason) for (where, reason), names in cells.items())
    return Table("Not run", ("cell", "datasets", "reason"), rows, labels=3) if rows else None
