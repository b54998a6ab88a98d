"""The report of a sweep: its sentences, tables, figures and what can be taken away."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pfcluster.cli import sweep
from pfcluster.config import presets
from pfcluster.launch.planning import apply_overrides
from pfcluster.report.results import ReportError
from pfcluster.sweep.report.data import read_sweep
from pfcluster.sweep.report.figures import PANELS, front
from pfcluster.sweep.report.importance import importances
from pfcluster.sweep.report.preset import option, taken
from pfcluster.sweep.report.tables import short_names
from pfcluster.sweep.report.write import SweepFiles, terminal_table, write_sweep_report
from pfcluster.sweep.space import Parameter, applied
from tests.studies import Page
from tests.sweep_folders import EVERY, TOTAL, write_population, write_result, write_sweep

FRESH = {0: (0.560, 0.550, 0.570), 11: (0.580, 0.575, 0.596), 17: (0.571, 0.572, 0.576)}
"""Differences of trial 11 from the baseline: 0.020, 0.025, 0.026."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SweepFiles:
    folder = tmp_path_factory.mktemp("sweeps") / "weights"
    write_sweep(folder, fresh=FRESH)
    return write_sweep_report(folder)


def text(files: SweepFiles) -> str:
    return files.markdown.read_text().replace("\\", "").replace("\u00a0", " ")


def test_luck_is_named(files: SweepFiles) -> None:
    score = next(row.score for row in files.data.rows if row.trial.number == 17)
    assert score is not None
    mean = (0.571 + 0.572 + 0.576) / 3
    luck = f"{score - mean:.3f} of it was luck"
    assert f"- trial-017 scored {score:.3f} in the search and 0.573 ± 0.003 on three fresh seeds: {luck}." in text(
        files
    )


def test_the_winner_is_compared_on_fresh_seeds(files: SweepFiles) -> None:
    # mean 0.023667, std 0.003215, half = 4.3027 * 0.003215 / sqrt 3 = 0.00799, t = 12.75: p = 0.0061; Holm: twice that
    assert (
        "- trial-011 is better than the baseline: +0.024 over 3 seeds "
        "(95 % interval +0.016 to +0.032, p = 0.006)." in text(files)
    )
    assert "As far as these seeds tell, the winner beats the baseline." in text(files)
    assert re.search(
        r"\| trial-011 ★ \| .* \| 0.584 ± 0.011 \| .* \| \+0.024 \| \+0.016 to \+0.032 \| 0.006 \| 0.012 \|",
        text(files),
    )
    assert "On the test split, which nothing was chosen on, accuracy: trial-011 is better" in text(files)


def test_no_difference_is_said_to_be_none(tmp_path: Path) -> None:
    write_sweep(tmp_path, fresh={0: (0.561, 0.548, 0.570), 11: (0.571, 0.579, 0.569), 17: (0.565, 0.572, 0.577)})
    report = text(write_sweep_report(tmp_path))
    # 0.010, 0.031, -0.001: mean 0.0133, std 0.0163, half = 0.0404
    assert "No difference between trial-011 and the baseline can be told: +0.013" in report
    assert "only 0.040 or more would stand out" in report
    assert "These values are not better than the baseline's as far as these seeds tell." in report


def test_asha_and_failures_are_told(files: SweepFiles) -> None:
    rows = files.data.rows
    stopped = [row for row in rows if row.state == "stopped"]
    whole = [row for row in rows if row.state == "whole"]
    trained = TOTAL * len(whole) + sum(row.trial.stop.step for row in stopped if row.trial.stop)
    full = TOTAL * 28
    assert len(whole) + len(stopped) == 28
    assert f"- ASHA stopped {len(stopped)} of 28 trials; {trained} of {full} steps were trained" in text(files)
    assert "2 of 30 trials failed: out of memory: 3.1 GiB wanted (2)." in text(files)
    assert re.search(r"\| trial-007 \| failed: out of memory: 3.1 GiB wanted \| – \|", text(files))


def test_csv_files(files: SweepFiles) -> None:
    trials = list(csv.DictReader(files.trials_csv.open()))
    assert len(trials) == 30
    assert list(trials[0])[:5] == ["trial", "state", "score", "step", "first_rung"]
    assert trials[7]["reason"] == "out of memory: 3.1 GiB wanted"
    assert trials[0]["pf_mag.weights.rec"] == "3.0"
    confirmed = {row["trial"]: row for row in csv.DictReader(files.confirmed_csv.open())}
    assert set(confirmed) == {"0", "11", "17"}
    assert confirmed["11"]["winner"] == "True"
    assert confirmed["11"]["seed-101"] == "0.575"
    assert float(confirmed["11"]["difference.mean"]) == pytest.approx(0.071 / 3)
    assert float(confirmed["11"]["test.accuracy.seed-100"]) == pytest.approx(0.57)
    assert confirmed["17"]["test.accuracy.seed-100"] == ""


