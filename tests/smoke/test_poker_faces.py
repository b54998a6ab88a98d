"""The committed poker-face results: the checkpoint gives the committed figures, and the figures give the aims."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import erasure_parts, recipe_parts, silent_tokens
from benchmarks.poker_aims import evaluate_aims
from benchmarks.poker_check import differences, evaluate
from benchmarks.poker_faces import (
    CHECKPOINT_FIGURES,
    COMPARED_RUNS,
    NAME,
    RESULTS,
    UNSEEN_FIGURES,
    configs,
    markdown,
    plan,
    record,
    results,
    runs_by_name,
)
from benchmarks.poker_records import Records
from benchmarks.poker_residue import residue, summary, table
from benchmarks.recipe_variants import commits_line
from pfcluster.config.io import with_values
from pfcluster.config.starts import EQUAL_EPOCHS, EQUAL_FLOPS
from pfcluster.evaluate.linear_probe import probe_accuracy
from pfcluster.launch.plan import TrainRun
from pfcluster.runs.folder import write_config, write_requested_config

pytestmark = pytest.mark.slow

WEIGHTS, FIGURES = RESULTS / f"{NAME}.safetensors", RESULTS / f"{NAME}.json"
OF_CHECKPOINT = RESULTS / CHECKPOINT_FIGURES


@pytest.fixture(scope="module")
def measured() -> dict[str, float]:
    """The figures that the committed checkpoint gives here."""
    return evaluate(WEIGHTS)


def test_committed_checkpoint_gives_the_committed_figures(measured):
    assert WEIGHTS.stat().st_size <= 5e6
    assert differences(measured, OF_CHECKPOINT) == []


def test_figures_that_differ_are_reported(measured):
    changed = measured | {"poker_mse_inside": 1.05 * measured["poker_mse_inside"], "accuracy": 0.005}
    del changed["rec_mse_inside"]
    problems = "\n".join(differences(changed, OF_CHECKPOINT))
    assert "poker_mse_inside: " in problems
    assert "accuracy: " in problems
    assert "not measured" in problems
    assert "poker_mse_outside" not in problems


def test_committed_aims_follow_from_the_committed_figures():
    written = json.loads(FIGURES.read_text())
    runs = {
        name: {
            figure: {int(seed): value for seed, value in cells["by_seed"].items()} for figure, cells in figures.items()
        }
        for name, figures in written["runs"].items()
    }
    equal_flops = runs.get(EQUAL_FLOPS, runs["mae-vit"])  # the former recipe had no other control
    aims = evaluate_aims(runs["pf-vit"], runs["no-adversary"], equal_flops, runs.get(EQUAL_EPOCHS))
    committed = written["aims"]
    texts = [(aim.name, aim.criterion, aim.note, aim.met) for aim in aims]
    assert texts == [(aim["name"], aim["criterion"], aim["note"], aim["met"]) for aim in committed]
    assert [aim.value.mean for aim in aims] == pytest.approx([aim["value"]["mean"] for aim in committed])
    assert len(written["seeds"]) >= 5


def test_committed_tables_show_the_committed_figures():
    assert (RESULTS / f"{NAME}.md").read_text() == markdown(json.loads(FIGURES.read_text()))


def test_residue_shares_add_up_to_one_and_errors_are_those_of_the_checkpoint(measured):
    classes, labels, rows = residue(WEIGHTS)
    assert classes[0] == "neutral"
    of_emotions = {name: summary(rows[labels == index]) for index, name in enumerate(classes)}
    for ratio, neutral, true_emotion, other, *_, truth in (of_emotions[name].tolist() for name in classes[1:]):
        assert ratio < 1
        assert neutral + true_emotion + other == pytest.approx(1)
        assert truth > 0.8
    assert summary(rows)[0].item() == pytest.approx(measured["poker_mse_inside"] / measured["input_mse_inside"])
    last = table(classes, labels, rows).splitlines()[-1]
    assert last.startswith(f"| all with an expression | {(labels > 0).sum()} | 0.2")


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


def test_a_row_of_fewer_seeds_says_so(tmp_path):
    stages = {stage.name: stage for stage in plan(tmp_path, (4, 5, 6, 7), COMPARED_RUNS).stages}
    assert [task.config.seed for task in stages["no-adversary"].tasks] == [4, 5, 6]
    written = json.loads(FIGURES.read_text())
    accuracy = written["runs"]["no-adversary"]["accuracy"]
    accuracy["by_seed"] = written["runs"]["pf-vit"]["accuracy"]["by_seed"]
    assert "has the seeds" not in markdown(written)
    accuracy["by_seed"] = {"1": 0.9, "3": 0.9}
    assert "`no-adversary` has the seeds 1, 3." in markdown(written)


@pytest.mark.parametrize("benchmark", [recipe_parts, erasure_parts])
def test_leave_one_out_changes_the_recipe_in_every_part(benchmark, tmp_path):
    stages = {stage.name: stage for stage in benchmark.plan(tmp_path, (1, 2)).stages}
    recipe = stages["pf-vit"].tasks[0].config
    variants = [stage.tasks[0].config for name, stage in stages.items() if name.startswith("without-")]
    assert len(variants) == len(stages) - len(("mae", "judge", "mae-vit", "pf-vit"))
    unnamed = [replace(config, name=recipe.name) for config in variants]
    assert recipe not in unnamed
    assert all(config not in unnamed[:index] for index, config in enumerate(unnamed))
    assert {config.model.init for config in variants} == {recipe.model.init}


def test_every_row_of_the_silent_tokens_is_another_run_on_other_faces_than_the_search(tmp_path):
    stages = {stage.name: stage for stage in silent_tokens.plan(tmp_path, (1, 2)).stages}
    recipe = stages["pf-vit"].tasks[0].config
    variants = [stages[name].tasks[0].config for name in silent_tokens.variants()]
    unnamed = [recipe, *(replace(config, name=recipe.name) for config in variants)]
    assert all(config not in unnamed[:index] for index, config in enumerate(unnamed))
    assert {config.data.synthetic.seed for config in unnamed} == {silent_tokens.FACES}
    assert recipe.evaluate.n_probe_images > 0


@pytest.mark.parametrize("page", [recipe_parts, silent_tokens])
def test_committed_tables_of_variants_show_the_committed_figures(page):
    written = json.loads((RESULTS / f"{page.NAME}.json").read_text())
    assert (RESULTS / f"{page.NAME}.md").read_text() == page.markdown(written)


def test_rows_of_another_commit_are_named():
    assert commits_line({"commit": "a" * 40, "other_commits": {}}) == "commit aaaaaaa"
    values = {"commit": "a" * 40, "other_commits": {"one": "b" * 40, "two": "c" * 40, "three": "b" * 40}}
    assert commits_line(values) == 'commit aaaaaaa ("one" and "three": bbbbbbb) ("two": ccccccc)'


def test_a_net_reads_what_a_linear_probe_cannot():
    points = torch.randn(1200, 4, generator=torch.Generator().manual_seed(0))
    labels = (points[:, 0] * points[:, 1] > 0).long()  # the product of two features: linearly silent
    train, test = slice(0, 1000), slice(1000, 1200)
    assert probe_accuracy(points[train], labels[train], points[test], labels[test]) < 0.65
    assert silent_tokens.net_probe(points[train], labels[train], points[test], labels[test]) > 0.85


def test_leave_one_out_table_marks_what_differs():
    figures = {column: {"mean": 0.5, "std": 0.1} for column in recipe_parts.FIGURES}
    worse = {column: cell | {"difference": -0.2, "p": 0.01} for column, cell in figures.items()}
    same = {column: cell | {"difference": -0.2, "p": 0.2} for column, cell in figures.items()}
    values = {"date": "2026-01-01", "commit": "c", "machine": "m", "seeds": [1, 2], "command": "x", "recipe": figures}
    table = recipe_parts.markdown(values | {"without": {"anchor": worse, "R1": same}})
    assert "| anchor | **0.500 ± 0.100** | **0.500 ± 0.100** | **0.500 ± 0.100** | **0.500 ± 0.100** (better)" in table
    assert "| R1 | 0.500 ± 0.100 |" in table


def write_finished_run(run: TrainRun, accuracy: float) -> None:
    """The files of a run that has finished on the test split, without weights."""
    faces = {"mse_inside": 0.1, "mse_outside": 0.1, "neutralised_rate": 0.9, "emotion_agreement": 0.9}
    probes = {row: {"emotion": accuracy, "identity": 0.5} for row in ("reconstruction", "poker face", "f_p")}
    write_requested_config(run.folder, run.config)
    write_config(run.folder, run.config)
    result = {"format": 1, "status": "finished", "measured_on": "test", "steps": 7, "seconds": 1.5, "device": "cpu"}
    result |= {"test": {"n": 10, "accuracy": accuracy}, "git_commit": "new", "versions": {"torch": "x"}}
    result |= {"poker": {"rows": dict.fromkeys(("input", "reconstruction", "poker face", "truth"), faces)}}
    result |= {"probes": {"rows": probes, "emotion_chance": 0.1, "identity_chance": 0.1}}
    if run.config.objective == "mae":
        result["test"] = {"loss": 0.3, "n": 10}
    (run.folder / "result.json").write_text(json.dumps(result))


def test_runs_with_a_record_of_their_config_are_not_trained_again(tmp_path):
    file, folder = tmp_path / "records.json", tmp_path / "runs"
    runs = runs_by_name(folder, (1, 2))
    for name in ("mae", "judge"):
        write_finished_run(runs[name][0], 0.9)
    write_finished_run(runs["mae-vit"][1], 0.7)
    records = Records(file, folder)
    assert record(folder, tmp_path, (1, 2), records) == [("mae", 0), ("judge", 0), ("mae-vit", 2)]
    assert record(folder, tmp_path, (1, 2), records) == []
    elsewhere = tmp_path / "elsewhere"
    read = Records(file, elsewhere)
    stages = {stage.name: stage.tasks for stage in plan(elsewhere, (1, 2), ("mae-vit",), read).stages}
    assert [run.config.seed for run in stages["mae-vit"]] == [1]
    stages = {stage.name: stage.tasks for stage in plan(elsewhere, (1, 2), ("pf-vit",), read).stages}
    assert [run.config.seed for run in stages["mae-vit"]] == [1, 2], "PF-ViT starts from them"
    found = read.find("mae-vit", runs_by_name(elsewhere, (1, 2))["mae-vit"][1].config)
    assert found is not None
    assert found.figures["accuracy"] == 0.7
    changed = with_values(runs["mae-vit"][1].config, {"optim.lr": 0.5})
    assert records.find("mae-vit", changed) is None


def test_the_report_needs_a_record_of_every_run(tmp_path):
    records = Records(tmp_path / "records.json", tmp_path)
    unseen = dict.fromkeys(UNSEEN_FIGURES, 0.5)
    rows = runs_by_name(tmp_path, (1, 2, 3))
    for name, runs in rows.items():
        for index, run in enumerate(runs):
            write_finished_run(run, 0.6 + index / 10)
            if (name, index) not in (("pf-vit", 2), ("no-adversary", 1)):
                of_run = records.measured(run, unseen if name == "pf-vit" else None, None)
                records.add(name, run.config.seed, of_run)
    with pytest.raises(FileNotFoundError, match="no figures of pf-vit seed 3, no-adversary seed 2;"):
        results(tmp_path, (1, 2, 3), records)
    stages = {stage.name: stage for stage in plan(tmp_path, (1, 2, 3), COMPARED_RUNS, records).stages}
    assert [task.config.seed for task in stages["mae-vit"].tasks] == [2, 3]
    assert "mae-vit" in stages["pf-vit"].after, "the rows have other seeds"
    records.add("no-adversary", 2, records.measured(rows["no-adversary"][1], None, None))
    records.add("pf-vit", 3, records.measured(rows["pf-vit"][2], unseen, None))
    values = results(tmp_path, (1, 2, 3), records)
    assert values["runs"]["pf-vit"]["accuracy"]["by_seed"] == pytest.approx({"1": 0.6, "2": 0.7, "3": 0.8})
    assert values["cost"]["pf-vit"]["seconds_per_run"] == [1.5] * 3
    assert plan(tmp_path, (1, 2, 3), COMPARED_RUNS, records).stages == ()
    table = markdown(values)
    assert "commit new" in table
    assert "| judged neutral | 0.5000 ± 0.0000 |" in table
