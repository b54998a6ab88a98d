"""The paper's experiments: matrix of runs, record, claims and tables."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from pfcluster import training
from pfcluster.cli.reproduce import OF_REAL_DATASETS, ReproduceOptions, parse
from pfcluster.config import ConfigError, RunConfig, SyntheticConfig
from pfcluster.config.io import differences
from pfcluster.config.starts import EQUAL_EPOCHS
from pfcluster.data.build.pipeline import build
from pfcluster.experiments import paper
from pfcluster.experiments.accuracy_tables import accuracy_table, claims_table
from pfcluster.experiments.cells import CELLS, REFERENCE, TABLES, cell_by_name
from pfcluster.experiments.claims import check_claims, compare_interval
from pfcluster.experiments.matrix import Settings, plan_runs, runs_by_cell, selected_cells
from pfcluster.experiments.measure import MeasureError, measure
from pfcluster.experiments.measure_tables import mask_ratio_table
from pfcluster.experiments.miniature import miniature
from pfcluster.experiments.record import RecordError, make_record, read_record, write_record
from pfcluster.experiments.results import read_results
from pfcluster.experiments.tables import all_tables
from pfcluster.experiments.write import write_tables
from pfcluster.report.statistics import Summary
from pfcluster.training.schedule import total_steps
from tests.photos import make_folder
from tests.photos import options as photo_options
from tests.studies import Page, poker, write_run
from tests.tiny import DATA, config


def real_settings(output: Path, **changes) -> Settings:
    values = {
        "datasets": {"rafdb": {"data.shards": "/data/rafdb"}, "affectnet8": {"data.shards": "/data/affectnet8"}},
        "with_neutral": frozenset(("rafdb", "affectnet8")),
        "pretraining_data": {"data.shards": "/data/affectnet8"},
        "presets": {size: f"vit-{size}" for size in "tsb"},
        "init_weights": {"timm": "timm:vit", "imagenet-mae": "mae.pth", "released-mae": "faces.pth"},
        "identity_net_weights": "face.pt",
    }
    return Settings(output, (0, 1), **{**values, **changes})


def test_every_cell_has_a_valid_config_on_real_and_synthetic_faces(tmp_path):
    for settings in (real_settings(tmp_path), miniature(tmp_path, (0, 1), (), (), lambda config: config)):
        runs = plan_runs(settings)
        assert len({run.folder for run in runs}) == len(runs)
        for (_, name), group in runs_by_cell(runs).items():
            assert len(group) == (2 if group[0].cell else 1), name
            for run in group:
                assert differences(group[0].config, run.config).keys() <= {"seed", "model.init"}
    names = {run.name for run in plan_runs(real_settings(tmp_path)) if run.cell}
    # identity-net-face shares the runs of pf-vit, and that starts from the MAE here
    assert names == {cell.name for cell in CELLS} - {"identity-net-face", EQUAL_EPOCHS}


def test_cells_that_the_preset_makes_the_same_as_another_are_not_run(tmp_path):
    runs = {run.name: run.config for run in plan_runs(miniature(tmp_path, (0,), (), (), lambda config: config))}
    assert runs["pf-vit"].pf_mag.loss_balancing == "fixed"
    assert "fixed-weights" not in runs
    assert runs[EQUAL_EPOCHS].epochs == runs["mae-vit"].epochs + runs["pf-vit"].epochs
    assert replace(runs[EQUAL_EPOCHS], name="mae-vit", epochs=runs["mae-vit"].epochs) == runs["mae-vit"]
    with pytest.raises(ConfigError, match="--cells: fixed-weights would be the same runs as pf-vit"):
        parse(["--miniature", "--executor", "local", "--cells", "fixed-weights"])
    balanced = parse(["--miniature", "--executor", "local", "--pf-mag.loss-balancing", "auto"])
    assert "fixed-weights" in {run.name for run in balanced.runs}
    with pytest.raises(ConfigError, match=f"{EQUAL_EPOCHS} would be the same runs as mae-vit"):
        plan_runs(real_settings(tmp_path, cells=(EQUAL_EPOCHS,)))
    shared = plan_runs(real_settings(tmp_path, cells=("identity-net-face",)))
    assert "pf-vit" in {run.name for run in shared}


def test_cell_differs_from_its_reference_only_in_its_changes(tmp_path):
    runs = {run.name: run.config for run in plan_runs(real_settings(tmp_path)) if run.dataset == "rafdb"}
    pf_vit = runs["pf-vit"]
    assert pf_vit.pf_mag.identity_net == "facenet"
    no_separator = replace(pf_vit.pf_mag, identity_net="tokens", identity_net_weights=None, separator_ratio=0.0)
    assert runs["no-separator"].pf_mag == no_separator
    assert runs["no-separator-real-fake"].pf_mag == replace(no_separator, discriminator_emotions=False)
    assert replace(runs["without-adv"], name="pf-vit", pf_mag=pf_vit.pf_mag) == pf_vit
    assert runs["sl-vit"].model.init == "timm:vit"
    assert replace(runs["mae-vit-strong"], name="x").augment.mixup == 0.8


def test_dependencies_are_the_runs_that_provide_weights(tmp_path):
    for run in plan_runs(real_settings(tmp_path)):
        if run.cell and run.cell.init == "mae":
            assert ("pretraining", f"mae-{run.cell.size}") in run.dependencies
            assert run.config.model.init == str(tmp_path / "pretraining" / f"mae-{run.cell.size}" / "seed-0")
        if run.cell and run.cell.role == "pf-vit":
            assert run.config.evaluate.judge == str(tmp_path / run.dataset / "judge" / "seed-0")


def test_ablations_are_limited_to_selected_tables_and_datasets(tmp_path):
    settings = real_settings(tmp_path, ablated=("rafdb",), tables=("separator",))
    assert {cell.name for cell in selected_cells(settings, "rafdb")} == {
        "mae-vit",
        "pf-vit",
        "no-separator",
        "no-separator-real-fake",
    }
    assert {cell.name for cell in selected_cells(settings, "affectnet8")} == {"mae-vit", "pf-vit"}


def test_cells_selected_by_name(tmp_path):
    settings = real_settings(tmp_path, cells=("scratch", "identity-net-tokens", "identity-net-face"))
    names = [cell.name for cell in selected_cells(settings, "rafdb")]
    assert names == ["scratch", "pf-vit", "identity-net-tokens"], "identity-net-face shares the runs of pf-vit"


def test_claims_and_results_of_the_paper_name_existing_cells():
    for claim in paper.CLAIMS:
        assert cell_by_name(claim.better) != cell_by_name(claim.worse)
    for figures in paper.ACCURACY.values():
        assert all(cell_by_name(name) for name in figures)
    assert set(REFERENCE) == set(TABLES) == {cell.table for cell in CELLS}


@pytest.mark.parametrize(
    ("theirs", "low", "high", "expected"),
    [(92.0, 91.0, 93.0, "contains"), (92.0, 92.5, 93.0, "above"), (92.0, 80.0, 91.0, "below"), (None, 80.0, 91.0, "–")],
)
def test_compare_interval(theirs, low, high, expected):
    assert compare_interval(theirs, Summary(3, (low + high) / 2, 1.0, low, high)) == expected
    assert compare_interval(theirs, None) == "not run"


ACCURACIES = {
    "mae-vit": [0.80, 0.81, 0.82],
    "pf-vit": [0.85, 0.861, 0.872],
    "scratch": [0.5, 0.7, 0.6],
    "no-separator": [0.90, 0.92, 0.91],
    "multi-task-0": [0.6, 0.6, 0.6],
}


@pytest.fixture
def reproduced(tmp_path) -> Path:
    """Some cells on one dataset with three seeds, and one failed run."""
    settings = real_settings(tmp_path, datasets={"rafdb": {}}, unavailable={"timm": "no network here"})
    settings = replace(settings, seeds=(0, 1, 2))
    write_record(tmp_path, make_record(settings, plan_runs(settings), "the command", miniature=False))
    for name, values in ACCURACIES.items():
        for seed, value in enumerate(values):
            changes = {"objective": "pf_mag", "poker": poker(0.1)} if name == "pf-vit" else {}
            if name == "multi-task-0":
                changes["by_mask_ratio"] = [
                    {"mask_ratio": ratio, "accuracy": value - ratio / 2, "n": 8} for ratio in (0.0, 0.75)
                ]
            folder = write_run(tmp_path / "made", name, seed, accuracy=value, **changes)
            target = tmp_path / "rafdb" / name / f"seed-{seed}"
            target.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(target)
    failed = tmp_path / "rafdb" / "without-adv" / "seed-1" / "logs"
    failed.mkdir(parents=True)
    (failed / "rank-0.log").write_text("warming up\nerror: the loss is not finite\n")
    return tmp_path


def test_accuracy_table_compares_with_the_paper(reproduced):
    table = accuracy_table(read_results(reproduced), "rafdb", "baselines")
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    pf_vit = rows["PF-ViT"]
    assert (pf_vit["paper %"], pf_vit["seeds"], pf_vit["accuracy %"]) == ("92.07", "3", "86.10 ± 1.10")
    assert (pf_vit["paper's difference"], pf_vit["difference"]) == ("+1.00", "+5.10")
    assert pf_vit["CI vs. paper"] == "below"
    assert rows["SL-ViT"]["CI vs. paper"] == "not run"
    assert rows["ViT from scratch"]["seeds"] == "3"


def test_claim_outcomes(reproduced):
    claims = {one.claim.name: one for one in check_claims(read_results(reproduced))}
    assert claims["pf-vit beats mae-vit"].outcome.startswith("supported")
    assert claims["pf-vit beats mae-vit"].holm_p > claims["pf-vit beats mae-vit"].difference.t_p
    assert claims["separator matters"].outcome.startswith("contradicted")
    assert claims["mae beats scratch"].outcome == "inconclusive"
    assert claims["mae on faces beats supervised ImageNet"].outcome == "not run"
    table = claims_table(read_results(reproduced))
    assert table is not None
    assert any("not run" in row for row in table.rows)


def test_a_claim_with_equal_differences_is_not_tested(reproduced):
    for seed, value in enumerate(ACCURACIES["mae-vit"]):
        file = reproduced / f"rafdb/pf-vit/seed-{seed}/result.json"
        content = json.loads(file.read_text())
        content["test"]["accuracy"] = value + 0.01
        file.write_text(json.dumps(content))
    claims = {one.claim.name: one for one in check_claims(read_results(reproduced))}
    assert claims["pf-vit beats mae-vit"].outcome == "all differences are equal: no test"
    assert claims["pf-vit beats mae-vit"].holm_p is None


def test_runs_of_a_cell_that_differ_in_more_than_the_seed_are_not_compared(reproduced):
    file = reproduced / "rafdb/pf-vit/seed-1/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"batch_size": 32}))
    results = read_results(reproduced)
    (notice,) = results.notices
    assert notice.text.startswith("rafdb: pf-vit: ")
    assert "batch_size is 64 and 32" in notice.text
    claims = {one.claim.name: one for one in check_claims(results)}
    compared = claims["pf-vit beats mae-vit"]
    assert (compared.difference, compared.predictions, compared.holm_p) == (None, None, None)
    assert compared.outcome == "not compared: runs of one name differ in more than the seed"
    table = accuracy_table(results, "rafdb", "baselines")
    assert "PF-ViT ⚠" in [row[0] for row in table.rows]
    files = write_tables(reproduced)
    assert "batch_size is 64 and 32" in " ".join(Page(files.html.read_text()).words)
    assert "is 64 and 32" in files.markdown.read_text()
    assert json.loads(files.json.read_text())["notices"] == [notice.text]


def test_mask_ratio_table(reproduced):
    (row,) = mask_ratio_table(read_results(reproduced), "rafdb").rows
    assert row[1] == "60.00 ± 0.00"
    assert row[2] == "–"
    assert row[4] == "22.50 ± 0.00"


def test_missing_cells_have_a_reason(reproduced):
    results = read_results(reproduced)
    assert results.missing["rafdb", "sl-vit"] == "no network here"
    assert "seed 0, 1, 2" in results.missing["rafdb", "without-adv"]
    assert "the loss is not finite" in results.missing["rafdb", "without-adv"]
    assert "not started" in results.missing["rafdb", "without-cls"]
    files = write_tables(reproduced)
    page = Page(files.html.read_text())
    assert not page.open
    assert "no network here" in " ".join(page.words)
    assert "no network here" in files.markdown.read_text()
    values = json.loads(files.json.read_text())
    accuracy = next(cell["accuracy"] for cell in values["cells"] if cell["cell"] == "pf-vit")
    assert list(accuracy.values()) == ACCURACIES["pf-vit"]
    assert len(all_tables(results)) >= 6


def test_cross_dataset_accuracy_skips_unfit_data_and_keeps_rows_of_unreadable_data(tmp_path):
    """Trained on one dataset; another has the same faces, a third no test split, a fourth other classes."""
    faces = {"data.size": 32, "data.synthetic": asdict(replace(DATA.synthetic, classes=("neutral", "fear")))}
    settings = real_settings(
        tmp_path,
        datasets={
            "own": faces,
            "same": faces,
            "untested": faces | {"data.target": "identity"},
            "others": faces | {"data.synthetic.classes": ["anger", "sadness"]},
            "disk": {"data.shards": str(tmp_path / "disk")},
        },
        with_neutral=frozenset(),
        cells=("mae-vit",),
    )
    settings = replace(settings, seeds=(0,))
    write_record(tmp_path, make_record(settings, [], "the command", miniature=False))
    data = replace(DATA, synthetic=SyntheticConfig(**faces["data.synthetic"]))
    training.run(config("finetune", name="mae-vit", epochs=1, data=data), tmp_path / "own/mae-vit/seed-0")
    with pytest.raises(MeasureError, match=r"cross\.json lacks 1 of .*mae-vit/seed-0 on disk: .*disk.*again"):
        measure("cross", tmp_path)
    (row,) = read_results(tmp_path).cross
    own = json.loads((tmp_path / "own/mae-vit/seed-0/result.json").read_text())["test"]["accuracy"]
    assert (row["trained"], row["tested"], row["accuracy"]) == ("own", "same", own)
    earlier = {**row, "tested": "disk", "accuracy": 0.123}
    (tmp_path / "measured/cross.json").write_text(json.dumps([earlier]))
    with pytest.raises(MeasureError, match="holds those of an earlier command"):
        measure("cross", tmp_path)
    assert read_results(tmp_path).cross == [row, earlier]


def test_record_round_trip_and_errors(tmp_path):
    settings = real_settings(tmp_path)
    record = make_record(settings, plan_runs(settings), "command", miniature=False)
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    (tmp_path / "reproduce.json").write_text("{")
    with pytest.raises(RecordError, match=r"reproduce\.json is not JSON"):
        read_record(tmp_path)
    with pytest.raises(RecordError, match=r"holds no reproduce\.json: pass the OUTPUT"):
        read_record(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --datasets NAME ..., or --miniature"),
        (["--miniature", "--datasets", "rafdb"], "either --datasets"),
        (["--datasets", "rafdb", "--data-root", "/nowhere"], "/nowhere/rafdb holds no shards; build them with"),
        (["--datasets", "rafdb", "--ablated", "nosuch"], "--ablated must be among --datasets rafdb, got 'nosuch'"),
        (
            ["--datasets", "../out/ts"],
            r"--datasets must be the name of a folder in --data-root data .*got '\.\./out/ts'",
        ),
        (["--datasets", "/data/ts"], r"--datasets must be the name of a folder in --data-root data .*got '/data/ts'"),
        (["--datasets", ".."], r"--datasets must be the name of a folder .*got '\.\.'"),
        (["--datasets", "pretraining"], "--datasets must not name pretraining"),
        (["--miniature", "--seeds", "1", "1"], "--seeds must differ"),
        (["--miniature", "--optim.rl", "3"], "optim.rl"),
    ],
)
def test_invalid_command_lines_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        parse([*arguments, "--executor", "local"])


def test_options_of_real_datasets_are_refused_with_the_miniature():
    """Every option is either read by both, or named in the error."""
    names = {field.name for field in fields(ReproduceOptions)}
    of_both = {"miniature", "datasets", "seeds", "pf_vit_start", "tables", "cells", "max_parallel"}
    of_both |= {"output", "job_name", "dry_run", "cluster"}
    assert names == of_both | set(OF_REAL_DATASETS)
    values = {"identity_net": "face", "preset": "vit"}  # also where the value is the default
    for name in OF_REAL_DATASETS:
        option, value = f"--{name.replace('_', '-')}", values.get(name, "x")
        for words in ([option, value], [f"{option}={value}"]):
            with pytest.raises(ConfigError, match=rf"^{option}: without effect with --miniature"):
                parse(["--miniature", "--executor", "local", *words])
    with pytest.raises(ConfigError, match=r"^--ablated, --fid: without effect"):
        parse(["--miniature", "--executor", "local", "--fid", "inception", "--ablated", "studio"])


@pytest.mark.parametrize("option", ["--datasets", "--faces", "--identities"])
def test_a_missing_dataset_is_reported_by_its_option(option, tmp_path):
    build(photo_options(make_folder(tmp_path / "raw"), tmp_path / "shards" / "here", name="here"))
    words = ["--executor", "local", "--data-root", str(tmp_path / "shards"), "--identity-net", "tokens"]
    words += ["--datasets", "here"] if option != "--datasets" else []
    for name, reason in (
        ("nosuch", "nosuch: .*nosuch holds no shards"),
        ("../shards/here", "must be the name of a folder"),
    ):
        with pytest.raises(ConfigError, match=rf"^{option} {reason}"):
            parse([*words, option, name, "--cells", "scratch"])


def test_overrides_apply_to_every_run_before_the_changes_of_cells():
    reproduction = parse(["--miniature", "--executor", "local", "--epochs", "0.5", "--augment.flip", "0.25"])
    assert {run.config.epochs for run in reproduction.runs if run.name != EQUAL_EPOCHS} == {0.5}
    assert {run.config.epochs for run in reproduction.runs if run.name == EQUAL_EPOCHS} == {1.0}
    flips = {run.name: run.config.augment.flip for run in reproduction.runs}
    assert flips["mae-vit"] == 0.25
    assert flips["mae-vit-plain"] == 0.0
    plan = reproduction.plan()
    assert plan.continue_on_failure
    assert {group.name for group in plan.stages if group.always_run} >= {"tables", "cross", "costs", "studio-report"}


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        (["--epochs", "1", "--max-steps", "10"], 20),
        (["--epochs", "1", "--max-steps", "1000"], 150),
        (["--epochs", "1", "--max-steps", "100000"], 150),
    ],
)
def test_mae_vit_of_equal_epochs_has_the_steps_of_both_runs(words, steps):
    """2400 images in batches of 32: 75 steps an epoch, unless `max_steps` ends the runs earlier."""
    reproduction = parse(["--miniature", "--executor", "local", "--batch-size", "32", "--seeds", "0", *words])
    runs = {run.name: run.config for run in reproduction.runs if run.dataset == "studio"}
    assert total_steps(runs["mae-vit"], 2400) + total_steps(runs["pf-vit"], 2400) == steps
    assert total_steps(runs[EQUAL_EPOCHS], 2400) == steps


def test_mae_vit_of_equal_epochs_is_as_long_as_runs_of_different_limits(tmp_path):
    """PF-ViT is limited, and its batches are smaller: 10 of 16 images after 75 of 32."""

    def change(config: RunConfig) -> RunConfig:
        limits = {"batch_size": 16, "max_steps": 10} if config.objective == "pf_mag" else {"batch_size": 32}
        return replace(config, epochs=1, **limits)

    runs = {run.name: run.config for run in plan_runs(miniature(tmp_path, (0,), (), (), change))}
    assert total_steps(runs[EQUAL_EPOCHS], 2400) == 75 + 5


def test_pf_vit_starts_from_mae_vit_of_its_seed_and_size():
    words = ["--miniature", "--executor", "local", "--seeds", "0", "1"]
    reproduction = parse([*words, "--cells", "pf-vit", "pf-vit-t", "sl-vit", "--output", "out"])
    stages = {stage.name: stage for stage in reproduction.plan().stages}
    for name, start, mae in (("pf-vit", "mae-vit", "mae-b"), ("pf-vit-t", "mae-vit-t", "mae-t")):
        stage = stages[f"studio-{name}"]
        assert stage.same_seed == (f"studio-{start}",), "MAE-ViT is trained although it was not selected"
        configs = [run.config for run in stage.tasks]
        assert [config.model.init for config in configs] == [f"out/studio/{start}/seed-{seed}" for seed in (0, 1)]
        assert {config.pf_mag.decoder_init for config in configs} == {f"out/pretraining/{mae}/seed-0"}
    of_mae = ["--pf-vit-start", "mae", "--pf-mag.discriminator-init", "decoder"]
    from_mae = parse([*words, *of_mae, "--cells", "pf-vit", "--output", "out"])
    assert {run.config.model.init for run in from_mae.runs if run.name == "pf-vit"} == {"out/pretraining/mae-b/seed-0"}
