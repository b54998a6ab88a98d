"""The report's section on the game between PF-ViT and Δ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from pfcluster.report.gan_curves import QUESTIONS, SHOWN_GRIDS, chosen
from pfcluster.report.write import write_report
from tests.studies import Page, write_group, write_run


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A PF-MAG group that logged the game, with ten grids in its first seed, and a fine-tuning group."""
    study = tmp_path / "study"
    write_group(study, "scratch", [0.70, 0.71])
    write_group(study, "pf-vit", [0.75, 0.77], objective="pf_mag")
    for folder in (study / "runs").glob("pf-vit*"):
        lines = []
        for question in QUESTIONS:
            values = dict.fromkeys(question.lines, 0.5)
            lines += [{"split": question.split, "step": step, **values} for step in range(1, 100, 9)]
        lines.append({"split": "train", "step": 100, "grad_poker_ort": 0.0})
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for step in range(10, 110, 10):
        file = study / "runs/pf-vit-seed0-0/pictures/steps" / f"{step:08d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 4), "red").save(file)
    return study


def test_every_question_is_drawn_with_what_is_healthy(study):
    page = Page(write_report(study).html.read_text())
    words = " ".join(page.words)
    assert page.open == []
    for question in QUESTIONS:
        assert question.title in words
        assert question.healthy in words
        assert all(label in words for label in question.lines.values())
    drawn = [svg["aria-label"] or "" for svg in page.all("svg")]
    assert sum(label.startswith("pf-vit: ") for label in drawn) == len(QUESTIONS)
    assert not any("scratch" in label for label in drawn if label.startswith("pf-vit: "))


def test_the_strip_shows_the_first_seed_over_time(study):
    page = Page(write_report(study).html.read_text())
    shown = [image["alt"] or "" for image in page.all("img") if "at step" in (image["alt"] or "")]
    steps = [int(text.rsplit(" ", 1)[1]) for text in shown]
    assert all("pf-vit, seed 0" in text for text in shown)
    assert len(steps) == SHOWN_GRIDS
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (10, 100)


def test_a_short_run_shows_all_its_grids():
    assert chosen(["1", "2", "3"]) == ["1", "2", "3"]


def test_runs_from_before_have_no_such_section(tmp_path):
    folder = write_run(tmp_path, "pf-vit", 0, objective="pf_mag")
    (folder / "metrics.jsonl").write_text('{"split": "train", "step": 1, "loss": 2.0, "adv": 1.0}\n')
    page = write_report(tmp_path).html.read_text()
    assert 'id="game"' not in page
    assert "L_adv" in page
