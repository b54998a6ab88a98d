"""Curves are thinned while they are read, and a page of many groups stays small."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pfcluster.report import page, page_pictures
from pfcluster.report.curves import CAPACITY, read_curves
from pfcluster.report.figures import MAX_POINTS
from pfcluster.report.write import write_report
from pfcluster.runs.folder import METRICS_FILE
from pfcluster.runs.metrics_file import append_metrics
from tests.studies import write_run


def test_a_short_curve_is_read_as_logged(tmp_path: Path) -> None:
    for step, value in ((20, 0.2), (10, 0.1), (30, float("nan")), (20, 0.3)):
        append_metrics(tmp_path, "train", step, 1.0, {"loss": value})
    append_metrics(tmp_path, "validation", 10, 1.0, {"loss": 9.0})
    curves = read_curves(tmp_path, [("train", "loss"), ("train", "cls")])
    assert {metric: curve.tolist() for metric, curve in curves.items()} == {("train", "loss"): [[10, 0.1], [20, 0.3]]}


@pytest.mark.parametrize("count", [CAPACITY, CAPACITY + 1, 2 * CAPACITY + 3, 5 * CAPACITY + 777])
def test_a_long_curve_is_thinned_to_means_of_neighbours(tmp_path: Path, count: int) -> None:
    lines = (json.dumps({"split": "train", "step": step, "loss": 3.0 * step + step % 2}) for step in range(count))
    (tmp_path / METRICS_FILE).write_text("\n".join(lines) + "\n")
    curve = read_curves(tmp_path, [("train", "loss")])["train", "loss"]
    assert MAX_POINTS // 3 < len(curve) <= MAX_POINTS
    assert (np.diff(curve[:, 0]) > 0).all()
    assert np.abs(curve[:, 1] - 3 * curve[:, 0] - 0.5).max() < 0.51
    assert curve[0, 0] < count / 100
    assert curve[-1, 0] > 0.98 * count


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four groups with different accuracies and pictures, of which two are to be shown."""
    monkeypatch.setattr(page, "MAX_GROUPS", 2)
    for number, name in enumerate(("scratch", "a", "b", "c")):
        folder = write_run(tmp_path, name, 0, accuracy=0.7 + 0.01 * number, pictures={"views": "views.png"})
        Image.new("RGB", (9, 9), (number, 0, 0)).save(folder / "views.png")
        for step in (1, 2):
            append_metrics(folder, "train", step, 1.0, {"loss": 1.0})
    return tmp_path


def test_of_many_groups_the_baseline_and_the_best_are_shown(study: Path) -> None:
    files = write_report(study)
    html = files.html.read_text()
    assert re.findall(r'aria-label="(\S+) \(one seed\): row', html) == ["c", "scratch"]
    assert "Training loss: loss over steps for c, scratch, 2 others" in html
    assert re.findall(r'alt="Image grid: (\w+), seed', html) == ["c", "scratch"]
    assert [notice.text[:40] for notice in files.notices if notice.name == "figures of some groups"] == [
        "2 of 4 groups have figures of their own:"
    ]
    assert all(f"runs/{name}-seed0-0" in html for name in "abc")


def test_pictures_that_a_page_has_no_room_for_lie_beside_it(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "data:image/png" in write_report(study).html.read_text()
    beside = study / "report" / "report_files"
    assert not beside.exists()
    monkeypatch.setattr(page_pictures, "MAX_INLINE_BYTES", 0)
    files = write_report(study)
    html = files.html.read_text()
    assert "data:image" not in html
    sources = re.findall(r'<img loading="lazy" src="([^"]+)"', html)
    assert sorted(sources) == sorted(f"report_files/{path.name}" for path in beside.iterdir())
    with Image.open(files.html.parent / sources[0]) as picture:
        assert picture.size == (9, 9)
    monkeypatch.undo()
    write_report(study)
    assert not beside.exists()


def test_pages_in_one_folder_keep_their_own_pictures(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of `pfcluster pictures` with the report's folder as its --output."""
    monkeypatch.setattr(page_pictures, "MAX_INLINE_BYTES", 0)
    files = write_report(study)
    sources = re.findall(r'<img loading="lazy" src="([^"]+)"', files.html.read_text())
    other = page_pictures.PagePictures(files.html.with_name("index.html"))
    Image.new("RGB", (9, 9), (200, 0, 0)).save(study / "other.png")
    uri = other.uri(study, "other.png")
    other.remove_outdated()
    assert uri.startswith("index_files/")
    assert sources
    assert all((files.html.parent / source).exists() for source in sources)
    write_report(study)
    assert (files.html.parent / uri).exists()
