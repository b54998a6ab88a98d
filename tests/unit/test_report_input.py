"""Reports on minimal and malformed results, and plots."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pfcluster.report.errors import ReportError
from pfcluster.report.figures import downsample, mean_curve, plot_confusion, plot_curves
from pfcluster.report.terminal import main_table
from pfcluster.report.write import write_report
from tests.studies import CLASSES, Page, text, write_run


def test_minimal_result_makes_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "run"
    folder.mkdir(parents=True)
    result = {"format": 1, "name": "bare", "objective": "finetune", "seed": 0, "status": "finished"}
    (folder / "result.json").write_text(json.dumps(result))
    files = write_report(tmp_path)
    page = Page(files.html.read_text())
    assert not page.all("svg")
    assert not page.all("img")
    headings = {attributes["href"] for attributes in page.all("a")}
    assert headings == {"#reading", "#runs", "#reproduce", "#findings"} - ({"#findings"} - headings)
    assert {notice.name for notice in files.notices} == {"no config", "no test accuracy"}
    assert files.latex.read_text().startswith("%")
    assert main_table(files.report).row_count == 1


@pytest.mark.parametrize(
    ("relative", "reason"),
    [("gone.png", "cannot be read"), ("../../secret.png", "outside"), ("result.json", "not one of")],
)
def test_unreadable_pictures_are_omitted_with_a_notice(tmp_path: Path, relative: str, reason: str) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    write_run(tmp_path, "pf-vit", 0, pictures={"views": relative})
    files = write_report(tmp_path)
    assert [notice.name for notice in files.notices] == ["picture omitted"]
    assert reason in files.notices[0].text
    assert not Page(files.html.read_text()).all("img")
    assert reason in files.markdown.read_text()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"format": 2}, "format"),
        ({"seed": "0"}, "seed"),
        ({"objective": "dance"}, "objective"),
        ({"status": None}, "status"),
        ({"test": {"accuracy": "high"}}, "test.accuracy"),
        ({"test": {"accuracy": 0.5, "per_class": [1]}}, "test.per_class"),
        ({"test": {"accuracy": 0.5, "confusion": [[1]]}}, "test.confusion"),
        ({"test": {"accuracy": 0.5, "confusion": [[1, 2], [3, "x"]]}}, "test.confusion"),
        ({"poker": {"rows": {"input": 3}}}, "poker.rows.input"),
        ({"poker": {"rows": {"input": {"psnr": "x"}}}}, "poker.rows.input.psnr"),
        ({"pictures": ["a.png"]}, "pictures"),
        ({"dataset": {"classes": "neutral"}}, "dataset.classes"),
    ],
)
def test_malformed_results_name_file_and_field(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    folder = write_run(tmp_path, "scratch", 0, **changes)
    with pytest.raises(ReportError, match=re.escape(f"{folder / 'result.json'}: {field} must")):
        write_report(tmp_path)


def test_errors_name_the_folder_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="is not a folder"):
        write_report(tmp_path / "gone")
    with pytest.raises(ReportError, match="no finished run"):
        write_report(tmp_path)
    folder = write_run(tmp_path, "scratch", 0, status="failed")
    with pytest.raises(ReportError, match="1 unfinished: runs/scratch-seed0-0"):
        write_report(tmp_path)
    (folder / "result.json").write_text("{")
    with pytest.raises(ReportError, match=r"result\.json is not JSON"):
        write_report(tmp_path)


def test_unwritable_output_folder(tmp_path: Path) -> None:
    write_run(tmp_path, "scratch", 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match="use another output folder"):
        write_report(tmp_path, tmp_path / "file" / "report")


def test_nan_metrics_are_excluded_with_a_notice(tmp_path: Path) -> None:
    write_run(tmp_path, "scratch", 0, accuracy=0.7)
    write_run(tmp_path, "scratch", 1, accuracy=float("nan"))
    files = write_report(tmp_path)
    assert "| scratch | finetune | validation | 1 | 8 | 70.00 ± – |" in text(files)
    assert "not a number" in [notice.name for notice in files.notices]


def test_configs_inside_a_run_are_not_runs(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "scratch", 0)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "config.json").write_text("{}")
    assert not write_report(tmp_path).report.unfinished


def test_plot_curves_of_any_length() -> None:
    assert plot_curves("Loss", "loss", {"a": [[]], "b": [[(1, float("nan"))]]}) == ""
    svg = plot_curves("Loss $x", "loss", {"_a<b": [[(0, 1.0), (10, 2.0)], [(0, 3.0), (10, 4.0)]]})
    assert svg.startswith("<svg role=")
    assert "_a&lt;b" in svg
    assert svg.count("<svg") == 1


def test_mean_curve_by_hand() -> None:
    longer, shorter = np.array([[0.0, 0.0], [10.0, 10.0]]), np.array([[0.0, 2.0], [5.0, 4.0]])
    assert mean_curve([longer, shorter]).tolist() == [[0, 1.0], [5, 4.5]]
    early, late = np.array([[0.0, 1.0]]), np.array([[5.0, 3.0]])
    assert mean_curve([early, late]).tolist() == [[0, 1.0]]


def test_downsample_keeps_the_mean() -> None:
    points = [(float(step), float(step % 7)) for step in range(600)]
    thinned = downsample(points)
    assert len(thinned) == 300
    assert sum(value for _, value in thinned) / 300 == pytest.approx(sum(value for _, value in points) / 600)


def test_plot_confusion_is_row_normalised() -> None:
    svg = plot_confusion("name", CLASSES, [[3, 1], [0, 0]])
    words = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert words.count("75") == 1
    assert words.count("25") == 1
    assert words.count("–") == 2
