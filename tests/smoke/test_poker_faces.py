"""The committed poker-face results: the checkpoint gives the committed figures, and the figures give the aims."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks import recipe_parts
from benchmarks.poker_aims import EQUAL_EPOCHS, EQUAL_FLOPS, evaluate_aims
from benchmarks.poker_check import differences, evaluate
from benchmarks.poker_faces import NAME, RESULTS, configs, markdown, plan
from benchmarks.poker_residue import COLUMNS, residue

pytestmark = pytest.mark.slow

WEIGHTS, FIGURES = RESULTS / f"{NAME}.safetensors", RESULTS / f"{NAME}.json"


@pytest.fixture(scope="module")
def measured() -> dict[str, float]:
    """The figures that the committed checkpoint gives here."""
    return evaluate(WEIGHTS)


def test_committed_checkpoint_gives_the_committed_figures(measured):
    assert WEIGHTS.stat().st_size <= 5e6
    assert differences(measured, FIGURES) == []


def test_figures_that_differ_are_reported(measured):
    changed = measured | {"poker_mse_inside": 1.05 * measured["poker_mse_inside"], "accuracy": 0.005}
    del changed["rec_mse_inside"]
    problems = "\n".join(differences(changed, FIGURES))
    assert "poker_mse_inside: " in problems
    assert "accuracy: " in problems
    assert "not measured" in problems
    assert "poker_mse_outside" not in problems


def test_committed_aims_follow_from_the_committed_figures():
    results = json.loads(FIGURES.read_text())
    runs = {
        name: {
            figure: {int(seed): value for seed, value in cells["by_seed"].items()} for figure, cells in figures.items()
        }
        for name, figures in results["runs"].items()
    }
    equal_flops = runs.get(EQUAL_FLOPS, runs["mae-vit"])  # the former recipe had no other control
    aims = evaluate_aims(runs["pf-vit"], runs["no-adversary"], equal_flops, runs.get(EQUAL_EPOCHS))
    committed = results["aims"]
    texts = [(aim.name, aim.criterion, aim.note, aim.met) for aim in aims]
    assert texts == [(aim["name"], aim["criterion"], aim["note"], aim["met"]) for aim in committed]
    assert [aim.value.mean for aim in aims] == pytest.approx([aim["value"]["mean"] for aim in committed])
    assert len(results["seeds"]) >= 5


def test_committed_tables_show_the_committed_figures():
    assert (RESULTS / f"{NAME}.md").read_text() == markdown(json.loads(FIGURES.read_text()))


def test_residue_shares_add_up_to_one():
    classes, means, counts = residue(WEIGHTS, 200)
    cells = dict(zip(COLUMNS, means[1:].T, strict=True))
    assert counts.sum() == 200
    assert classes[0] == "neutral"
    totals = cells["neutral"] + cells["true_emotion"] + cells["other"]
    assert totals.tolist() == pytest.approx([1.0] * (len(classes) - 1))
    assert cells["truth"].mean() > 0.8
    assert (cells["mse_ratio"] < 1).all()


def test_runs_differ_only_in_the_compared_options(tmp_path):
    by_name = configs(tmp_path)
    recipe, no_adversary, start = by_name["pf-vit"], by_name["no-adversary"], by_name["mae-vit"]
    assert recipe.pf_mag.weights.adv > 0 == no_adversary.pf_mag.weights.adv
    assert recipe.evaluate == no_adversary.evaluate
    assert recipe.optim == no_adversary.optim
    assert by_name["mae-vit-equal-epochs"].epochs == recipe.epochs + start.epochs
    assert by_name["mae-vit-equal-flops"].epochs > 2 * recipe.epochs  # a PF-MAG step costs several fine-tuning steps
    stages = plan(tmp_path, (1, 2), ("pf-vit",)).stages
    assert [stage.name for stage in stages] == ["mae", "judge", "mae-vit", "pf-vit"]
    assert [task.config.seed for task in stages[3].tasks] == [1, 2]
    assert [task.config.model.init for task in stages[3].tasks] == [str(task.folder) for task in stages[2].tasks]


def test_leave_one_out_changes_the_recipe_in_every_part(tmp_path):
    stages = {stage.name: stage for stage in recipe_parts.plan(tmp_path, (1, 2)).stages}
    recipe = stages["pf-vit"].tasks[0].config
    variants = [stage.tasks[0].config for name, stage in stages.items() if name.startswith("without-")]
    assert len(variants) == len(recipe_parts.parts(recipe))
    unnamed = [replace(config, name=recipe.name) for config in variants]
    assert recipe not in unnamed
    assert all(config not in unnamed[:index] for index, config in enumerate(unnamed))
    assert {config.model.init for config in variants} == {recipe.model.init}


def test_leave_one_out_table_marks_what_differs():
    figures = {column: {"mean": 0.5, "std": 0.1} for column in recipe_parts.FIGURES}
    worse = {column: cell | {"difference": -0.2, "p": 0.01} for column, cell in figures.items()}
    same = {column: cell | {"difference": -0.2, "p": 0.2} for column, cell in figures.items()}
    values = {"date": "2026-01-01", "commit": "c", "machine": "m", "seeds": [1, 2], "command": "x", "recipe": figures}
    table = recipe_parts.markdown(values | {"without": {"anchor": worse, "R1": same}})
    assert "| anchor | **0.500 ± 0.100** | **0.500 ± 0.100** | **0.500 ± 0.100** | **0.500 ± 0.100** (better)" in table
    assert "| R1 | 0.500 ± 0.100 |" in table
