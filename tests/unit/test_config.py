"""Configs refuse nonsense by name, survive JSON, and every field of them is read by somebody."""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path
from typing import get_type_hints

import pytest

from pfcluster.config import (
    AugmentConfig,
    ConfigError,
    DataConfig,
    EngineConfig,
    MaeConfig,
    ModelConfig,
    OptimConfig,
    PfMagConfig,
    RunConfig,
    presets,
)
from pfcluster.config import run as config_module
from pfcluster.config.io import differences, from_json, to_json

PACKAGE = Path(config_module.__file__).parents[1]


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_every_preset_survives_json(name):
    for config in presets.recipe(name).values():
        assert from_json(to_json(config)) == config


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: OptimConfig(lr=0.0), "optim.lr"),
        (lambda: OptimConfig(algorithm="adam"), "optim.weight_decay"),
        (lambda: MaeConfig(mask_ratio=1.0), "mae.mask_ratio"),
        (lambda: ModelConfig(width=130), "model.width"),
        (lambda: ModelConfig(width=128, heads=3), "model.width"),
        (lambda: AugmentConfig(crop_scale=(0.9, 0.5)), "augment.crop_scale"),
        (lambda: DataConfig(size=4), "data.size"),
        (lambda: RunConfig(name="a/b"), "name"),
        (lambda: RunConfig(data=DataConfig(size=50)), "data.size"),
        (lambda: RunConfig(batch_size=10, engine=EngineConfig(grad_accumulation_steps=3)), "batch_size"),
        (lambda: RunConfig(objective="mae", model=ModelConfig(architecture="cnn")), "objective"),
        (lambda: PfMagConfig(identity_net="tokens", identity_net_weights="x.pt"), "pf_mag.identity_net"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_field(make, field):
    with pytest.raises(ConfigError, match=rf"^{field} must "):
        make()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"dept": 3}}, "unknown field model.dept"),
        ({"model": {"depth": "3"}}, "model.depth must be int"),
        ({"objective": "gan"}, "objective must be one of mae, finetune, pf_mag"),
        ({"epochs": True}, "epochs must be float"),
        ({"optim": {"betas": [0.9]}}, "optim.betas"),
        ({"model": 3}, "model must be an object"),
    ],
)
def test_wrong_json_names_the_field(change, words):
    with pytest.raises(ConfigError, match=words):
        from_json(json.dumps(change))


def test_text_that_is_no_json_is_refused_by_its_source():
    with pytest.raises(ConfigError, match=r"run/config\.json is not JSON"):
        from_json("{", "run/config.json")


def test_differences_name_the_fields():
    other = dataclasses.replace(RunConfig(), seed=3, model=ModelConfig(depth=5))
    assert differences(RunConfig(), other) == {"seed": (0, 3), "model.depth": (4, 5)}


def config_fields():
    """All (class, field) pairs that RunConfig is made of."""
    waiting, found = [RunConfig], []
    while waiting:
        cls = waiting.pop()
        for name, hint in get_type_hints(cls).items():
            if dataclasses.is_dataclass(hint):
                waiting.append(hint)
            else:
                found.append((cls.__name__, name))
    return sorted(set(found))


def test_every_field_has_a_reader():
    read = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name in ("config/schema.py", "config/io.py", "config/presets.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                read.add(node.value)
    unread = [
        f"{cls}.{name}"
        for cls, name in config_fields()
        if name not in read and name not in ("cls", "adv", "rec", "ort", "confusion")
    ]
    assert not unread
