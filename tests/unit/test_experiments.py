"""The paper's experiments: a matrix of options, and tables that claim no more than the runs show."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pfcluster.cli.reproduce import parse
from pfcluster.config import ConfigError
from pfcluster.experiments import paper
from pfcluster.experiments.cells import CELLS, REFERENCE, TABLES, cell
from pfcluster.experiments.claims import judge, verdict
from pfcluster.experiments.matrix import Settings, by_group, matrix, wanted
from pfcluster.experiments.miniature import miniature
from pfcluster.experiments.record import RecordError, make_record, read_record, write_record
from pfcluster.experiments.results import collect
from pfcluster.experiments.tables import accuracies, all_tables, claims, ratios
from pfcluster.experiments.write import write_tables
from pfcluster.report.statistics import Summary
from tests.studies import Page, poker, write_run


def on_real_faces(output: Path, **changes) -> Settings:
    values = {
        "datasets": {"rafdb": {"data.shards": "/data/rafdb"}, "affectnet8": {"data.shards": "/data/affectnet8"}},
        "with_neutral": frozenset(("rafdb", "affectnet8")),
        "faces": {"data.shards": "/data/affectnet8"},
        "presets": {size: f"vit-{size}" for size in "tsb"},
        "starts": {"timm": "timm:vit", "imagenet-mae": "mae.pth", "released-mae": "faces.pth"},
        "phi_weights": "face.pt",
    }
    return Settings(output, (0, 1), **{**values, **changes})


def test_every_cell_is_a_config_on_real_and_on_synthetic_faces(tmp_path):
    for settings in (on_real_faces(tmp_path), miniature(tmp_path, (0, 1), (), (), lambda config: config)):
        runs = matrix(settings)
        assert len({run.folder for run in runs}) == len(runs)
        for (_, name), group in by_group(runs).items():
            assert len(group) == (2 if group[0].cell else 1), name
            assert len({replace(run.config, seed=0) for run in group}) == 1  # one name, one setting
    names = {run.name for run in matrix(on_real_faces(tmp_path))}
    assert names >= {each.name for each in CELLS} - {"phi-face"}  # which is pf-vit itself


def test_a_cell_differs_from_its_reference_in_what_it_says_alone(tmp_path):
    runs = {run.name: run.config for run in matrix(on_real_faces(tmp_path)) if run.dataset == "rafdb"}
    pf_vit = runs["pf-vit"]
    assert pf_vit.pf_mag.identity_net == "facenet"
    blind = replace(pf_vit.pf_mag, identity_net="tokens", identity_net_weights=None, separator_ratio=0.0)
    assert runs["no-separator"].pf_mag == blind
    assert runs["no-separator-blind"].pf_mag == replace(blind, discriminator_emotions=False)
    assert replace(runs["without-adv"], name="pf-vit", pf_mag=pf_vit.pf_mag) == pf_vit
    assert runs["sl-vit"].model.init == "timm:vit"
    assert replace(runs["mae-vit-strong"], name="x").augment.mixup == 0.8


def test_runs_wait_for_what_they_start_from(tmp_path):
    for run in matrix(on_real_faces(tmp_path)):
        if run.cell and run.cell.start == "mae":
            assert ("pretraining", f"mae-{run.cell.size}") in run.after
            assert run.config.model.init == str(tmp_path / "pretraining" / f"mae-{run.cell.size}" / "seed-0")
        if run.cell and run.cell.role == "pf-vit":
            assert run.config.evaluate.judge == str(tmp_path / run.dataset / "judge" / "seed-0")


def test_ablations_keep_to_their_tables_and_datasets(tmp_path):
    settings = on_real_faces(tmp_path, ablated=("rafdb",), tables=("separator",))
    assert {each.name for each in wanted(settings, "rafdb")} == {
        "mae-vit",
        "pf-vit",
        "no-separator",
        "no-separator-blind",
    }
    assert {each.name for each in wanted(settings, "affectnet8")} == {"mae-vit", "pf-vit"}


def test_cells_may_be_named_one_by_one(tmp_path):
    settings = on_real_faces(tmp_path, cells=("scratch", "phi-tokens", "phi-face"))
    assert [each.name for each in wanted(settings, "rafdb")] == ["scratch", "phi-tokens"]  # the third is pf-vit


def test_names_of_claims_and_figures_are_cells():
    for claim in paper.CLAIMS:
        assert cell(claim.better) != cell(claim.worse)
    for figures in paper.ACCURACY.values():
        assert all(cell(name) for name in figures)
    assert set(REFERENCE) == set(TABLES) == {each.table for each in CELLS}


@pytest.mark.parametrize(
    ("theirs", "low", "high", "word"),
    [(92.0, 91.0, 93.0, "within"), (92.0, 92.5, 93.0, "above"), (92.0, 80.0, 91.0, "below"), (None, 80.0, 91.0, "–")],
)
def test_a_verdict_is_where_the_papers_figure_lies(theirs, low, high, word):
    assert verdict(theirs, Summary(3, (low + high) / 2, 1.0, low, high)) == word
    assert verdict(theirs, None) == "not run"


ACCURACIES = {
    "mae-vit": [0.80, 0.81, 0.82],
    "pf-vit": [0.85, 0.861, 0.872],
    "scratch": [0.5, 0.7, 0.6],
    "no-separator": [0.90, 0.92, 0.91],
    "multi-task-0": [0.6, 0.6, 0.6],
}


@pytest.fixture
def reproduced(tmp_path) -> Path:
    """Some cells on one dataset of three seeds, one of which failed."""
    settings = on_real_faces(tmp_path, datasets={"rafdb": {}}, missing={"timm": "no network here"})
    settings = replace(settings, seeds=(0, 1, 2))
    write_record(tmp_path, make_record(settings, matrix(settings), "the command", miniature=False))
    for name, values in ACCURACIES.items():
        for seed, value in enumerate(values):
            changes = {"objective": "pf_mag", "poker": poker(0.1)} if name == "pf-vit" else {}
            if name == "multi-task-0":
                changes["by_mask_ratio"] = [
                    {"mask_ratio": ratio, "accuracy": value - ratio / 2, "n": 8} for ratio in (0.0, 0.75)
                ]
            folder = write_run(tmp_path / "made", name, seed, accuracy=value, **changes)
            place = tmp_path / "rafdb" / name / f"seed-{seed}"
            place.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(place)
    failed = tmp_path / "rafdb" / "without-adv" / "seed-1" / "logs"
    failed.mkdir(parents=True)
    (failed / "rank-0.log").write_text("warming up\nerror: the loss is not finite\n")
    return tmp_path


def test_tables_set_the_papers_figure_beside_ours_and_judge(reproduced):
    found = collect(reproduced)
    table = accuracies(found, "rafdb", "baselines")
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    ours = rows["PF-ViT"]
    assert (ours["paper %"], ours["n"], ours["accuracy %"]) == ("92.07", "3", "86.10 ± 1.10")
    assert (ours["paper's difference"], ours["difference"]) == ("+1.00", "+5.10")
    assert ours["verdict"] == "below"
    assert rows["SL-ViT"]["verdict"] == "not run"
    assert rows["ViT from scratch"]["n"] == "3"


def test_a_claim_holds_only_after_correction_and_the_opposite_is_said(reproduced):
    verdicts = {judged.claim.name: judged for judged in judge(collect(reproduced))}
    assert verdicts["pf-vit beats mae-vit"].verdict in ("holds", "points that way")
    assert verdicts["pf-vit beats mae-vit"].p > verdicts["pf-vit beats mae-vit"].paired.t_p
    assert verdicts["separator matters"].verdict.startswith("the opposite")
    assert verdicts["mae beats scratch"].verdict == "undecided"
    assert verdicts["mae on faces beats supervised ImageNet"].verdict == "not run"
    table = claims(collect(reproduced))
    assert table is not None
    assert any("not run" in row for row in table.rows)


def test_accuracies_under_masks_are_set_by_ratio(reproduced):
    (row,) = ratios(collect(reproduced), "rafdb").rows
    assert row[1] == "60.00 ± 0.00"
    assert row[2] == "–"
    assert row[4] == "22.50 ± 0.00"


def test_what_is_missing_is_told_with_its_reason(reproduced):
    found = collect(reproduced)
    assert found.missing["rafdb", "sl-vit"] == "no network here"
    assert "seed 0, 1, 2" in found.missing["rafdb", "without-adv"]
    assert "the loss is not finite" in found.missing["rafdb", "without-adv"]
    assert "not started" in found.missing["rafdb", "without-cls"]
    files = write_tables(reproduced)
    page = Page(files.html.read_text())
    assert not page.open
    assert "no network here" in " ".join(page.words)
    assert "no network here" in files.markdown.read_text()
    values = json.loads(files.json.read_text())
    accuracy = next(each["accuracy"] for each in values["cells"] if each["cell"] == "pf-vit")
    assert list(accuracy.values()) == ACCURACIES["pf-vit"]
    assert len(all_tables(found)) >= 6


def test_a_record_is_read_as_it_was_written_and_others_are_refused(tmp_path):
    settings = on_real_faces(tmp_path)
    record = make_record(settings, matrix(settings), "command", miniature=False)
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    (tmp_path / "reproduce.json").write_text("{")
    with pytest.raises(RecordError, match="cannot be read"):
        read_record(tmp_path)
    with pytest.raises(RecordError, match=r"holds no reproduce\.json: give the OUTPUT"):
        read_record(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "either --datasets NAME ..., or --miniature"),
        (["--miniature", "--datasets", "rafdb"], "either --datasets"),
        (["--datasets", "rafdb", "--data-root", "/nowhere"], "/nowhere/rafdb holds no shards; build them with"),
        (["--miniature", "--seeds", "1", "1"], "--seeds must differ"),
        (["--miniature", "--optim.rl", "3"], "optim.rl"),
    ],
)
def test_calls_that_cannot_be_are_refused_with_what_to_do(arguments, why):
    with pytest.raises(ConfigError, match=why):
        parse([*arguments, "--executor", "local"])


def test_options_of_the_user_reach_every_run_and_yield_to_the_cells():
    found = parse(["--miniature", "--executor", "local", "--epochs", "0.5", "--augment.flip", "0.25"])
    assert {run.config.epochs for run in found.runs} == {0.5}
    flips = {run.name: run.config.augment.flip for run in found.runs}
    assert flips["mae-vit"] == 0.25
    assert flips["mae-vit-plain"] == 0.0
    plan = found.plan()
    assert plan.continue_on_failure
    assert {group.name for group in plan.groups if group.always_run} >= {"tables", "cross", "costs", "studio-report"}
