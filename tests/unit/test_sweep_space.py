"""Search spaces: parsing, checks against the config, sampling."""

from __future__ import annotations

import math
from random import Random

import pytest

from pfcluster.cli.main import main
from pfcluster.config import ConfigError, presets
from pfcluster.sweep.options import read
from pfcluster.sweep.space import Parameter, applied, baseline, check, named_spaces, parse

CONFIGS = {None: presets.recipe("mini")["pf-vit"], "mae": presets.recipe("mini")["mae"]}


@pytest.mark.slow
def test_named_spaces_are_valid_for_every_preset():
    names = "loss_weights learning_rates mask_ratio discriminator everything adversarial stabilisers"
    assert set(named_spaces()) == set(names.split())
    for preset in presets.PRESETS:
        recipe = presets.recipe(preset)
        for space in named_spaces().values():
            check(space.parameters, {None: recipe[space.role], "mae": recipe["mae"]})


def test_drawn_values_follow_the_distribution():
    parameter = parse("optim.lr=loguniform:1e-4,1e-2")
    values = [parameter.draw(Random(seed)) for seed in range(2000)]
    assert all(1e-4 <= value <= 1e-2 for value in values)
    below = sum(value < 1e-3 for value in values) / len(values)
    assert 0.45 < below < 0.55, "half of a loguniform lies below its geometric mean"
    assert parameter.grid(3) == [1e-4, 1e-3, 1e-2]
    assert parameter.fraction_of(1e-3) == pytest.approx(0.5)
    assert parse("optim.warmup_steps=int:0,10").grid(3) == [0, 5, 10]
    assert parse("pf_mag.r1=choice:0,0.1,1").grid(2) == [0, 0.1, 1]


def test_drawn_numbers_are_rounded_inside_the_bounds():
    parameter = Parameter("optim.lr", "uniform", 0.12344, 0.5)
    assert parameter.rounded(0.123441) == 0.12344, "0.1234 would lie below"
    assert parameter.rounded(0.43219876) == 0.4322


def test_field_names_may_use_dashes_or_underscores():
    assert parse("pf-mag.weights.ort=loguniform:1e-3,1") == parse("pf_mag.weights.ort=loguniform:1e-3,1")
    assert parse("--optim.lr=uniform:1,2").field == "optim.lr"
    assert parse("mae:optim.lr=uniform:1,2").stage == "mae"
    assert parse("mae.mask_ratio=uniform:0.3,0.9").stage == "mae"
    assert parse("optim.lr=uniform:1,2").stage is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.lr", "FIELD=KIND:VALUES"),
        ("optim.lr=1e-3", "FIELD=KIND:VALUES"),
        ("optim.lr=normal:0,1", "uniform, loguniform, int, choice"),
        ("optim.lr=loguniform:0,1", "positive ends"),
        ("optim.lr=uniform:2,1", "below the high"),
        ("optim.lr=uniform:1", "a low and a high end"),
        ("optim.lr=int:0.5,2", "whole numbers"),
        ("optim.lr=choice:1", "at least two"),
    ],
)
def test_malformed_space_is_refused_with_the_expected_form(text, message):
    with pytest.raises(ConfigError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.learning_rate=uniform:1,2", "no field optim.learning_rate"),
        ("optim.lr=choice:fast,slow", "optim.lr must be a number, got 'fast'"),
        ("optim.warmup_steps=uniform:0.5,2", "optim.warmup_steps must be an integer"),
        ("mae.mask_ratio=uniform:0.5,1", r"mae.mask_ratio must lie in \(0, 1\), got 1.0"),
        ("pf_mag.fake_class_targets=choice:ignore,one", "must be one of ignore, zero, source"),
        ("model.patch=int:6,7", "data.size must be a multiple of model.patch = 7"),
    ],
)
def test_space_with_invalid_config_values_is_refused(text, message):
    with pytest.raises(ConfigError, match=message) as error:
        check([parse(text)], CONFIGS)
    assert text.split("=")[0] in str(error.value)


