"""Build the modules of a run from its seed, and load pre-trained weights into them."""

from __future__ import annotations

import copy

import torch
from torch import nn

from pfcluster.config import RunConfig
from pfcluster.distributed.process_group import derive_seed
from pfcluster.models import pretrained
from pfcluster.models.cnn import SmallCNN
from pfcluster.models.discriminator import Discriminator
from pfcluster.models.mae import MAE, Decoder
from pfcluster.models.pf_vit import Generator, PFViT, visible_count
from pfcluster.models.vit import Classifier, ViT


def build(config: RunConfig, classes: int, *, load_init: bool = True) -> dict[str, nn.Module]:
    """The modules of a run: `model`, and `discriminator` for PF-MAG. Equal configs give equal weights.

    Raises WeightsError if `model.init` cannot be loaded or does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "weights"))
        modules, encoder, decoder = _build_networks(config, classes)
        if load_init and config.model.init is not None and encoder is not None:
            _load_pretrained(config, encoder, decoder)
        if config.objective == "pf_mag":
            assert encoder is not None
            assert decoder is not None
            modules = _build_pf_mag(config, encoder, decoder, classes)
    return modules


def _build_networks(config: RunConfig, classes: int) -> tuple[dict[str, nn.Module], ViT | None, Decoder | None]:
    model = config.model
    if model.architecture == "cnn":
        return {"model": SmallCNN(classes)}, None, None
    encoder = ViT(
        size=config.data.size,
        patch=model.patch,
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        mlp_ratio=model.mlp_ratio,
        patch_gain=model.patch_gain,
    )
    if config.objective == "finetune":
        return {"model": Classifier(encoder, model.width, classes)}, encoder, None
    decoder = Decoder(
        side=config.data.size // model.patch,
        patch=model.patch,
        encoder_width=model.width,
        width=model.decoder_width,
        depth=model.decoder_depth,
        heads=model.decoder_heads,
        mlp_ratio=model.mlp_ratio,
    )
    return {"model": MAE(encoder, decoder, mask_ratio=config.mae.mask_ratio)}, encoder, decoder


def _load_pretrained(config: RunConfig, encoder: ViT, decoder: Decoder | None) -> None:
    """Load the encoder, and the decoder if the source has one."""
    source = config.model.init
    assert source is not None
    values = pretrained.read(source)
    pretrained.load_part(encoder, values, "encoder", source)
    if decoder is not None and any(name.startswith("decoder.") for name in values):
        pretrained.load_part(decoder, values, "decoder", source)


def _build_pf_mag(config: RunConfig, encoder: ViT, decoder: Decoder, classes: int) -> dict[str, nn.Module]:
    """Generator and discriminator start as copies of the pre-trained decoder (docs/concepts/method.md, section 3)."""
    model = config.model
    tokens = 1 + visible_count(len(decoder.positions), config.pf_mag.mask_ratio)
    discriminator = Discriminator(
        copy.deepcopy(decoder),
        patch=model.patch,
        width=model.decoder_width,
        classes=classes,
        patch_gain=config.pf_mag.discriminator_patch_gain,
        adversary_tokens=(tokens, model.width) if config.pf_mag.weights.confusion > 0 else None,
    )
    generator = Generator(
        decoder,
        width=model.decoder_width,
        heads=model.decoder_heads,
        patch=model.patch,
        self_fusion=config.pf_mag.fusion == "self",
        refine_channels=config.pf_mag.refine_channels,
    )
    pf_vit = PFViT(
        encoder,
        generator,
        width=model.width,
        classes=classes,
        separator_ratio=config.pf_mag.separator_ratio,
        mask_ratio=config.pf_mag.mask_ratio,
    )
    if pf_vit.separator is not None and config.pf_mag.class_mask_bias is not None:
        pf_vit.separator.add_class_bias(config.pf_mag.class_mask_bias)
    return {"model": pf_vit, "discriminator": discriminator}


def parameter_counts(config: RunConfig, modules: dict[str, nn.Module]) -> dict[str, int]:
    """Numbers of trained parameters and of parameters used at inference (E, S, C for PF-ViT; the encoder for MAE)."""

    def count(*parts: nn.Module) -> int:
        return sum(parameter.numel() for part in parts for parameter in part.parameters())

    model = modules["model"]
    test = count(model)
    if isinstance(model, PFViT):
        separator = [] if model.separator is None else [model.separator]
        test = count(model.encoder, *separator, model.classifier)
    elif isinstance(model, MAE):
        test = count(model.encoder)
    return {"train": count(*modules.values()), "test": test}
