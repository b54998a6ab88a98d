"""Weights as others save them: every form computes what the original net does, or is refused in a sentence."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.models import VisionTransformer

from pfcluster.models import pretrained
from pfcluster.models.vit import ViT
from pfcluster.models.weight_files import WeightsError
from pfcluster.models.weight_layouts import NAMED

DEPTH = 2


def net(channels=3, **options):
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": DEPTH, "num_heads": 3, "num_classes": 0}
    model = VisionTransformer(**sizes | options, in_chans=channels)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def hugging_face(state, prefix="vit."):
    """timm's weights by the names of ViTForImageClassification and ViTMAEForPreTraining."""
    renamed = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    names = {"attn.proj": "attention.output.dense", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    names |= {"norm1": "layernorm_before", "norm2": "layernorm_after"}
    for block in range(DEPTH):
        for kind in ("weight", "bias"):
            ours, theirs = f"blocks.{block}.", f"encoder.layer.{block}."
            renamed |= {f"{theirs}{new}.{kind}": state[f"{ours}{old}.{kind}"] for old, new in names.items()}
            parts = state[f"{ours}attn.qkv.{kind}"].chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                renamed[f"{theirs}attention.attention.{name}.{kind}"] = part.clone()
    return {prefix + name: value for name, value in renamed.items()}


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def features(source, images, **options):
    """Class token features of our ViT with the weights; images in 0..1."""
    ours = ViT(size=32, patch=8, width=48, depth=DEPTH, heads=3).eval()
    pretrained.load_part(ours, pretrained.read(str(source), **options), "encoder", str(source))
    with torch.no_grad():
        return ours(images.expand(-1, 3, -1, -1) * 2 - 1)[:, 0]


def expected(model, images, normalisation):
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in NAMED[normalisation])
    if images.shape[1] == 1:
        mean, std = mean.mean(1, keepdim=True), std.mean(1, keepdim=True)
    with torch.no_grad():
        return model.forward_features((images - mean) / std)[:, 0]


FORMS = {
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "module": lambda s: {"state_dict": prefixed(s, "module."), "arch": "vit"},
    "compiled": lambda s: {"model": prefixed(s, "_orig_mod.")},
    "lightning": lambda s: {"state_dict": prefixed(s, "model.encoder."), "hyper_parameters": argparse.Namespace(a=1)},
    "backbone": lambda s: {"state_dict": prefixed(s, "backbone.") | {"head.weight": torch.ones(2, 2)}},
    "encoder": lambda s: {"model": prefixed(s, "encoder.")},
    "dino": lambda s: {
        "student": prefixed({name: -value for name, value in s.items()}, "module.backbone."),
        "teacher": prefixed(s, "backbone."),
    },
    "average beside the net": lambda s: {"model": s, "model_ema": {name: -value for name, value in s.items()}},
    "numpy scalar": lambda s: {"model": s, "best_acc": np.float64(0.5), "scores": np.ones(3)},
    "half precision": lambda s: {"model": {name: value.half() for name, value in s.items()}},
}


@pytest.mark.parametrize("form", FORMS)
def test_wrapped_weights_compute_the_same(tmp_path, form):
    model, images = net(), torch.rand(2, 3, 32, 32)
    torch.save(FORMS[form](model.state_dict()), tmp_path / "w.pth")
    tolerance = 2e-2 if form == "half precision" else 1e-4
    assert torch.allclose(features(tmp_path / "w.pth", images), expected(model, images, "imagenet"), atol=tolerance)
    assert pretrained.external_sizes(str(tmp_path / "w.pth"))["model.width"] == 48


def test_a_pickled_net_is_read_without_running_its_class(tmp_path):
    model, images = net(), torch.rand(2, 3, 32, 32)
    torch.save(model, tmp_path / "net.pt")
    assert torch.allclose(features(tmp_path / "net.pt", images), expected(model, images, "imagenet"), atol=1e-4)


@pytest.mark.parametrize("bare", [True, False])
def test_grey_nets_see_the_mean_of_the_channels(tmp_path, bare):
    model, images = net(channels=1), torch.rand(2, 1, 32, 32)
    torch.save(model.state_dict() if bare else {"model": model.state_dict()}, tmp_path / "w.pth")
    normalisation = "half" if bare else "imagenet"
    assert torch.allclose(features(tmp_path / "w.pth", images), expected(model, images, normalisation), atol=1e-4)


@pytest.mark.parametrize("prefix", ["vit.", ""])
def test_hugging_face_folders_state_their_normalisation(tmp_path, prefix):
    model, images = net(), torch.rand(2, 3, 32, 32)
    save_file(hugging_face(model.state_dict(), prefix), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit", "num_attention_heads": 3}))
    mean, std = NAMED["imagenet"]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
    assert torch.allclose(features(tmp_path, images), expected(model, images, "imagenet"), atol=1e-4)
    assert torch.allclose(features(tmp_path, images, normalisation="unit"), expected(model, images, "unit"), atol=1e-4)
    assert pretrained.external_sizes(str(tmp_path))["model.heads"] == 3
    assert "from preprocessor_config.json" in str(pretrained.describe(str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"hidden_act": "quick_gelu"}))
    with pytest.raises(WeightsError, match="activation 'quick_gelu'"):
        pretrained.read(str(tmp_path))