def test_mae_parameter_needs_a_pretraining():
    with pytest.raises(ConfigError, match="no pre-training"):
        check([parse("mae.mask_ratio=uniform:0.3,0.9")], {None: CONFIGS[None]})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("seed=int:0,5", "runs take their seeds from --seeds"),
        ("name=choice:a,b", "named after"),
        ("evaluate.final_split=choice:validation,test", "no trial of a search uses the test split"),
        ("evaluate.selection_split=choice:validation,test", "must not influence the search"),
        ("evaluate.judge=choice:none,x", "one judge for all trials"),
        ("mae:seed=int:0,5", "runs take their seeds from --seeds"),
        ("model.init=choice:none,x", "own pre-training"),
    ],
)
def test_fields_that_a_sweep_sets_cannot_be_searched(text, reason):
    with pytest.raises(ConfigError, match=f"--space {text} cannot be searched: .*{reason}"):
        read(["--space", text, "--output", "unused"])


def test_choice_may_be_a_list_of_names():
    space = [parse("data.synthetic.classes=choice:none,anger+neutral")]
    assert baseline(space, CONFIGS) == {"data.synthetic.classes": None}
    changed = [applied(CONFIGS[None], space, {space[0].name: value}, None) for value in space[0].choices]
    assert [config.data.synthetic.classes for config in changed] == [(), ("anger", "neutral")]
    assert baseline(space, {None: changed[1]}) == {"data.synthetic.classes": "anger+neutral"}


def test_duplicate_field_is_refused():
    with pytest.raises(ConfigError, match=r"optim.lr twice"):
        check([parse("optim.lr=uniform:1,2"), parse("optim.lr=uniform:1,3")], CONFIGS)


def test_values_are_applied_to_their_stage_only():
    space = [parse("optim.lr=uniform:1,2"), parse("mae:optim.lr=uniform:3,4"), parse("mae.mask_ratio=uniform:0.3,0.9")]
    values = {"optim.lr": 1.5, "mae:optim.lr": 3.5, "mae.mask_ratio": 0.4}
    run, mae = applied(CONFIGS[None], space, values, None), applied(CONFIGS["mae"], space, values, "mae")
    assert (run.optim.lr, mae.optim.lr, mae.mae.mask_ratio) == (1.5, 3.5, 0.4)
    assert run.mae == CONFIGS[None].mae
    assert baseline(space, CONFIGS) == {
        "optim.lr": CONFIGS[None].optim.lr,
        "mae:optim.lr": CONFIGS["mae"].optim.lr,
        "mae.mask_ratio": 0.75,
    }


def test_value_outside_the_space():
    assert math.isnan(parse("pf_mag.r1=choice:0.1,1").fraction_of(0.5))
    assert not parse("optim.lr=loguniform:1e-4,1e-2").holds(1.0)


def test_spaces_file_is_read_and_errors_are_located(tmp_path):
    good = tmp_path / "good.toml"
    good.write_text('[mine]\nabout = "x"\nrole = "scratch"\n[mine.space]\n"optim.lr" = "loguniform:1e-4,1e-2"\n')
    assert named_spaces(good)["mine"].parameters == (parse("optim.lr=loguniform:1e-4,1e-2"),)
    bad = tmp_path / "bad.toml"
    bad.write_text('[mine]\nrole = "scratch"\n[mine.space]\n')
    with pytest.raises(ConfigError, match=r"\[mine\] needs about"):
        named_spaces(bad)
    bad.write_text("[mine")
    with pytest.raises(ConfigError, match="not TOML"):
        named_spaces(bad)
    with pytest.raises(ConfigError, match="cannot read"):
        named_spaces(tmp_path / "none.toml")


def test_a_sweep_says_what_its_named_spaces_are_about(tmp_path, capsys):
    spaces = tmp_path / "spaces.toml"
    spaces.write_text('[mine]\nabout = "a rate"\nrole = "scratch"\n[mine.space]\n"optim.lr" = "uniform:1e-4,1e-2"\n')
    words = ["sweep", "--spaces", str(spaces), "--space", "mine", "--space", "optim.weight-decay=uniform:0,0.1"]
    assert main([*words, "--preset", "mini", "--output", str(tmp_path / "sweep"), "--dry-run"]) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first == "mine: a rate"
    assert any("optim.lr" in line for line in others)
    assert not any("about" in line for line in others)
