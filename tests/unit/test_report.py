"""Tables and HTML page of a report on a small study."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from pfcluster.report.rendering import latex_text, markdown_text
from pfcluster.report.terminal import main_table
from pfcluster.report.write import write_report
from tests.studies import Page, poker, text, write_group, write_run


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """Runs of three objectives with curves and pictures, one unfinished run and one failed run."""
    study = tmp_path / "study"
    write_group(study, "scratch", [0.70, 0.71, 0.72])
    write_group(study, "pf-vit", [0.75, 0.77, 0.76], objective="pf_mag", poker=poker(0.06), pictures={"views": "v.png"})
    write_group(
        study,
        "mae",
        [0.0],
        objective="mae",
        test={"n": 9, "loss": 0.31},
        validation={"loss": 0.0123},
        pictures={"mae": "v.png"},
    )
    for folder in (study / "runs").iterdir():
        lines = [{"split": "train", "step": step, "loss": 2 / step, "cls": 1 / step} for step in range(1, 20)]
        lines += [{"split": "validation", "step": step, "accuracy": 0.5 + step / 100} for step in (5, 10, 15)]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"split": "tra')
        Image.new("RGB", (8, 4), "red").save(folder / "v.png")
    write_run(study, "scratch", 8, status="failed: loss is not finite")
    unfinished = study / "runs" / "scratch-seed9"
    unfinished.mkdir()
    (unfinished / "config.json").write_text('{"name": "scratch", "seed": 9}')
    return study


def test_tables_hold_means_and_tests(full: Path) -> None:
    files = write_report(full)
    report = text(files)
    assert "| finetune | validation | 3 | 8 | 71.00 ± 1.00 | 68.52 to 73.48 | – | – | 66.00 ± 1.00 |" in report
    # Differences 5, 6, 4: mean 5, std 1, half = 4.3027 / sqrt 3 = 2.484; t = 8.660, p = 1 - t / sqrt(t^2 + 2) = 0.013
    assert "| pf-vit | 3 | +5.00 | +2.52 to +7.48 | – | 0.013 | 0.013 | – | – | +5.00 |" in report
    assert (
        "pf-vit is better than scratch: +5.00 points over 3 seeds (95 % interval +2.52 to +7.48, p = 0.013)." in report
    )
    assert "With n = 3 seeds only large differences are detectable" in report
    assert "Always predicting the majority class “neutral” scores 50.00 %" in report
    assert "| mae | 1 | 0.0123 ± – | 0.3100 ± – |" in report


def test_unfinished_and_failed_runs_are_listed_but_not_averaged(full: Path) -> None:
    report = text(write_report(full))
    assert "| runs/scratch-seed8-0 | scratch | failed: loss is not finite |" in report
    assert "| runs/scratch-seed9 | scratch | no result yet | – | 9 |" in report


def test_csv_has_every_run_and_full_precision(full: Path) -> None:
    files = write_report(full)
    rows = list(csv.DictReader(files.results_csv.open()))
    assert len(rows) == 9
    assert {row["test.accuracy"] for row in rows if row["name"] == "scratch"} == {"0.7", "0.71", "0.72", ""}
    summary = {row["name"]: row for row in csv.DictReader(files.summary_csv.open())}
    assert float(summary["scratch"]["test.accuracy.std"]) == pytest.approx(0.01)
    assert summary["mae"]["validation.loss.std"] == ""


def test_page_is_well_formed_and_self_contained(full: Path) -> None:
    page = Page(write_report(full).html.read_text())
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object")
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert (value or "").startswith(("data:image/", "#")), (tag, name, value)
    style = write_report(full).html.read_text()
    assert "@import" not in style
    assert not re.search(r"url\((?!['\"]?#)", style)


def test_page_is_accessible(full: Path) -> None:
    page = Page(write_report(full).html.read_text())
    assert page.all("html")[0]["lang"] == "en"
    assert all(attributes.get("alt") for attributes in page.all("img"))
    assert len(page.all("img")) == 2
    assert page.all("svg")
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in page.all("svg"))
    assert all(attributes["scope"] in ("col", "row") for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {(attributes.get("href") or "")[1:] for attributes in page.all("a")}
    assert targets <= set(ids)


def test_report_is_deterministic(full: Path, tmp_path: Path) -> None:
    first, second = write_report(full, tmp_path / "a"), write_report(full, tmp_path / "b")
    for name in ("html", "markdown", "results_csv", "summary_csv", "comparisons_csv", "latex"):
        assert getattr(first, name).read_bytes() == getattr(second, name).read_bytes()
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == [
        "comparisons.csv", "report.html", "report.md", "results.csv", "summary.csv", "table.tex",
    ]  # fmt: skip


@pytest.mark.slow
def test_report_folder_is_not_read_as_runs(full: Path) -> None:
    assert len(write_report(full).report.runs) == len(write_report(full).report.runs) == 7
    assert write_report(full).html == full / "report" / "report.html"


def test_strings_are_escaped(tmp_path: Path) -> None:
    script = "<script>alert(1)</script>"
    dataset = {"name": script, "classes": ["<b>", "a&b_$x$"], "train": 1, "validation": 1, "test": 8}
    test = {"n": 8, "accuracy": 0.5, "per_class": {"<b>": 0.5}, "confusion": [[1, 1], [1, 1]]}
    folder = write_run(tmp_path, "plain", 0, dataset=dataset, command=script, warning=script, versions={script: script},
                       git_commit=script, test=test)  # fmt: skip
    values = json.loads((folder / "result.json").read_text()) | {"name": script, "status": "finished"}
    (folder / "result.json").write_text(json.dumps(values))
    config = {"name": script, "note": script, "seed": 0, script: 1}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text('{"split": "train", "step": 1, "loss": 1.0}\n')
    files = write_report(tmp_path)
    page = Page(files.html.read_text())
    assert not page.all("script")
    assert not page.all("b")
    assert script in "".join(page.words)
    assert not re.search(r"(?<!\\)<script", files.markdown.read_text())


def test_markdown_and_latex_escapes() -> None:
    assert markdown_text("a|b_c <i> & d") == r"a\|b\_c \<i\> &amp; d"
    assert latex_text("50 % of a_b & {c} ± –") == r"50 \% of a\_b \& \{c\} $\pm$ --"


def test_latex_table(full: Path) -> None:
    lines = write_report(full).latex.read_text()
    assert r"\begin{tabular}{lllrrrrrrrr}" in lines
    assert r"pf\_mag & validation & 3 & 8 & 76.00 $\pm$ 1.00 & 73.52 to 78.48 & -- & -- & 71.00 $\pm$ 1.00 &" in lines


def test_main_table_in_the_terminal(full: Path) -> None:
    console = Console(width=160, record=True, file=(full / "terminal").open("w"))
    console.print(main_table(write_report(full).report))
    assert re.search(r"scratch .* 71.00 ± 1.00", console.export_text())
