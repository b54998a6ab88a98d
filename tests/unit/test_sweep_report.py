"""The report of a sweep: sentences, tables, figures, CSV files and winner.json."""

from __future__ import annotations

import csv
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from rich.console import Console

from pfcluster.cli.main import main
from pfcluster.config import ConfigError, RunConfig, presets
from pfcluster.config.overrides import read_overrides
from pfcluster.launch.study_plan import make_plan
from pfcluster.launch.training_options import parse_training
from pfcluster.report.errors import ReportError
from pfcluster.sweep.options import read
from pfcluster.sweep.report.data import read_sweep, schedule_of
from pfcluster.sweep.report.importance import importances
from pfcluster.sweep.report.pareto import front
from pfcluster.sweep.report.tables import short_names
from pfcluster.sweep.report.winner import option, winner_of
from pfcluster.sweep.report.write import SweepFiles, terminal_table, write_sweep_report
from pfcluster.sweep.space import Parameter, applied, baseline
from pfcluster.sweep.spec import save
from pfcluster.sweep.state import SweepState
from pfcluster.sweep.trials import Trial, write_trials
from pfcluster.training.schedule import selection_start
from tests.studies import Page
from tests.sweep_folders import (
    EVERY,
    FACES,
    OPTIONS,
    TOTAL,
    curve_of,
    write_curve,
    write_population,
    write_result,
    write_sweep,
)