def test_preset_is_the_winner(files: SweepFiles) -> None:
    assert files.winner is not None
    space: dict[str, Any] = {}
    exec(files.winner.read_text(), space)
    recipe = space["weights_winner"]()
    spec = files.data.spec
    wanted = applied(spec.config, spec.space, files.data.rows[11].trial.values, None)
    same_end = replace(recipe["pf-vit"], evaluate=replace(recipe["pf-vit"].evaluate, final_split="validation"))
    assert same_end == wanted
    assert recipe["mae"] == replace(
        spec.before["mae"], evaluate=replace(spec.before["mae"].evaluate, final_split="test")
    )
    assert files.winner.read_text().split("\n\n\n", 1)[1].strip() in files.markdown.read_text()


def test_command_trains_the_winner(files: SweepFiles) -> None:
    import shlex

    (command,) = taken(files.data).commands
    words = shlex.split(command)
    assert words[:5] == ["python", "jobs/launch.py", "pf-mag", "--preset", "mini"]
    config = apply_overrides(presets.recipe("mini")["pf-vit"], words[5 : words.index("--output")])
    spec = files.data.spec
    assert config.pf_mag == applied(spec.config, spec.space, files.data.rows[11].trial.values, None).pf_mag
    assert config.model.init == str(files.data.folder / "mae" / "seed-0")


def test_options_of_every_kind() -> None:
    assert option("augment.crop_scale", (0.5, 1.0)) == ["--augment.crop-scale", "0.5", "1.0"]
    assert option("mae.norm_pixels", False) == ["--mae.no-norm-pixels"]
    assert option("optim.lr", 1e-4) == ["--optim.lr", "0.0001"]


def test_importance_names_its_method_and_budget(files: SweepFiles) -> None:
    found = importances(files.data)
    assert found.n == 28
    assert sum(one.share for one in found.found) == pytest.approx(1)
    assert found.budget == f"the first rung, step {files.data.rungs[0]}"
    assert "PED-ANOVA (Watanabe et al. 2023" in text(files)
    assert files.data.rungs[0] % EVERY == 0


def test_page_stands_alone_and_can_be_read_without_seeing_it(files: SweepFiles) -> None:
    html = files.html.read_text()
    page = Page(html)
    assert page.open == []
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "img")
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset"):
                assert (value or "").startswith("#"), (tag, name, value)
    assert not re.search(r"url\((?!['\"]?#)", html)
    assert len(page.all("svg")) == 5  # parallel coordinates, curves, three fronts
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in page.all("svg"))
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {(attributes.get("href") or "")[1:] for attributes in page.all("a")} <= ids


