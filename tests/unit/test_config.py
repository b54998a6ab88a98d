"""Configs reject invalid values by field name, survive JSON, and every field is read somewhere."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import pytest

from pfcluster.config import (
    AugmentConfig,
    ClassifierConfig,
    ConfigError,
    DataConfig,
    EngineConfig,
    MaeConfig,
    ModelConfig,
    OptimConfig,
    PfMagConfig,
    RunConfig,
    SyntheticConfig,
    presets,
)
from pfcluster.config import run as config_module
from pfcluster.config.io import differences, from_json, to_json, with_values
from pfcluster.training.schedule import grid_due
from tests import config_readers
from tests.config_readers import all_fields, fields_read

PACKAGE = Path(config_module.__file__).parents[1]


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_presets_survive_json(name):
    for config in presets.recipe(name).values():
        assert from_json(to_json(config)) == config


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: RunConfig(optim=OptimConfig(lr=0.0)), "optim.lr"),
        (lambda: RunConfig(optim=OptimConfig(algorithm="adam")), "optim.weight_decay"),
        (lambda: RunConfig(discriminator_optim=OptimConfig(lr=-1.0)), "discriminator_optim.lr"),
        (
            lambda: RunConfig(objective="pf_mag", discriminator_optim=OptimConfig(encoder_lr_factor=0.5)),
            "discriminator_optim.encoder_lr_factor",
        ),
        (lambda: MaeConfig(mask_ratio=1.0), "mae.mask_ratio"),
        (lambda: ModelConfig(width=130), "model.width"),
        (lambda: ModelConfig(width=128, heads=3), "model.width"),
        (lambda: ModelConfig(cnn_widths=()), "model.cnn_widths"),
        (lambda: ModelConfig(cnn_convolutions=2), "model.architecture"),
        (lambda: ModelConfig(cnn_convolutions=0), "model.cnn_convolutions"),
        (lambda: RunConfig(augment=AugmentConfig(crop_scale=(0.9, 0.5))), "augment.crop_scale"),
        (lambda: RunConfig(discriminator_augment=AugmentConfig(flip=3.0)), "discriminator_augment.flip"),
        (lambda: SyntheticConfig(seed=-1), "data.synthetic.seed"),
        (lambda: SyntheticConfig(seed=2**63), "data.synthetic.seed"),
        (lambda: DataConfig(size=4), "data.size"),
        (lambda: RunConfig(name="a/b"), "name"),
        (lambda: RunConfig(data=DataConfig(size=50)), "data.size"),
        (lambda: RunConfig(batch_size=10, engine=EngineConfig(grad_accumulation_steps=3)), "batch_size"),
        (lambda: RunConfig(objective="mae", model=ModelConfig(architecture="cnn")), "objective"),
        (
            lambda: RunConfig(data=DataConfig(size=8), model=ModelConfig(architecture="cnn", cnn_widths=(4,) * 5)),
            "data.size",
        ),
        (lambda: ModelConfig(patch=4, stem_channels=(4, 8), patch_gain=4.0), "model.patch_gain"),
        (lambda: PfMagConfig(identity_net="tokens", identity_net_weights="x.pt"), "pf_mag.identity_net"),
    ],
)
def test_invalid_value_error_names_the_field(make, field):
    with pytest.raises(ConfigError, match=rf"^{field} must "):
        make()


def float_fields(kind: type, prefix: str = "") -> dict[str, bool]:
    """Dotted names of the fields that hold floats -> whether they hold a tuple of them."""
    names: dict[str, bool] = {}
    for name, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            names |= float_fields(hint, f"{prefix}{name}.")
        elif float in (hint, *get_args(hint)):
            names[prefix + name] = get_origin(hint) is tuple
    return names


@pytest.mark.parametrize("name", ["epochs", "evaluate.every_epochs", "evaluate.grid_every", "engine.timeout"])
def test_epochs_and_seconds_do_not_overflow(name):
    with pytest.raises(ConfigError, match=rf"{name} must be finite, at most 1e\+12, got 1e\+308"):
        with_values(RunConfig(), {name: 1e308})


@pytest.mark.parametrize("value", [0.0, -1.0, 5e-324, 1e-300])
def test_the_interval_of_evaluations_is_one_to_divide_by(value):
    with pytest.raises(ConfigError, match=r"evaluate.every_epochs must be at least 1e-06, got"):
        with_values(RunConfig(), {"evaluate.every_epochs": value})
    config = with_values(RunConfig(), {"evaluate.every_epochs": 1e-6, "evaluate.grid_every": 1e12})
    assert not grid_due(config, 1)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_numbers_are_finite(value):
    numbers = float_fields(RunConfig)
    assert {"epochs", "optim.lr", "optim.betas", "engine.peak_tflops", "pf_mag.weights.rec"} <= set(numbers)
    for name, is_tuple in numbers.items():
        changed = [value] if name == "evaluate.mask_ratios" else [0.5, value] if is_tuple else value
        with pytest.raises(ConfigError, match=rf"config: {name} must .* got .*(inf|nan)"):
            with_values(RunConfig(), {name: changed})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"dept": 3}}, "unknown field model.dept"),
        ({"model": {"depth": "3"}}, "model.depth must be an integer, got '3'"),
        ({"objective": "gan"}, "objective must be one of mae, finetune, pf_mag"),
        ({"epochs": True}, "epochs must be a number"),
        ({"optim": {"betas": [0.9]}}, "optim.betas must be a list of 2 values"),
        ({"optim": {"lr": 10**400}}, "optim.lr is too large"),
        ({"model": {"depth": 0}}, "^config: model.depth must"),
        ({"model": 3}, "model must be an object"),
    ],
)
def test_wrong_json_error_names_the_field(change, words):
    with pytest.raises(ConfigError, match=words):
        from_json(json.dumps(change))


def test_invalid_json_error_names_the_source():
    with pytest.raises(ConfigError, match=r"run/config\.json is not JSON"):
        from_json("{", "run/config.json")


def test_differences_name_the_fields():
    other = dataclasses.replace(RunConfig(), seed=3, model=ModelConfig(depth=5))
    assert differences(RunConfig(), other) == {"seed": (0, 3), "model.depth": (4, 5)}


def package_sources():
    """The package without the modules that handle all fields alike."""
    generic = {PACKAGE / "config/io.py", PACKAGE / "config/presets.py"}
    return [path.read_text() for path in sorted(PACKAGE.rglob("*.py")) if path not in generic]


def test_every_field_has_a_reader():
    assert sorted(all_fields() - fields_read(package_sources())) == []


def test_field_without_reader_is_reported(monkeypatch):
    with_unused_field = dataclasses.make_dataclass(
        "DataConfig", [("unused", int, 0)], bases=(DataConfig,), frozen=True, kw_only=True
    )
    hints = get_type_hints(RunConfig) | {"data": with_unused_field}
    monkeypatch.setattr(
        config_readers, "get_type_hints", lambda cls: hints if cls is RunConfig else get_type_hints(cls)
    )
    unread = config_readers.all_fields() - fields_read(package_sources())
    assert unread == {("DataConfig", "unused")}


@pytest.mark.parametrize(
    ("source", "field", "is_read"),
    [
        ("def f(config: RunConfig): return config.data.limit", ("DataConfig", "limit"), True),
        ("def f(options: DataConfig): return options.limit", ("DataConfig", "limit"), True),
        ("def f(config):\n    options = config.data\n    return options.limit", ("DataConfig", "limit"), True),
        ("def f(early): return early.limit", ("DataConfig", "limit"), False),
        ("def f(config): return config.engine.limit", ("DataConfig", "limit"), False),
        ("def f(config): return 'limit', 'data.limit'", ("DataConfig", "limit"), False),
        ("def f(config): config.data.limit = 3", ("DataConfig", "limit"), False),
        ("class DataConfig:\n    def __post_init__(self): assert self.limit", ("DataConfig", "limit"), False),
    ],
)
def test_only_attributes_of_the_section_count_as_readers(source, field, is_read):
    assert (field in fields_read([source])) == is_read


def test_unequal_classes_are_not_corrected_twice():
    balanced = DataConfig(sampling="balanced")
    with pytest.raises(ConfigError, match=r'classifier\.class_balance must be "none" with data\.sampling balanced'):
        RunConfig(data=balanced, classifier=ClassifierConfig(class_balance="inverse"))
    assert RunConfig(data=balanced).classifier.class_balance == "none"
