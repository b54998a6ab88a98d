"""Third-party weights give the same outputs in pfcluster's nets; others are rejected with their shape."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file

from pfcluster.config import ConfigError, DataConfig, ModelConfig, RunConfig, presets
from pfcluster.launch.overrides import apply_overrides
from pfcluster.models import factory, pretrained
from pfcluster.models.mae import Decoder
from pfcluster.models.pretrained import WeightsError
from pfcluster.models.vit import ViT
from pfcluster.models.weight_layouts import IMAGENET_MEAN, IMAGENET_STD
from tests.reference.original_mae import LAYOUTS, OriginalMae, imagenet_normalised, randomise, save_weights
from tests.reference.weight_parity import SMALL, decoder_difference, encoder_difference, random_images
from tests.tiny import write_checkpoint

SIZES = {"size": 32, "patch": 8, "width": 48, "depth": 2, "heads": 3}


def timm_vit():
    """A timm ViT of the same sizes, its weights stirred so that nothing is zero."""
    torch.manual_seed(1)
    model = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def test_a_cnn_takes_no_weights():
    values = RunConfig(model=ModelConfig(architecture="cnn", init="runs/mae/seed-0"))
    with pytest.raises(ConfigError, match=r'model.init must be empty with model.architecture "cnn", .* got .runs/mae'):
        factory.build(values, 7)
    assert set(factory.build(values, 7, load_init=False)) == {"model"}


def test_timm_weights_give_timms_features(tmp_path):
    theirs = timm_vit()
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    ours = ViT(**SIZES)
    pretrained.load_part(ours, pretrained.read(str(tmp_path / "vit.pth")), "encoder", "vit.pth")
    images = torch.randn(2, 3, 32, 32)
    assert torch.allclose(ours(images), theirs.forward_features(images), atol=1e-4)


def test_imagenet_normalisation_is_folded_into_the_patch_embedding(tmp_path):
    theirs = timm_vit()
    torch.save({"model": theirs.state_dict()}, tmp_path / "mae.pth")
    ours = ViT(**SIZES)
    pretrained.load_part(ours, pretrained.read(str(tmp_path / "mae.pth")), "encoder", "mae.pth")
    unit = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    assert torch.allclose(ours(unit * 2 - 1), theirs.forward_features((unit - mean) / std), atol=1e-4)


def test_decoder_of_reference_checkpoint_is_reordered_to_channels_first(tmp_path):
    state = timm_vit().state_dict()
    decoder = Decoder(side=4, patch=8, encoder_width=48, width=16, depth=1, heads=2)
    state |= {f"decoder_blocks.{name}": value for name, value in decoder.blocks.state_dict().items()}
    for part in ("weight", "bias"):
        state |= {
            f"decoder_embed.{part}": getattr(decoder.embed, part),
            f"decoder_norm.{part}": getattr(decoder.norm, part),
        }
    state["mask_token"] = decoder.mask_token
    state["decoder_pred.weight"] = torch.randn(192, 16)
    state["decoder_pred.bias"] = torch.arange(192.0)  # the reference's order within a patch: row, column, channel
    torch.save({"model": {name: value.detach() for name, value in state.items()}}, tmp_path / "mae.pth")
    values = pretrained.read(str(tmp_path / "mae.pth")) | {"decoder.positions": decoder.positions}
    pretrained.load_part(decoder, {k: v for k, v in values.items() if k != "decoder.positions"}, "decoder", "mae.pth")
    reference = torch.arange(192.0).view(8, 8, 3).permute(2, 0, 1).flatten()
    assert torch.equal(decoder.head.bias, reference)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("patch", [16, 32])
def test_original_mae_gives_the_same_outputs(tmp_path, layout, patch):
    theirs = randomise(OriginalMae(size=4 * patch, patch=patch, **SMALL))
    source = save_weights(tmp_path / "mae.pth", theirs.state_dict(), layout)
    images = random_images(4 * patch)
    with torch.no_grad():
        features = theirs.features(imagenet_normalised(images))
    assert features.abs().max() > 1
    assert encoder_difference(features, source, images) < 1e-5
    assert decoder_difference(theirs, source, images) < 1e-5


def test_timms_supervised_vit_gives_the_same_outputs(tmp_path):
    theirs = randomise(timm.create_model("vit_tiny_patch16_224", pretrained=False))
    source = save_weights(tmp_path / "vit.pth", theirs.state_dict(), "bare")
    images = random_images(224)
    with torch.no_grad():
        features = theirs.forward_features(images)
    assert encoder_difference(features, source, images) < 1e-5


def test_sizes_default_to_those_of_the_file(tmp_path):
    theirs = OriginalMae(size=64, patch=16, **SMALL)
    source = str(save_weights(tmp_path / "mae.pth", theirs.state_dict(), "model"))
    base = presets.recipe("small")["pf-vit"]
    read = apply_overrides(base, ["--model.init", source])
    assert read.data.size == 64
    model = SMALL | {"patch": 16, "mlp_ratio": 4.0}
    assert {name: getattr(read.model, name) for name in model} == model
    given = apply_overrides(base, ["--model.init", source, "--data.size=32", "--model.decoder-heads", "4"])
    assert (given.data.size, given.model.decoder_heads, given.model.width) == (32, 4, 128)
    factory.build(given, 8)
    with pytest.raises(WeightsError, match=r"more encoder blocks than model\.depth .*it holds 3 blocks"):
        factory.build(apply_overrides(base, ["--model.init", source, "--model.depth", "2"]), 8)
    judge = apply_overrides(presets.recipe("small")["judge"], ["--model.init", source])
    assert (judge.data.size, judge.model.width) == (64, 128)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("vit_tiny_patch16_224", (224, 16, 192, 12, 3)), ("vit_huge_patch14_224", (224, 14, 1280, 32, 16))],
)
def test_sizes_of_timm_names_need_no_download(name, sizes):
    read = pretrained.external_sizes(f"timm:{name}")
    names = ("data.size", "model.patch", "model.width", "model.depth", "model.heads")
    assert tuple(read[name] for name in names) == sizes
    with pytest.raises(WeightsError, match=r"cannot get timm's vit_absent"):
        pretrained.external_sizes("timm:vit_absent")


def test_pfcluster_weights_have_no_external_sizes(tmp_path):
    save_file(
        {f"encoder.{name}": value for name, value in ViT(**SIZES).state_dict().items()},
        tmp_path / "encoder.safetensors",
    )
    assert pretrained.external_sizes(str(tmp_path / "encoder.safetensors")) == {}
    assert pretrained.external_sizes(str(tmp_path)) == pretrained.external_sizes("nowhere") == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"init_values": 0.1}, r"blocks\.0\.ls1\.gamma and 3 more"),
        ({"class_token": False, "global_pool": "avg"}, "has no cls_token"),
        ({"reg_tokens": 4}, "reg_token and 0 more"),
        ({"no_embed_class": True}, "16 position embeddings are not those"),
    ],
)
def test_unsupported_architecture_is_rejected(tmp_path, options, words):
    theirs = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, **options)
    source = str(save_weights(tmp_path / "vit.pth", theirs.state_dict(), "bare"))
    for read in (pretrained.read, pretrained.external_sizes):
        with pytest.raises(WeightsError, match=words):
            read(source)


def test_position_embeddings_are_resized():
    grid = torch.linspace(0, 1, 16).view(16, 1).expand(16, 8)
    resized = pretrained.resize_positions(grid.contiguous(), 64)
    assert resized.shape == (64, 8)
    assert resized.mean().item() == pytest.approx(0.5, abs=1e-3)
    assert pretrained.resize_positions(grid, 16) is grid


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 64, "heads": 4}, r"shape \(.*48.*\).*this model's.*it holds 2 blocks, width 48, patch 8"),
        ({"depth": 3}, r"lacks encoder\.blocks\.2"),
        ({"depth": 1}, "more encoder blocks"),
    ],
)
def test_checkpoint_of_another_shape_is_rejected_with_its_sizes(tmp_path, change, words):
    torch.save(timm_vit().state_dict(), tmp_path / "vit.pth")
    sizes = {"patch": 8, "width": 48, "depth": 2, "heads": 3} | change
    config = RunConfig(data=DataConfig(size=32), model=ModelConfig(**sizes, init=str(tmp_path / "vit.pth")))
    with pytest.raises(WeightsError, match=words):
        factory.build(config, 8)


def test_invalid_checkpoint_is_rejected(tmp_path):
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(WeightsError, match="holds no weights that can be read"):
        pretrained.read(str(tmp_path / "text.pth"))
    torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="not a supported ViT"):
        pretrained.read(str(tmp_path / "other.pth"))
    with pytest.raises(WeightsError, match="neither a folder nor a file"):
        pretrained.read(str(tmp_path / "absent"))
    with pytest.raises(WeightsError, match="neither a run"):
        pretrained.read(str(tmp_path))


def test_pf_mag_starts_from_two_copies_of_the_pretrained_decoder(tmp_path):
    config = RunConfig(objective="mae", data=DataConfig(size=32), model=ModelConfig(patch=8, width=48))
    mae = factory.build(config, 8)["model"]
    write_checkpoint(tmp_path / "checkpoints", 1, {"model": mae.state_dict()}, {})
    started = replace(config, objective="pf_mag", seed=5, model=replace(config.model, init=str(tmp_path)))
    built = factory.build(started, 8)
    generator, discriminator = built["model"].generator, built["discriminator"]
    for blocks in (generator.blocks, discriminator.blocks):
        for name, value in mae.decoder.blocks.state_dict().items():
            assert torch.equal(blocks.state_dict()[name], value)
    assert torch.equal(built["model"].encoder.patch_embed.weight, mae.encoder.patch_embed.weight)
    assert torch.equal(generator.mask_token, mae.decoder.mask_token)
    assert generator.blocks[0].mlp.fc1.weight is not discriminator.blocks[0].mlp.fc1.weight
    assert not torch.equal(generator.head.weight, mae.decoder.head.weight)


def test_seed_determines_the_weights():
    config = RunConfig()
    first, again, other = (factory.build(replace(config, seed=seed), 8)["model"].head.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