def test_markdown_has_no_html(files: SweepFiles) -> None:
    prose = re.sub(r"```.*?```", "", files.markdown.read_text(), flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<", prose)


def test_same_sweep_same_bytes(files: SweepFiles) -> None:
    first = files.html.read_bytes()
    assert write_sweep_report(files.data.folder).html.read_bytes() == first


def test_terminal_has_eighty_columns(files: SweepFiles) -> None:
    console = Console(width=80, record=True, file=(files.html.parent / "terminal").open("w"))
    console.print(terminal_table(files.data))
    shown = console.export_text()
    assert "…" not in shown
    assert re.search(r"trial-011 ★ +0.\d{3} +0.584 ± 0.011 +\+0.024 +\+0.016 to \+0.032 +0.012", shown)


def test_front_by_hand(files: SweepFiles) -> None:
    row = files.data.rows[0]
    points = [(0.5, 0.9), (0.6, 0.8), (0.55, 0.7), (0.6, 0.85), (0.4, 0.9)]
    rows = [replace(row, accuracy=x, poker={"poker face": {"neutral_rate": y, "mse_inside": 1 - y}}) for x, y in points]
    assert [one.accuracy for one in front(rows, PANELS[0])] == [0.5, 0.6]
    assert [one.face["mse_inside"] for one in front(rows, PANELS[2])] == pytest.approx([0.1, 0.15])


def test_unfinished_sweep(tmp_path: Path) -> None:
    write_sweep(tmp_path, running=(28, 29), identity=False)
    files = write_sweep_report(tmp_path)
    report = text(files)
    assert "**not finished** – 30 of 30 trials have been proposed, 2 of them are not over." in report
    assert "is the best of the search" in report
    assert "not yet confirmed on fresh seeds" in report
    assert "is the search's best and is not confirmed: do not rely on it yet." in report
    assert "Identity was not measured: no recognition net" in report
    assert not list(csv.DictReader(files.confirmed_csv.open()))
    console = Console(width=80, record=True, file=(tmp_path / "terminal").open("w"))
    console.print(terminal_table(files.data))
    assert "baseline" in console.export_text()


def test_confirmation_under_way(tmp_path: Path) -> None:
    write_sweep(tmp_path, fresh={0: (0.56, 0.55), 11: (0.57,), 17: ()}, test=False)
    report = text(write_sweep_report(tmp_path))
    assert "**not finished** – 3 of 9 runs on fresh seeds are done." in report
    assert "| 1 | 0.570 ± – |" in report


def test_several_seeds_are_averaged(tmp_path: Path) -> None:
    board = write_sweep(tmp_path, "--seeds", "0", "1", "--scheduler", "none")
    data = read_sweep(tmp_path)
    row = data.rows[3]
    curves = [board.score(board.trials[3], (seed,)) for seed in (0, 1)]
    assert row.score == pytest.approx(sum(value or 0 for value in curves) / 2)
    assert row.seconds == 80
    assert data.rungs == ()
    assert importances(data).budget == "the end of each trial"


def test_few_or_equal_trials_have_no_importance(tmp_path: Path) -> None:
    write_sweep(tmp_path, "--trials", "6", failed=())
    with pytest.raises(ReportError, match="6 comparable trials are too few"):
        importances(read_sweep(tmp_path))
    assert "Not computed: 6 comparable trials are too few" in text(write_sweep_report(tmp_path))


def test_a_baseline_outside_of_the_space_is_told(tmp_path: Path) -> None:
    write_sweep(tmp_path, "--space", "pf_mag.weights.rec=loguniform:5,30")
    report = text(write_sweep_report(tmp_path))
    assert "**the baseline lies outside** – of the space in pf_mag.weights.rec" in report


def test_a_failed_confirmation_is_told(tmp_path: Path) -> None:
    from pfcluster.sweep.trials import Failed, write_failed

    board = write_sweep(tmp_path, fresh={0: (0.56, 0.55, 0.57), 11: (0.57, 0.58), 17: (0.56, 0.57, 0.58)}, test=False)
    write_failed(board.runs.folder_of(board.trials[11], 102), Failed("bug", "loss is not finite"))
    files = write_sweep_report(tmp_path)
    assert "trial-011: loss is not finite. It is compared on fewer seeds." in text(files)
    assert files.data.winner is not None
    assert files.data.winner.row.trial.number == 17


def test_strings_are_escaped(tmp_path: Path) -> None:
    board = write_sweep(tmp_path, failed=())
    evil = "<script>alert(1)</script>"
    write_result(board, board.trials[0], 0, dataset={"name": evil, "classes": [], "train": 2400}, command=evil)
    (tmp_path / "command.txt").write_text(evil)
    page = Page(write_sweep_report(tmp_path).html.read_text())
    assert not page.all("script")
    assert evil in "".join(page.words)


def test_many_values_have_a_table_of_their_own(tmp_path: Path) -> None:
    write_sweep(tmp_path, "--space", "everything", fresh=FRESH)
    files = write_sweep_report(tmp_path)
    assert "| trial | search | seeds |" in text(files)
    assert re.search(r"### Their values\n\n\| trial \| adv \|.*\| fake_class_targets \| mask_ratio \|", text(files))
    assert files.winner is not None
    assert re.search(r'fake_class_targets="(ignore|zero)"', files.winner.read_text())


def test_short_names_tell_apart() -> None:
    names = ("optim.lr", "discriminator_optim.lr", "mae:optim.lr", "pf_mag.r1")
    found = short_names([Parameter(name, "uniform", 0, 1) for name in names])
    assert found["pf_mag.r1"] == "r1"
    assert found["discriminator_optim.lr"] == "discriminator_optim.lr"
    assert len(set(found.values())) == 4


def test_command_line(files: SweepFiles, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert sweep.main(["report", str(files.data.folder)]) == 0
    assert "trial-011 is better than the baseline" in " ".join(capsys.readouterr().out.split())
    assert sweep.main(["report", str(tmp_path)]) == 2
    assert "holds no sweep" in capsys.readouterr().err


def test_a_population_is_a_schedule(tmp_path: Path) -> None:
    write_population(tmp_path)
    files = write_sweep_report(tmp_path)
    report = text(files)
    assert files.winner is None
    assert "A population's winner is a schedule" in report
    assert re.search(r"\| trial-001 \| 0 to 300 \| .*\n\| trial-005 \| 300 to 450 \|", report)
    assert "| trial-005 ★ | whole | trial-001 |" in report
    assert "so that no trial has one value to judge" in report
    assert "| baseline | generation ended at step 300 | – |" in report


def test_a_pre_training_of_its_own_goes_into_the_preset(tmp_path: Path) -> None:
    write_sweep(tmp_path / "1 st", "--space", "mae.mask_ratio=uniform:0.3,0.9", "--trials", "8", failed=())
    files = write_sweep_report(tmp_path / "1 st")
    assert files.winner is not None
    space: dict[str, Any] = {}
    exec(files.winner.read_text(), space)
    best = files.data.best
    assert best is not None
    recipe = next(value for name, value in space.items() if name.endswith("_winner"))()
    assert recipe["mae"].mae.mask_ratio == best.trial.values["mae.mask_ratio"]
    pretrain, train = taken(files.data).commands
    assert f"--mae.mask-ratio {best.trial.values['mae.mask_ratio']}" in pretrain
    assert "/mae/seed-0" in train
