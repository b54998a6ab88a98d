"""No cell of a CSV for people is a formula: names of photos, classes, runs and fields are chosen by others."""

from __future__ import annotations

import ast
import csv
import io
from pathlib import Path

import pytest

from pfcluster.cli.inspect_quality import write_pairs
from pfcluster.data.build.shard_writer import write_table
from pfcluster.data.inspect.quality import DuplicatePair
from pfcluster.report.rendering import csv_text
from pfcluster.report.write import write_report
from pfcluster.system.csv_tables import FORMULA_STARTS, csv_table
from tests.studies import write_run

PACKAGE = Path(__file__).parents[2] / "pfcluster"
FORMULAS = ("=cmd|' /C calc'!A0", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "=1,2", "-")


def cells(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_becomes_text_in_every_table(text: str, tmp_path: Path) -> None:
    pair = DuplicatePair(text, text, text, text, text, text, 0)
    write_pairs(tmp_path / "pairs.csv", [pair])
    write_table(tmp_path / "left_out.csv", ("source",), [(text,)])
    tables = [csv_table((text,), [(text,)]), csv_text([{text: text}])]
    tables += [path.read_bytes().decode() for path in (tmp_path / "pairs.csv", tmp_path / "left_out.csv")]
    for table in tables:
        assert not any(cell.startswith(FORMULA_STARTS) for row in cells(table) for cell in row)
        assert "'" + text.replace("\r", "\n") in cells(table)[1]


def test_numbers_and_other_text_stay_as_they_are() -> None:
    row = (-0.5, "-0.5", "+3", "-1e-3", "-inf", "a=b", "", None, True, "'x", "1-2")
    written = ["-0.5", "-0.5", "+3", "-1e-3", "-inf", "a=b", "", "", "True", "'x", "1-2"]
    assert cells(csv_table([str(number) for number in range(len(row))], [row]))[1] == written


def test_a_run_with_a_formula_for_a_name_is_reported_as_text(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "=HYPERLINK(A1)", seed, warning="@x", command="=1+1")
    files = write_report(tmp_path)
    for path in (files.results_csv, files.summary_csv, files.comparisons_csv):
        rows = cells(path.read_text())
        assert not any(cell.startswith(("=", "@")) for row in rows for cell in row), path
    assert "'=HYPERLINK(A1)" in files.results_csv.read_text()


def test_only_one_module_writes_csv() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        called = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert path == PACKAGE / "system/csv_tables.py" or not called & {"DictWriter", "to_csv", "writerow"}, path
