"""Training budgets: controls of equal epochs and FLOPs, and the tables that name them."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from pfcluster.config import ConfigError, RunConfig
from pfcluster.config.io import to_json
from pfcluster.launch.budget_controls import budget_controls
from pfcluster.launch.study_plan import make_plan
from pfcluster.launch.training_options import parse_training
from pfcluster.profiling.flops import profile
from pfcluster.profiling.training_cost import step_flops, training_cost
from pfcluster.report.write import write_report
from pfcluster.training.schedule import total_steps
from tests.studies import CLASSES, text, write_run
from tests.tiny import OPTIONS, config

SAMPLES, CLASS_COUNT = 96, 7
MAE_VIT = config("finetune", name="mae-vit", epochs=4)
PF_VIT = config("pf_mag", name="pf-vit", epochs=6)


def test_cost_of_a_run_has_its_warm_up_apart():
    """36 steps of 16 images, of which three are the warm-up."""
    cost = training_cost(PF_VIT, CLASS_COUNT, SAMPLES)
    assert (cost.steps, cost.images, cost.epochs) == (36, 576, 6)
    warmup, adversarial = (profile(PF_VIT, CLASS_COUNT, warmup=warmup).flops for warmup in (True, False))
    assert warmup < adversarial
    assert cost.flops == pytest.approx(16 * (3 * warmup + 33 * adversarial))
    limited = training_cost(replace(PF_VIT, max_steps=12), CLASS_COUNT, SAMPLES)
    assert (limited.steps, limited.epochs) == (12, 2)


@pytest.mark.parametrize("options", [{"activation_checkpointing": True}, {"grad_accumulation_steps": 2}])
@pytest.mark.parametrize("run", [MAE_VIT, PF_VIT])
def test_options_that_save_memory_do_not_change_the_budget(run, options):
    """Controls of equal FLOPs are as long with them as without."""
    saving = replace(run, engine=replace(run.engine, **options))
    assert training_cost(saving, CLASS_COUNT, SAMPLES) == training_cost(run, CLASS_COUNT, SAMPLES)
    assert step_flops(saving, CLASS_COUNT, False) == step_flops(run, CLASS_COUNT, False)


@pytest.mark.parametrize(("from_mae_vit", "epochs"), [(True, 10), (False, 6)])
def test_controls_are_as_long_as_what_they_control(from_mae_vit, epochs):
    by_epochs, by_flops = budget_controls(("epochs", "flops"), MAE_VIT, PF_VIT, starts_from_mae_vit=from_mae_vit)
    assert (by_epochs.name, by_epochs.epochs) == ("mae-vit-equal-epochs", epochs)
    assert by_flops.name == "mae-vit-equal-flops"
    budget = training_cost(PF_VIT, CLASS_COUNT, SAMPLES)
    budget += training_cost(MAE_VIT, CLASS_COUNT, SAMPLES) if from_mae_vit else replace(budget, flops=0)
    step = profile(MAE_VIT, CLASS_COUNT).flops * 16
    assert training_cost(by_flops, CLASS_COUNT, SAMPLES).flops == pytest.approx(budget.flops, abs=step)


def test_controls_of_limited_runs_have_their_steps():
    """Two steps of four images each, of a split of 20 000: less than a thousandth of an epoch."""
    data = replace(MAE_VIT.data, synthetic=replace(MAE_VIT.data.synthetic, train=20_000))
    limited = [replace(run, data=data, batch_size=4, max_steps=2) for run in (MAE_VIT, PF_VIT)]
    by_epochs, by_flops = budget_controls(("epochs", "flops"), *limited, starts_from_mae_vit=True)
    assert total_steps(by_epochs, 20_000) == 4
    assert total_steps(by_flops, 20_000) > 4, "a step of PF-ViT takes more FLOPs"


def test_study_plans_controls_from_the_same_mae(tmp_path):
    words = ["--preset", "demo", *OPTIONS, "--executor", "local", "--output", str(tmp_path)]
    plan = make_plan(parse_training("study", [*words, "--budget-controls", "flops", "--seeds", "0", "1"]))
    control = next(stage for stage in plan.stages if stage.name == "mae-vit-equal-flops")
    assert control.after == ("mae",)
    assert {run.config.model.init for run in control.tasks} == {str(tmp_path / "mae/seed-0")}
    assert [run.config.seed for run in control.tasks] == [0, 1]
    assert "mae-vit-equal-flops" in plan.stages[-1].after
    photos = [*words, "--budget-controls", "epochs", "--input", str(tmp_path / "photos")]
    (tmp_path / "photos/happy").mkdir(parents=True)
    with pytest.raises(ConfigError, match="shards are not built; build them first"):
        make_plan(parse_training("study", photos))


def write(study: Path, run: RunConfig, seed: int, accuracy: float, init: Path | None = None) -> Path:
    """A finished run of a real config, on 96 training images."""
    data = {"name": "synthetic", "classes": CLASSES, "train": SAMPLES, "validation": 10, "test": 8}
    steps = training_cost(run, len(CLASSES), SAMPLES).steps
    values = {"accuracy": accuracy, "objective": run.objective, "dataset": data, "steps": steps, "suffix": "a"}
    folder = write_run(study, run.name, seed, **values)
    seeded = replace(run, seed=seed, model=replace(run.model, init=None if init is None else str(init)))
    (folder / "config.json").write_text(to_json(seeded))
    return folder


def test_report_names_every_budget_and_compares_by_seed(tmp_path):
    mae = write(tmp_path, config("mae", name="mae"), 0, 0.0)
    control = replace(MAE_VIT, name="mae-vit-equal-epochs", epochs=10)
    for seed, (start, gain) in enumerate([(0.70, 0.04), (0.60, 0.05), (0.50, 0.06)]):
        first = write(tmp_path, MAE_VIT, seed, start, mae)
        write(tmp_path, PF_VIT, seed, start + gain, first)
        write(tmp_path, control, seed, start + gain, mae)
    report = write_report(tmp_path)
    words = [line for line in text(report).splitlines() if line.startswith("|")]
    rows = {tuple(cell.strip() for cell in line.strip("|").split("|"))[:2]: line for line in words}
    own, total = report.report.budgets["pf-vit"].own, report.report.budgets["pf-vit"].total
    assert (own.epochs, own.steps, own.images, total.epochs, total.images) == (6, 36, 576, 10, 960)
    assert total.flops == own.flops + training_cost(MAE_VIT, len(CLASSES), SAMPLES).flops
    assert "| 6 | 36 | 576 |" in rows["pf-vit", "mae-vit"]
    assert "| 10 | 60 | 960 |" in rows["mae-vit-equal-epochs", "mae"]
    assert "| random weights |" in rows["mae", "random weights"]
    against_start, against_control = (rows["pf-vit", name] for name in ("mae-vit", "mae-vit-equal-epochs"))
    assert against_control.split("|")[3].strip() == "1.00"
    paired = {one.baseline.name: one.accuracy for one in report.report.on_budgets}
    assert paired["mae-vit"].difference.mean == pytest.approx(5)
    assert paired["mae-vit"].difference.std == pytest.approx(1), "paired by seed: the seeds differ by 10 points"
    assert paired["mae-vit-equal-epochs"].difference.mean == pytest.approx(0)
    summary = report.summary_csv.read_text().splitlines()[0].split(",")
    assert {"budget.flops", "budget_in_all.epochs"} <= set(summary)
    assert against_start != against_control
    compared = csv.DictReader(write_report(tmp_path, baseline="mae-vit").comparisons_csv.open())
    assert [row["baseline"] for row in compared if row["name"] == "pf-vit"] == ["mae-vit", "mae-vit-equal-epochs"]


def at(study: Path, place: str, run: RunConfig, init: str | None, seed: int = 0) -> Path:
    """A finished run in this folder of the study."""
    folder, target = write(study / "made", run, seed, 0.7, None if init is None else Path(init)), study / place
    target.parent.mkdir(parents=True, exist_ok=True)
    return folder.rename(target)


def budgets_of(study: Path):
    """Start and epochs in all, by label."""
    return {label: (one.start, one.total.epochs) for label, one in write_report(study).report.budgets.items()}


def test_a_start_outside_the_study_is_none_of_its_runs(tmp_path):
    """MAE-ViT starts from a run of another study with its own name, which exists or was removed."""
    for name, made in (("removed", False), ("present", True)):
        study, outside = tmp_path / name, tmp_path / f"elsewhere-{name}/mae-vit/seed-0"
        if made:
            outside.mkdir(parents=True)
        at(study, "mae-vit/seed-0", MAE_VIT, str(outside))
        at(study, "pf-vit/seed-0", PF_VIT, str(study / "mae-vit/seed-0"))
        assert budgets_of(study) == {"mae-vit": (str(outside), 4), "pf-vit": ("mae-vit", 10)}
    other = tmp_path / "another/mae-vit/seed-0"
    other.mkdir(parents=True)
    study = tmp_path / "third"
    at(study, "mae-vit/seed-0", MAE_VIT, None)
    at(study, "pf-vit/seed-0", PF_VIT, str(other))
    assert budgets_of(study)["pf-vit"] == (str(other), 6), "there is a folder, but it is not of this study"


def test_starts_are_found_in_a_study_that_was_moved(tmp_path):
    for dataset, epochs in (("a", 4), ("b", 2)):
        start = replace(MAE_VIT, name=f"mae-vit-{dataset}", epochs=epochs)
        at(tmp_path, f"{dataset}/mae-vit/seed-0", start, "/gone/mae/seed-0")
        pf_vit = replace(PF_VIT, name=f"pf-vit-{dataset}")
        at(tmp_path, f"{dataset}/pf-vit/seed-0", pf_vit, f"/gone/{dataset}/mae-vit/seed-0")
    at(tmp_path, "c/pf-vit/seed-0", replace(PF_VIT, name="pf-vit-c"), "/gone/c/mae-vit/seed-0")
    found = budgets_of(tmp_path)
    assert [found[f"pf-vit-{one}"] for one in "ab"] == [("mae-vit-a", 10), ("mae-vit-b", 8)]
    assert found["pf-vit-c"] == ("/gone/c/mae-vit/seed-0", 6), "it may be either of the two"


def test_runs_that_seem_to_have_started_from_each_other_have_no_budget(tmp_path):
    at(tmp_path, "a/seed-0", replace(MAE_VIT, name="a"), "/gone/b/seed-0")
    at(tmp_path, "b/seed-0", replace(MAE_VIT, name="b"), "/gone/a/seed-0")
    at(tmp_path, "pf-vit/seed-0", PF_VIT, "/gone/mae/seed-0")
    assert set(budgets_of(tmp_path)) == {"pf-vit"}


def test_report_without_sizes_has_no_budgets(tmp_path):
    folder = write_run(tmp_path, "scratch", 0)
    result = json.loads((folder / "result.json").read_text())
    del result["dataset"]["train"]
    (folder / "result.json").write_text(json.dumps(result))
    assert write_report(tmp_path).report.budgets == {}
