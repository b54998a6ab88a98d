"""Tables of accuracies: claims, cells by table and dataset, and accuracies across datasets."""

from __future__ import annotations

from collections.abc import Mapping

from pfcluster.experiments import paper
from pfcluster.experiments.cells import REFERENCE, TABLES, Cell, cell_by_name
from pfcluster.experiments.claims import (
    NOT_RUN,
    ClaimResult,
    accuracy,
    accuracy_difference,
    check_claims,
    compare_interval,
    prediction_difference,
)
from pfcluster.experiments.results import Results
from pfcluster.report.formatting import MISSING, interval, mean_std, number, p_value, signed
from pfcluster.report.rendering import Table
from pfcluster.report.statistics import Paired, holm_over_tests, summarize
from pfcluster.report.tables import NOT_COMPARABLE, OVER_SAMPLES, OVER_SEEDS

STAND_IN = "rafdb"
"""Dataset of the paper with whose differences the miniature is compared."""


def claims_table(results: Results) -> Table | None:
    """Outcome of every claim; None if no claim has its cells planned."""
    rows = [_claim_row(results, claim_result) for claim_result in check_claims(results)]
    columns = (
        "claim", "dataset", "outcome", "paper's difference", "seeds", "difference", OVER_SEEDS, OVER_SAMPLES, "Holm p",
        "McNemar p < 0.05",
    )  # fmt: skip
    note = (
        "Differences of test accuracy in percentage points, paired by seed. Supported or contradicted: p of the paired "
        "t-test, corrected (Holm) over this whole table, is below 0.05; “only before correction”: only the interval "
        "over seeds excludes 0; else inconclusive. McNemar: number of seeds whose two networks differ in McNemar's "
        "exact test, corrected over the table. * Not a claim of the paper."
    )
    note += " The paper's differences are those on RAF-DB." if results.record.miniature else ""
    table = Table("Claims of the paper", columns, tuple(rows), note, labels=3)
    return table.without_empty_columns() if rows else None


def _claim_row(results: Results, claim_result: ClaimResult) -> tuple[str, ...]:
    claim, predictions = claim_result.claim, claim_result.predictions
    gain = (claim.gain or {}).get(STAND_IN if results.record.miniature else claim_result.dataset)
    change = None if claim_result.difference is None else claim_result.difference.difference
    return (
        claim.text + ("" if claim.in_paper else " *"),
        claim_result.dataset,
        claim_result.outcome,
        signed(gain, 2),
        str(change.n) if change else "0",
        signed(None if change is None else change.mean, 2),
        interval(change, 2, sign=True),
        interval(predictions.difference if predictions else None, 2, sign=True),
        p_value(claim_result.holm_p),
        f"{predictions.n_significant} of {len(predictions.tests)}" if predictions else MISSING,
    )


def accuracy_table(results: Results, dataset: str, key: str) -> Table | None:
    """Test accuracies of a table's cells, and differences from its reference; None if no other cell is planned."""
    cells = _cells(results, dataset, key)
    if not cells:
        return None
    stated = paper.ACCURACY.get(STAND_IN if results.record.miniature else dataset, {})
    reference = results.group(dataset, REFERENCE[key])
    differences = {cell.name: accuracy_difference(results.group(dataset, cell.name), reference) for cell in cells[1:]}
    corrected = dict(zip(differences, holm_over_tests(list(differences.values())), strict=True))
    rows = [
        _accuracy_row(results, dataset, cell, cells[0], stated, differences.get(cell.name), corrected.get(cell.name))
        for cell in cells
    ]
    columns = (
        "cell", "paper %", "seeds", "accuracy %", OVER_SEEDS, OVER_SAMPLES, "mean class accuracy %",
        "paper's difference", "difference", f"difference, {OVER_SEEDS}", f"difference, {OVER_SAMPLES}", "Holm p",
        "CI vs. paper",
    )  # fmt: skip
    note = (
        "Mean ± standard deviation over seeds (n − 1). CI (seeds): Student's t interval; CI (seeds and samples): "
        f"bootstrap over both. Differences from {cells[0].title} in percentage points, paired by seed; p of the paired "
        "t-test, corrected (Holm) over the table. "
    )
    note += (
        "The paper's differences are those on RAF-DB with ViT-B. CI vs. paper: whether our CI (seeds) of the "
        "difference contains the paper's difference, or is above or below it."
        if results.record.miniature
        else "CI vs. paper: whether our CI (seeds) contains the paper's accuracy, or is above or below it."
    )
    note += NOT_COMPARABLE if any("⚠" in row[0] for row in rows) else ""
    return Table(f"{TABLES[key]}: {dataset}", columns, tuple(rows), note).without_empty_columns()


