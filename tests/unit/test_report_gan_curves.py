"""Section "Adversarial training" of the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from pfcluster.report.gan_curves import MAX_GRIDS, PANELS, evenly_spaced
from pfcluster.report.write import write_report
from tests.studies import Page, write_group, write_run


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A PF-MAG group with all diagnostics and ten grids in its first seed, and a fine-tuning group."""
    study = tmp_path / "study"
    write_group(study, "scratch", [0.70, 0.71])
    write_group(study, "pf-vit", [0.75, 0.77], objective="pf_mag")
    for folder in (study / "runs").glob("pf-vit*"):
        lines = []
        for panel in PANELS:
            values = dict.fromkeys(panel.lines, 0.5)
            lines += [{"split": panel.split, "step": step, **values} for step in range(1, 100, 9)]
        lines.append({"split": "train", "step": 100, "grad_poker_ort": 0.0})
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for step in range(10, 110, 10):
        file = study / "runs/pf-vit-seed0-0/pictures/steps" / f"{step:08d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 4), "red").save(file)
    return study


def test_every_panel_is_drawn_with_its_hint(study):
    page = Page(write_report(study).html.read_text())
    words = " ".join(page.words)
    assert page.open == []
    for panel in PANELS:
        assert panel.title in words
        assert panel.healthy in words
        assert all(label in words for label in panel.lines.values())
    labels = [svg["aria-label"] or "" for svg in page.all("svg")]
    assert sum(label.startswith("pf-vit: ") for label in labels) == len(PANELS)
    assert not any("scratch" in label for label in labels if label.startswith("pf-vit: "))


def test_timeline_shows_the_first_seed_by_step(study):
    page = Page(write_report(study).html.read_text())
    images = [image["alt"] or "" for image in page.all("img") if "at step" in (image["alt"] or "")]
    steps = [int(text.rsplit(" ", 1)[1]) for text in images]
    assert all("pf-vit, seed 0" in text for text in images)
    assert len(steps) == MAX_GRIDS
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (10, 100)


def test_few_grids_are_all_shown():
    files = [Path("1.jpg"), Path("2.jpg"), Path("3.jpg")]
    assert evenly_spaced(files) == files


def test_runs_without_diagnostics_have_no_section(tmp_path):
    folder = write_run(tmp_path, "pf-vit", 0, objective="pf_mag")
    (folder / "metrics.jsonl").write_text('{"split": "train", "step": 1, "loss": 2.0, "adv": 1.0}\n')
    page = write_report(tmp_path).html.read_text()
    assert 'id="adversarial"' not in page
    assert "L_adv" in page
