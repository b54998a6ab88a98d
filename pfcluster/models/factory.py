"""Build the modules of a run from its seed, and load pre-trained weights into them."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pfcluster.config import RunConfig
from pfcluster.config.validation import require
from pfcluster.distributed.process_group import derive_seed
from pfcluster.models import pretrained
from pfcluster.models.cnn import SmallCNN
from pfcluster.models.discriminator import Discriminator, ViTDiscriminator
from pfcluster.models.generator import Generator
from pfcluster.models.mae import MAE, Decoder
from pfcluster.models.pf_vit import PFViT, visible_count
from pfcluster.models.vit import Classifier, ViT


def build(config: RunConfig, classes: int, *, load_init: bool = True) -> dict[str, nn.Module]:
    """The modules of a run: `model`, and `discriminator` for PF-MAG. Equal configs give equal weights.

    Raises WeightsError if `model.init` cannot be loaded or does not fit, ConfigError if a cnn has one.
    """
    if config.model.architecture == "cnn" and load_init:
        scratch = 'be empty with model.architecture "cnn", which is trained from scratch'
        require(config.model.init is None, "model.init", config.model.init, scratch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "weights"))
        modules, encoder, decoder = _build_networks(config, classes)
        values = None
        if load_init and config.model.init is not None and encoder is not None:
            values = _load_pretrained(config, encoder, decoder)
        if config.objective == "pf_mag":
            assert encoder is not None
            assert decoder is not None
            if load_init and config.pf_mag.decoder_init is not None:
                _load_decoder(config.pf_mag.decoder_init, decoder)
            modules = _build_pf_mag(config, encoder, decoder, classes)
            if values is not None:
                _load_classifier(config, modules, values)
    return modules


def _build_encoder(config: RunConfig) -> ViT:
    model = config.model
    return ViT(
        size=config.data.size,
        patch=model.patch,
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        mlp_ratio=model.mlp_ratio,
        patch_gain=model.patch_gain,
        stem_channels=model.stem_channels,
    )


def _build_networks(config: RunConfig, classes: int) -> tuple[dict[str, nn.Module], ViT | None, Decoder | None]:
    model = config.model
    if model.architecture == "cnn":
        return {"model": SmallCNN(classes, widths=model.cnn_widths, convolutions=model.cnn_convolutions)}, None, None
    encoder = _build_encoder(config)
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


def _load_pretrained(config: RunConfig, encoder: ViT, decoder: Decoder | None) -> dict[str, Tensor]:
    """Load the encoder, and the decoder if the source has one; -> all weights of the source."""
    source = config.model.init
    assert source is not None
    values = pretrained.read(source, config.model.init_normalisation)
    pretrained.load_part(encoder, values, "encoder", source)
    if decoder is not None and any(name.startswith("decoder.") for name in values):
        pretrained.load_part(decoder, values, "decoder", source)
    return values


def _load_decoder(source: str, decoder: Decoder) -> None:
    """Load `pf_mag.decoder_init`. Raises WeightsError."""
    try:
        pretrained.load_part(decoder, pretrained.read(source), "decoder", source)
    except pretrained.WeightsError as error:
        raise pretrained.WeightsError(str(error).replace("model.init", "pf_mag.decoder_init", 1)) from error


def _load_classifier(config: RunConfig, modules: dict[str, nn.Module], values: Mapping[str, Tensor]) -> None:
    """Copy a fine-tuned classifier from `model.init` into PF-ViT's head, and into the discriminator that starts from
    one. A head for another number of classes is left out. Raises WeightsError if the discriminator needs it.
    """
    source, head = config.model.init, {part: values.get(f"head.{part}") for part in ("weight", "bias")}
    pf_vit, discriminator = modules["model"], modules["discriminator"]
    assert isinstance(pf_vit, PFViT)
    weight = head["weight"]
    fits = weight is not None and weight.shape == pf_vit.classifier.weight.shape
    if isinstance(discriminator, ViTDiscriminator):
        if not fits:
            found = "no classification head" if weight is None else f"a head for {len(weight)} classes"
            raise pretrained.WeightsError(
                f'model.init: pf_mag.discriminator_init "classifier" needs a fine-tuned classifier of'
                f" {len(pf_vit.classifier.weight)} classes, but {source} has {found}; use a run of mae-vit or scratch"
                ' on the same classes, or pf_mag.discriminator_init "decoder"'
            )
        assert source is not None
        pretrained.load_part(discriminator.encoder, dict(values), "encoder", source)
        discriminator.head.load_state_dict(head)
    if fits:
        pf_vit.classifier.load_state_dict(head)


def _build_pf_mag(config: RunConfig, encoder: ViT, decoder: Decoder, classes: int) -> dict[str, nn.Module]:
    """Generator and discriminator start as copies of the pre-trained decoder (docs/concepts/method.md, section 3), the
    discriminator instead as a classifier with `pf_mag.discriminator_init` "classifier".
    """
    model = config.model
    discriminator = _build_discriminator(config, decoder, classes)
    generator = Generator(
        decoder,
        width=model.decoder_width,
        heads=model.decoder_heads,
        patch=model.patch,
        self_fusion=config.pf_mag.fusion == "self",
        fusion_bias=config.pf_mag.fusion_bias,
        overlap=config.pf_mag.patch_overlap,
    )
    pf_vit = PFViT(
        encoder,
        generator,
        width=model.width,
        classes=classes,
        separator_ratio=config.pf_mag.separator_ratio,
        mask_ratio=config.pf_mag.mask_ratio,
        encoder_grad_share=config.pf_mag.encoder_grad_share,
    )
    if pf_vit.separator is not None:
        pf_vit.separator.add_biases(config.pf_mag.class_mask_bias, config.pf_mag.patch_mask_bias)
    if config.pf_mag.erasure_start is not None:
        pf_vit.add_erasure()
    return {"model": pf_vit, "discriminator": discriminator}


def _build_discriminator(config: RunConfig, decoder: Decoder, classes: int) -> Discriminator | ViTDiscriminator:
    model, options = config.model, config.pf_mag
    tokens = 1 + visible_count(len(decoder.positions), options.mask_ratio)
    adversary_tokens = (tokens, model.width) if options.weights.confusion > 0 else None
    if options.discriminator_init == "classifier":
        encoder = _build_encoder(config)
        return ViTDiscriminator(encoder, width=model.width, classes=classes, adversary_tokens=adversary_tokens)
    return Discriminator(
        copy.deepcopy(decoder),
        patch=model.patch,
        width=model.decoder_width,
        classes=classes,
        patch_gain=options.discriminator_patch_gain,
        adversary_tokens=adversary_tokens,
    )


def parameter_counts(modules: dict[str, nn.Module]) -> dict[str, int]:
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