def _cells(results: Results, dataset: str, key: str) -> list[Cell]:
    """The planned cells of a table, its reference first; empty if there is no other cell."""
    planned = [one.spec for one in results.record.cells if one.dataset == dataset]
    others = [cell for cell in planned if cell.table == key and cell.name != REFERENCE[key]]
    return [cell_by_name(REFERENCE[key]), *others] if others else []


def _accuracy_row(
    results: Results,
    dataset: str,
    cell: Cell,
    reference: Cell,
    stated: Mapping[str, float],
    difference: Paired | None,
    holm_p: float | None,
) -> tuple[str, ...]:
    """stated: the paper's accuracies in % by cell. difference: from the reference, None for the reference itself."""
    miniature, group = results.record.miniature, results.group(dataset, cell.name)
    ours, theirs = accuracy(group), stated.get(cell.name)
    gap = None
    if cell is not reference and theirs is not None and reference.name in stated:
        gap = theirs - stated[reference.name]
    change = None if difference is None else difference.difference
    if miniature:
        compared = MISSING if cell is reference else compare_interval(gap, change)
    else:
        compared = compare_interval(theirs, ours)
    predictions = None
    if difference is not None:
        predictions = prediction_difference(group, results.group(dataset, reference.name))
    return (
        cell.title if group is None or group.comparable else f"{cell.title} ⚠",
        number(None if miniature else theirs, 2),
        str(ours.n) if ours else "0",
        mean_std(ours, 2),
        interval(ours, 2),
        interval(None if group is None else group.bootstrap_accuracy[0], 2),
        mean_std(None if group is None else group.summary("test", "mean_class_accuracy", scale=100), 2),
        signed(gap, 2),
        signed(None if change is None else change.mean, 2),
        interval(change, 2, sign=True),
        interval(None if predictions is None else predictions.difference, 2, sign=True),
        p_value(holm_p),
        compared if ours else NOT_RUN,
    )


def cross_table(results: Results) -> Table | None:
    """Accuracy on other datasets than the training dataset."""
    rows = []
    keys = dict.fromkeys((one["cell"], one["trained"], one["tested"]) for one in results.cross)
    for name, trained, tested in keys:
        cases = [
            one for one in results.cross if (one["cell"], one["trained"], one["tested"]) == (name, trained, tested)
        ]
        summary = summarize([100 * one["accuracy"] for one in cases])
        stated = paper.CROSS.get((trained, tested)) if name == "pf-vit" else None
        rows.append((
            cell_by_name(name).title, trained, tested, number(stated, 2), str(summary.n), mean_std(summary, 2),
            interval(summary, 2), str(cases[0]["n"]), compare_interval(stated, summary),
        ))  # fmt: skip
    columns = (
        "cell", "trained on", "tested on", "paper %", "seeds", "accuracy %", OVER_SEEDS, "samples", "CI vs. paper",
    )  # fmt: skip
    note = "Classes are matched by name; test samples of other classes are excluded."
    table = Table("Cross-dataset accuracy", columns, tuple(rows), note, labels=3)
    return table.without_empty_columns() if rows else None