def test_parts_of_a_large_hugging_face_model_are_joined(tmp_path):
    model, images = net(), torch.rand(2, 3, 32, 32)
    state = hugging_face(model.state_dict())
    files = {name: f"model-0000{number % 2}.safetensors" for number, name in enumerate(state)}
    for file in set(files.values()):
        save_file({name: value for name, value in state.items() if files[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert torch.allclose(features(tmp_path, images), expected(model, images, "half"), atol=1e-4)
    (tmp_path / "model-00001.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model-00001\.safetensors, which is missing"):
        pretrained.read(str(tmp_path))


def test_decoders_of_hugging_face_and_of_grey_nets(tmp_path):
    decoder = {f"decoder_{part}.{kind}": torch.rand(8) for part in ("norm",) for kind in ("weight", "bias")}
    decoder |= {"decoder_embed.weight": torch.rand(8, 48), "decoder_embed.bias": torch.rand(8)}
    decoder |= {"mask_token": torch.rand(1, 1, 8), "decoder_pred.weight": torch.rand(64, 8)}
    decoder["decoder_pred.bias"] = torch.arange(64.0)
    save_file(hugging_face(net().state_dict()) | prefixed(decoder, "decoder."), tmp_path / "model.safetensors")
    values = pretrained.read(str(tmp_path))
    assert torch.equal(values["decoder.embed.weight"], decoder["decoder_embed.weight"])
    assert torch.equal(values["decoder.head.bias"].view(3, 64), torch.arange(64.0).expand(3, 64))
    assert "masked autoencoder" in str(pretrained.describe(str(tmp_path)))


def test_a_guessed_normalisation_is_said_and_can_be_set(tmp_path):
    model, images = net(), torch.rand(2, 3, 32, 32)
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    said = pretrained.describe(str(tmp_path / "vit.safetensors"))
    assert said is not None
    assert "mean 0.5, 0.5, 0.5" in said
    assert "assumed for a bare state dict" in said
    assert torch.allclose(
        features(tmp_path / "vit.safetensors", images, normalisation="imagenet"),
        expected(model, images, "imagenet"),
        atol=1e-4,
    )


def changed(**values):
    state = net().state_dict()
    return {name: value for name, value in (state | values).items() if value is not None}


REFUSED = {
    "4 channels": (lambda: {"model": net(channels=4).state_dict()}, "takes 4 channels"),
    "hybrid": (lambda: changed(**{"patch_embed.proj.weight": torch.ones(48, 1024, 1, 1)}), "a hybrid"),
    "video": (lambda: changed(**{"patch_embed.proj.weight": torch.ones(48, 3, 2, 8, 8)}), "square patches"),
    "flat kernel": (lambda: changed(**{"patch_embed.proj.weight": torch.ones(48, 192)}), "square patches"),
    "oblong patches": (lambda: changed(**{"patch_embed.proj.weight": torch.ones(48, 3, 8, 4)}), "square patches"),
    "flat positions": (lambda: changed(pos_embed=torch.ones(17, 48)), "position embeddings are not those"),
    "other width": (lambda: changed(cls_token=torch.ones(1, 1, 32)), r"cls_token has shape \(1, 1, 32\)"),
    "no block": (lambda: {"patch_embed.proj.weight": torch.ones(48, 3, 8, 8)}, "has no patch_embed.proj.bias"),
    "two nets": (lambda: {"a": net().state_dict(), "b": net().state_dict()}, "holds 2 nets, under 'a.' and 'b.'"),
    "quantised": (lambda: changed(pos_embed=torch.ones(1, 17, 48, dtype=torch.int8)), "quantised"),
    "not finite": (lambda: changed(pos_embed=torch.full((1, 17, 48), float("nan"))), "not finite"),
    "layer scale": (lambda: changed(**{"blocks.0.ls1.gamma": torch.ones(48)}), r"blocks\.0\.ls1\.gamma"),
    "resnet": (lambda: {"conv1.weight": torch.ones(64, 3, 7, 7)}, "is not a supported ViT"),
    "no tensors": (lambda: {"epoch": 3}, "no named tensors"),
    "a tensor": (lambda: torch.ones(3), "no named tensors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_nets_are_refused_by_what_differs(tmp_path, case):
    make, words = REFUSED[case]
    torch.save(make(), tmp_path / "w.pth")
    for read in (pretrained.read, pretrained.external_sizes, pretrained.describe):
        with pytest.raises(WeightsError, match=words):
            read(str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("empty.pth", b"", "is empty"),
        ("lfs.pth", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        ("page.pth", b"<!DOCTYPE html><html>", "web page"),
        ("keras.h5", b"\x89HDF\r\n\x1a\n", "HDF5"),
        ("cut.safetensors", b"\x10\0\0\0\0\0\0\0{", "no weights that can be read"),
        ("text.pth", b"hello", "no weights that can be read"),
    ],
)
def test_other_files_are_named(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(WeightsError, match=words) as error:
        pretrained.read(str(tmp_path / name))
    assert "weights_only" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_of_checkpoints_names_them(tmp_path):
    torch.save(net().state_dict(), tmp_path / "vit.pth")
    with pytest.raises(WeightsError, match=r"use a file in it, such as .*vit\.pth"):
        pretrained.read(str(tmp_path))
