"""Damaged and hostile files of weights: refused in a sentence, or read with the right shapes; nothing is run."""

from __future__ import annotations

import functools
import os
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from pfcluster.models import pretrained
from pfcluster.models.identity_net import IdentityNetError, load_weights, resnet
from pfcluster.models.weight_files import WeightsError
from tests.hostile.damage import NAMES, Damage, assert_explains, damages
from tests.unit.test_weight_forms import FORMS, hugging_face, net

STATE = net().state_dict()


@functools.cache
def intact() -> tuple[tuple[str, bytes], ...]:
    """Names and contents of intact files: wrapped and bare, zip, legacy and safetensors."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        torch.save({"model": STATE}, folder / "zip.pth")
        torch.save({"state_dict": STATE}, folder / "old.pth", _use_new_zipfile_serialization=False)
        torch.save(FORMS["numpy scalar"](STATE), folder / "numpy.pth")
        save_file(hugging_face(STATE), folder / "hf.safetensors")
        return tuple((path.name, path.read_bytes()) for path in sorted(folder.iterdir()))


def assert_safe(error: Exception) -> None:
    """The message does not advise to run what is in the file."""
    assert "weights_only" not in str(error)


def read(path: Path) -> None:
    """Read the file as a run does: sizes first, then the weights."""
    for load in (pretrained.external_sizes, pretrained.describe, pretrained.read):
        try:
            values = load(str(path))
        except WeightsError as error:
            assert_explains(error, "model.init")
            assert_safe(error)
            continue
        if load is pretrained.read:
            assert isinstance(values, dict)
            assert values["encoder.patch_embed.weight"].shape == (48, 192)
            assert all(value.isfinite().all() for name, value in values.items() if name.startswith("encoder."))


@given(damage=damages(), which=st.integers(0, 3))
def test_damaged_files(damage: Damage, which: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        name, content = intact()[which]
        path = Path(root, name)
        path.write_bytes(damage(content))
        read(path)


@given(content=st.binary(max_size=200), suffix=st.sampled_from((".pth", ".safetensors", ".bin", "")))
def test_any_file(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        path = Path(root, f"weights{suffix}")
        path.write_bytes(content)
        with pytest.raises(WeightsError) as error:
            pretrained.read(str(path))
        assert_explains(error.value, str(path))
        with pytest.raises(IdentityNetError) as refused:
            load_weights(TINY, path)
        assert_explains(refused.value, str(path))


@given(data=st.data())
def test_changed_shapes_types_and_names(data: st.DataObject) -> None:
    state = dict(STATE)
    for name in data.draw(st.lists(st.sampled_from(sorted(STATE)), min_size=1, max_size=3, unique=True)):
        kind = data.draw(st.sampled_from(("remove", "shape", "type", "rename", "value")))
        value = state.pop(name)
        if kind == "shape":
            shape = data.draw(st.lists(st.integers(0, 5), max_size=5))
            state[name] = torch.zeros(shape)
        elif kind == "type":
            state[name] = value.to(
                data.draw(st.sampled_from((torch.int8, torch.complex64, torch.bool, torch.bfloat16)))
            )
        elif kind == "rename":
            state[data.draw(NAMES)] = value
        elif kind == "value":
            state[name] = data.draw(
                st.sampled_from((None, 3, "text", [value], value.to_sparse(), value * float("inf")))
            )
    with tempfile.TemporaryDirectory() as root:
        path = Path(root, "weights.pth")
        torch.save({"model": state}, path)
        try:
            values = pretrained.read(str(path))
            vit = pretrained.external_sizes(str(path))
        except WeightsError as error:
            assert_explains(error, "model.init")
            return
        assert values["encoder.patch_embed.weight"].ndim == 2
        assert vit["model.width"] == 48


class Attack:
    """Pickled, it asks its reader to create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("legacy", [True, False])
def test_no_code_in_a_file_is_run(tmp_path: Path, legacy: bool) -> None:
    target = tmp_path / "attacked"
    torch.save({"model": STATE, "extra": Attack(target)}, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    read(tmp_path / "w.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Attack(target)))
    read(tmp_path / "plain.pkl")
    assert not target.exists()


TINY = resnet("embedding")
