"""The committed poker faces: the checkpoint has the figures that are written beside it, and the aims are judged so."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file

from benchmarks.poker_aims import judge
from benchmarks.poker_check import check
from benchmarks.poker_faces import NAME, RESULTS, configs, plan
from benchmarks.poker_residue import COLUMNS, residue

WEIGHTS, FIGURES = RESULTS / f"{NAME}.safetensors", RESULTS / f"{NAME}.json"


def test_the_committed_checkpoint_has_its_figures():
    assert WEIGHTS.stat().st_size <= 5e6
    assert check(WEIGHTS, FIGURES) == []


def test_a_changed_figure_or_checkpoint_is_found_out(tmp_path):
    from safetensors import safe_open

    with safe_open(str(WEIGHTS), "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(str(WEIGHTS))
    tensors["model.generator.head.bias"] += 0.2
    save_file(tensors, str(tmp_path / "other.safetensors"), metadata=metadata)
    told = "\n".join(check(tmp_path / "other.safetensors", FIGURES))
    assert "poker_region" in told
    assert "accuracy" not in told


def test_the_written_aims_are_what_the_written_figures_come_to():
    found = json.loads(FIGURES.read_text())
    runs = {
        name: {
            figure: {int(seed): value for seed, value in cells["by_seed"].items()} for figure, cells in figures.items()
        }
        for name, figures in found["runs"].items()
    }
    aims = judge(runs["pf-vit"], runs["no-adversary"], runs["mae-vit"])
    assert [(aim.name, aim.met) for aim in aims] == [(aim["name"], aim["met"]) for aim in found["aims"]]
    for aim, told in zip(aims, found["aims"], strict=True):
        assert aim.value.mean == pytest.approx(told["value"]["mean"])
    assert len(found["seeds"]) >= 5


def test_what_the_judge_still_sees_adds_up():
    classes, shares, counts = residue(WEIGHTS, 200)
    cells = dict(zip(COLUMNS, shares[1:].T, strict=True))
    assert counts.sum() == 200
    assert classes[0] == "neutral"
    assert (cells["neutral"] + cells["own"] + cells["other"]).tolist() == pytest.approx([1.0] * (len(classes) - 1))
    assert (cells["truth"] >= cells["neutral"]).all()
    assert (cells["region"] < 1).all()


def test_runs_differ_in_what_they_are_compared_for_alone(tmp_path):
    made = configs(tmp_path)
    ours, without = made["pf-vit"], made["no-adversary"]
    assert (ours.pf_mag.weights.adv, without.pf_mag.weights.adv) == (1.0, 0.0)
    assert ours.evaluate == without.evaluate
    assert ours.optim == without.optim
    assert made["mae-vit"].epochs > 5 * ours.epochs  # a step of the game costs several of fine-tuning
    groups = plan(tmp_path, (1, 2), ("pf-vit",)).groups
    assert [group.name for group in groups] == ["mae", "judge", "pf-vit"]
    assert [task.config.seed for task in groups[2].tasks] == [1, 2]