FRESH = {0: (0.560, 0.550, 0.570), 11: (0.580, 0.575, 0.596), 17: (0.571, 0.572, 0.576)}
"""Differences of trial 11 from the baseline: 0.020, 0.025, 0.026."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SweepFiles:
    folder = tmp_path_factory.mktemp("sweeps") / "weights"
    write_sweep(folder, fresh=FRESH)
    return write_sweep_report(folder)


def text(files: SweepFiles) -> str:
    return files.markdown.read_text().replace("\\", "").replace("\u00a0", " ")


def test_overestimate_of_the_search_is_stated(files: SweepFiles) -> None:
    score = next(row.score for row in files.data.rows if row.trial.number == 17)
    assert score is not None
    mean = (0.571 + 0.572 + 0.576) / 3
    scores = f"- trial-017 scored {score:.3f} in the search and 0.573 ± 0.003 on three fresh seeds"
    assert f"{scores}: the search overestimated it by {score - mean:.3f}." in text(files)


def test_the_winner_is_compared_on_fresh_seeds(files: SweepFiles) -> None:
    # mean 0.023667, std 0.003215, half = 4.3027 * 0.003215 / sqrt 3 = 0.00799, t = 12.75: p = 0.0061; Holm: twice that
    assert (
        "- trial-011 is better than the baseline: +0.024 over 3 seeds "
        "(95 % interval +0.016 to +0.032, p = 0.006)." in text(files)
    )
    assert "On fresh seeds the winner is significantly better than the baseline." in text(files)
    assert re.search(
        r"\| trial-011 ★ \| .* \| 0.584 ± 0.011 \| .* \| \+0.024 \| \+0.016 to \+0.032 \| 0.006 \| 0.012 \|",
        text(files),
    )
    assert "On the test split, which was not used for any selection, accuracy: trial-011 is better" in text(files)


@pytest.mark.slow
def test_insignificant_difference_is_stated_as_such(tmp_path: Path) -> None:
    write_sweep(tmp_path, fresh={0: (0.561, 0.548, 0.570), 11: (0.571, 0.579, 0.569), 17: (0.565, 0.572, 0.577)})
    report = text(write_sweep_report(tmp_path))
    # 0.010, 0.031, -0.001: mean 0.0133, std 0.0163, half = 0.0404
    assert "No significant difference between trial-011 and the baseline: +0.013" in report
    assert "Smallest detectable difference at this variance: 0.040." in report
    assert "On fresh seeds the winner is not significantly better than the baseline." in report


def test_saved_steps_and_failures_are_stated(files: SweepFiles) -> None:
    rows = files.data.rows
    stopped = [row for row in rows if row.state == "stopped"]
    completed = [row for row in rows if row.state == "completed"]
    trained = TOTAL * len(completed) + sum(row.trial.stop.step for row in stopped if row.trial.stop)
    full = TOTAL * 28
    assert len(completed) + len(stopped) == 28
    assert f"- ASHA stopped {len(stopped)} of 28 trials; {trained} of {full} steps were trained" in text(files)
    assert "2 of 30 trials failed: out of memory: 3.1 GiB requested (2)." in text(files)
    assert re.search(r"\| trial-007 \| failed: out of memory: 3.1 GiB requested \| – \|", text(files))


def test_csv_files(files: SweepFiles) -> None:
    trials = list(csv.DictReader(files.trials_csv.open()))
    assert len(trials) == 30
    assert list(trials[0])[:5] == ["trial", "state", "score", "step", "first_rung"]
    assert trials[7]["reason"] == "out of memory: 3.1 GiB requested"
    assert trials[0]["pf_mag.weights.rec"] == "3.0"
    confirmed = {row["trial"]: row for row in csv.DictReader(files.confirmed_csv.open())}
    assert set(confirmed) == {"0", "11", "17"}
    assert confirmed["11"]["winner"] == "True"
    assert confirmed["11"]["seed-101"] == "0.575"
    assert float(confirmed["11"]["difference.mean"]) == pytest.approx(0.071 / 3)
    assert float(confirmed["11"]["test.accuracy.seed-100"]) == pytest.approx(0.57)
    assert confirmed["17"]["test.accuracy.seed-100"] == ""


def test_winner_file_reproduces_the_winning_configs(files: SweepFiles) -> None:
    assert files.winner is not None
    content = json.loads(files.winner.read_text())
    assert (content["name"], content["preset"], content["trial"]) == ("weights-winner", "mini", 11)
    assert (content["confirmed"], content["seeds"], content["metric"]) == (True, [100, 101, 102], "accuracy")
    assert content["score"] == pytest.approx(sum(FRESH[11]) / 3)
    spec = files.data.spec
    recipe = read_overrides(files.winner).apply(presets.recipe(content["preset"]))
    expected = applied(spec.config, spec.space, files.data.rows[11].trial.values, None)
    assert with_final_split(recipe["pf-vit"], "validation") == expected
    assert recipe["mae"] == with_final_split(spec.before["mae"], "test")
    assert files.winner.read_text().strip() in files.markdown.read_text()


def with_final_split(config: RunConfig, split: Literal["validation", "test"]) -> RunConfig:
    return replace(config, evaluate=replace(config.evaluate, final_split=split))


def test_command_trains_the_winner(files: SweepFiles) -> None:
    winner = winner_of(files.data)
    assert winner is not None
    (command,) = winner.commands
    program, name, *arguments = shlex.split(command)
    assert (program, name) == ("pfcluster", "pf-mag")
    options = parse_training(name, [*arguments, "--executor", "local"])
    assert options.preset == "mini"
    (first, *_) = make_plan(options).train_runs()[0]
    spec = files.data.spec
    expected = applied(spec.config, spec.space, files.data.rows[11].trial.values, None)
    model = replace(expected.model, init=str(files.data.folder / "mae" / "seed-0"))
    evaluate = replace(expected.evaluate, judge=str(files.data.folder / "judge" / "seed-0"), final_split="test")
    assert first.config == replace(expected, model=model, evaluate=evaluate)


def test_command_line_takes_precedence_over_the_overrides_file(files: SweepFiles) -> None:
    arguments = ["--overrides", str(files.winner), "--pf-mag.weights.adv", "0.25", "--executor", "local"]
    options = parse_training("study", arguments)
    runs = {run.config.name: run.config for wave in make_plan(options).train_runs() for run in wave}
    values = files.data.rows[11].trial.values
    assert runs["pf-vit"].pf_mag.weights.adv == 0.25
    assert runs["pf-vit"].pf_mag.weights.rec == values["pf_mag.weights.rec"]
    assert runs["scratch"].pf_mag.weights.rec == presets.recipe("mini")["scratch"].pf_mag.weights.rec


def test_a_command_refuses_a_file_whose_values_are_all_of_other_runs(tmp_path: Path) -> None:
    file = tmp_path / "winner.json"
    file.write_text('{"preset": "mini", "overrides": {"mae-vit:optim.layer_decay": 0.7, "pf-vit:epochs": 3}}')
    words = ["--overrides", str(file), "--executor", "local", "--output", str(tmp_path / "runs")]
    with pytest.raises(ConfigError, match=r"only values of mae-vit, pf-vit, .*scratch.*--optim.layer-decay 0.7"):
        parse_training("finetune", words)
    assert parse_training("pf-mag", words).recipe()["pf-vit"].epochs == 3
    assert parse_training("study", words).recipe()["mae-vit"].optim.layer_decay == 0.7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", 'must be a JSON object with the key "overrides"'),
        ('{"preset": "none", "overrides": {}}', "preset must be one of"),
        ('{"overrides": {"vit:epochs": 3}}', "no run 'vit'"),
        ('{"overrides": {"pf-vit:seed": 3}}', "pf-vit:seed would have no effect"),
        ('{"overrides": {"epoch": 3}}', "no field epoch"),
    ],
)
def test_malformed_overrides_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "winner.json").write_text(content)
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_overrides(tmp_path / "winner.json").apply(presets.recipe("mini"))


def test_options_of_every_kind() -> None:
    assert option("augment.crop_scale", (0.5, 1.0)) == ["--augment.crop-scale", "0.5", "1.0"]
    assert option("mae.norm_pixels", False) == ["--mae.no-norm-pixels"]
    assert option("optim.lr", 1e-4) == ["--optim.lr", "0.0001"]


def test_importance_names_its_method_and_budget(files: SweepFiles) -> None:
    result = importances(files.data)
    assert result.n == 28
    assert sum(one.fraction for one in result.parameters) == pytest.approx(1)
    assert result.budget == f"the first rung, step {files.data.rungs[0]}"
    assert "PED-ANOVA (Watanabe et al. 2023" in text(files)
    assert files.data.rungs[0] % EVERY == 0


def test_page_is_self_contained_and_accessible(files: SweepFiles) -> None:
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


@pytest.mark.slow
def test_sweep_report_is_deterministic(files: SweepFiles) -> None:
    first = files.html.read_bytes()
    assert write_sweep_report(files.data.folder).html.read_bytes() == first


def test_terminal_has_eighty_columns(files: SweepFiles) -> None:
    console = Console(width=80, record=True, file=(files.html.parent / "terminal").open("w"))
    console.print(terminal_table(files.data))
    output = console.export_text()
    assert "…" not in output
    assert re.search(r"trial-011 ★ +0.\d{3} +0.584 ± 0.011 +\+0.024 +\+0.016 to \+0.032 +0.012", output)


def test_front_by_hand(files: SweepFiles) -> None:
    row = files.data.rows[0]
    points = [(0.5, 0.9), (0.6, 0.8), (0.55, 0.7), (0.6, 0.85), (0.4, 0.9)]
    rows = [replace(row, accuracy=x, poker={"poker face": {"neutral_rate": y, "mse_inside": 1 - y}}) for x, y in points]
    assert [one.accuracy for one in front(rows, "neutral_rate")] == [0.5, 0.6]
    assert [one.poker_face["mse_inside"] for one in front(rows, "mse_inside")] == pytest.approx([0.1, 0.15])


@pytest.mark.slow
def test_unfinished_sweep(tmp_path: Path) -> None:
    write_sweep(tmp_path, running=(28, 29), identity=False)
    files = write_sweep_report(tmp_path)
    report = text(files)
    assert "**not finished** – 30 of 30 trials have been proposed, 2 of them are unfinished." in report
    assert "is the best of the search" in report
    assert "It is not yet confirmed on fresh seeds" in report
    assert "is the best of the search, but it is not confirmed on fresh seeds." in report
    assert "Identity cosine was not measured: no identity net" in report
    assert not list(csv.DictReader(files.confirmed_csv.open()))
    console = Console(width=80, record=True, file=(tmp_path / "terminal").open("w"))
    console.print(terminal_table(files.data))
    assert "baseline" in console.export_text()


def test_confirmation_under_way(tmp_path: Path) -> None:
    write_sweep(tmp_path, fresh={0: (0.56, 0.55), 11: (0.57,), 17: ()}, test=False)
    report = text(write_sweep_report(tmp_path))
    assert "**not finished** – 3 of 9 runs on fresh seeds are done." in report
    assert "| 1 | 0.570 ± – |" in report


def test_search_score_is_the_mean_over_seeds(tmp_path: Path) -> None:
    state = write_sweep(tmp_path, "--seeds", "0", "1", "--scheduler", "none")
    data = read_sweep(tmp_path)
    row = data.rows[3]
    curves = [state.score(state.trials[3], (seed,)) for seed in (0, 1)]
    assert row.score == pytest.approx(sum(value or 0 for value in curves) / 2)
    assert row.seconds == 80
    assert data.rungs == ()
    assert importances(data).budget == "the end of each trial"


def test_report_scores_completed_trials_by_evaluations_that_can_select_a_checkpoint(tmp_path: Path) -> None:
    state = write_sweep(tmp_path, "--evaluate.select-from", "0.6", "--scheduler", "none", running=(29,))
    run_folder = state.runs.folder_of(state.trials[3], 0)
    start = selection_start(state.runs.run_of(state.trials[3], 0).config, TOTAL)
    late = [(step, value) for step, value in curve_of(state.trials[3], 0) if step > start]
    write_curve(run_folder, [(EVERY * 5, 0.99), *late])
    rows = read_sweep(tmp_path).rows
    assert rows[3].score == max(value for _, value in late)
    assert rows[29].score is None


def test_report_of_trials_of_different_lengths_compares_them_at_the_rung_that_they_share(tmp_path: Path) -> None:
    options = [*OPTIONS, "--space", "batch_size=choice:32,128", "--pf-mag.warmup-steps", "20"]
    spec = read([*options, "--output", str(tmp_path)]).spec
    save(spec, tmp_path)
    start = baseline(spec.space, spec.stages())
    trials = [Trial(number, start | {"batch_size": (32, 128)[number % 2]}) for number in range(12)]
    write_trials(tmp_path, trials)
    state = SweepState(spec, tmp_path, lambda run: schedule_of(run, FACES))
    for trial in trials:
        total = state.schedule_of(state.runs.run_of(trial, 0)).total
        assert total == (450, 112)[trial.number % 2]
        points = [(step, round(step / total - trial.number / 100, 4)) for step in (*range(9, total, 9), total)]
        write_result(state, trial, 0, steps=total)
        write_curve(state.runs.folder_of(trial, 0), points)
    data = read_sweep(tmp_path)
    steps = [data.rows[number].first_rung_step for number in (0, 1)]
    assert importances(data).budget == f"the first rung, step {min(steps)} to {max(steps)}"
    assert "ASHA stopped 0 of 12 trials; 3372 of 3372 steps were trained (saved 0 %)." in text(
        write_sweep_report(tmp_path)
    )


def test_few_or_equal_trials_have_no_importance(tmp_path: Path) -> None:
    write_sweep(tmp_path, "--trials", "6", failed=())
    with pytest.raises(ReportError, match="6 comparable trials are too few"):
        importances(read_sweep(tmp_path))
    assert "Not computed: 6 comparable trials are too few" in text(write_sweep_report(tmp_path))


def test_baseline_outside_the_space_is_a_warning(tmp_path: Path) -> None:
    write_sweep(tmp_path, "--space", "pf_mag.weights.rec=loguniform:5,30")
    report = text(write_sweep_report(tmp_path))
    assert "**baseline outside the space** – its pf_mag.weights.rec lies outside the searched range" in report


def test_failed_confirmation_is_a_warning(tmp_path: Path) -> None:
    from pfcluster.sweep.trials import Failed, write_failed

    state = write_sweep(tmp_path, fresh={0: (0.56, 0.55, 0.57), 11: (0.57, 0.58), 17: (0.56, 0.57, 0.58)}, test=False)
    write_failed(state.runs.folder_of(state.trials[11], 102), Failed("bug", "loss is not finite"))
    files = write_sweep_report(tmp_path)
    assert "trial-011: loss is not finite. It is compared on fewer seeds." in text(files)
    assert files.data.winner is not None
    assert files.data.winner.row.trial.number == 17


@pytest.mark.slow
def test_sweep_report_escapes_strings(tmp_path: Path) -> None:
    state = write_sweep(tmp_path, failed=())
    script = "<script>alert(1)</script>"
    write_result(state, state.trials[0], 0, dataset={"name": script, "classes": [], "train": 2400}, command=script)
    (tmp_path / "command.txt").write_text(script)
    page = Page(write_sweep_report(tmp_path).html.read_text())
    assert not page.all("script")
    assert script in "".join(page.words)


@pytest.mark.slow
def test_many_values_have_a_separate_table(tmp_path: Path) -> None:
    write_sweep(tmp_path, "--space", "everything", fresh=FRESH)
    files = write_sweep_report(tmp_path)
    assert "| trial | search | seeds |" in text(files)
    assert re.search(
        r"### Values of the confirmed trials\n\n\| trial \| adv \|.*\| fake_class_targets \| mask_ratio \|", text(files)
    )
    assert files.winner is not None
    assert json.loads(files.winner.read_text())["overrides"]["pf-vit:pf_mag.fake_class_targets"] in ("ignore", "zero")


def test_short_names_are_distinct() -> None:
    names = ("optim.lr", "discriminator_optim.lr", "mae:optim.lr", "pf_mag.r1")
    short = short_names([Parameter(name, "uniform", 0, 1) for name in names])
    assert short["pf_mag.r1"] == "r1"
    assert short["discriminator_optim.lr"] == "discriminator_optim.lr"
    assert len(set(short.values())) == 4


def test_command_line(files: SweepFiles, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["sweep", "report", str(files.data.folder)]) == 0
    assert "trial-011 is better than the baseline" in " ".join(capsys.readouterr().out.split())
    assert main(["sweep", "report", str(tmp_path)]) == 2
    assert "holds no sweep" in capsys.readouterr().err


def test_winner_of_a_population_is_a_schedule(tmp_path: Path) -> None:
    write_population(tmp_path)
    files = write_sweep_report(tmp_path)
    report = text(files)
    assert files.winner is None
    assert "A population's winner is a schedule" in report
    assert re.search(r"\| trial-001 \| 0 to 300 \| .*\n\| trial-005 \| 300 to 450 \|", report)
    assert "| trial-005 ★ | completed | trial-001 |" in report
    assert "so no trial has a single value" in report
    assert "| baseline | generation ended at step 300 | – |" in report


def test_winner_file_contains_the_pretraining_of_a_trial(tmp_path: Path) -> None:
    write_sweep(tmp_path / "1 st", "--space", "mae.mask_ratio=uniform:0.3,0.9", "--trials", "8", failed=())
    files = write_sweep_report(tmp_path / "1 st")
    best, winner = files.data.best, winner_of(files.data)
    assert files.winner is not None
    assert best is not None
    assert winner is not None
    assert not winner.confirmed
    recipe = read_overrides(files.winner).apply(presets.recipe(winner.preset))
    assert recipe["mae"].mae.mask_ratio == best.trial.values["mae.mask_ratio"]
    pretrain, train = (shlex.split(command) for command in winner.commands)
    (pretraining,) = make_plan(parse_training(pretrain[1], [*pretrain[2:], "--executor", "local"])).train_runs()[0]
    assert pretraining.config.mae.mask_ratio == best.trial.values["mae.mask_ratio"]
    assert train[train.index("--model.init") + 1] == str(pretraining.folder)
