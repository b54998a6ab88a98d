"""Which net a file of weights holds, and its parameters by timm's names, which facebookresearch/mae shares.

Hugging Face's `vit` and `vit_mae` are renamed to them. Anything else is refused by the name of what differs.

Legend: d channels, p patch side, n patches, c image channels.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pfcluster.models.weight_files import StateDict, WeightsError, WeightsFile

Normalisation = Literal["auto", "imagenet", "half", "unit"]
Mean = tuple[float, ...]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF_MEAN, HALF_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
NAMED: dict[str, tuple[Mean, Mean]] = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "half": (HALF_MEAN, HALF_STD),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
OWN = ("encoder.patch_embed.weight", "encoder.patch_embed.stages.0.conv.weight")
"""Names in our own nets, with a linear patch embedding or a convolutional stem."""
TIMM, HUGGING_FACE = "patch_embed.proj.weight", "patch_embeddings.projection.weight"
"""Names that end so mark timm's nets and facebookresearch/mae's, and Hugging Face's."""
BLOCK_NAME = r"(blocks\.\d+\.(?:norm1|attn\.qkv|attn\.proj|norm2|mlp\.fc1|mlp\.fc2)\.(?:weight|bias))$"
"""Parameters of a block in timm and in facebookresearch/mae."""
CHANGES_THE_OUTPUT = r"(blocks\.|patch_embed\.|norm_pre|reg_token|register_tokens|dist_token|rope|rel_pos|pos_embed_)"
"""Beginnings of names that belong to the encoder; all others are heads, decoders or parts of the training."""
HUGGING_FACE_NAMES = (
    (r"embeddings\.cls_token$", "cls_token"),
    (r"embeddings\.position_embeddings$", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.(\w+)$", r"patch_embed.proj.\1"),
    (r"layernorm\.(\w+)$", r"norm.\1"),
    (r"encoder\.layer\.(\d+)\.layernorm_before\.(\w+)$", r"blocks.\1.norm1.\2"),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.(\w+)$", r"blocks.\1.norm2.\2"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)$", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)$", r"blocks.\1.mlp.fc1.\2"),
    (r"encoder\.layer\.(\d+)\.output\.dense\.(\w+)$", r"blocks.\1.mlp.fc2.\2"),
    (r"encoder\.layer\.(\d+\.attention\.attention\.(?:query|key|value)\.\w+)$", r"attention.\1"),
)
"""Names of `ViTModel`, without its prefix; the decoder of `ViTMAEForPreTraining` has the same blocks."""


@dataclass(frozen=True)
class ForeignViT:
    """A ViT from elsewhere, by timm's names, all floats finite and in fp32."""

    state: StateDict
    mean: Mean
    std: Mean
    """Standard deviation of its training images, in 0..1, one value per channel."""
    reason: str
    """Why this normalisation."""
    heads: int | None
    """Attention heads, if a config.json states them."""


def own_weights(file: WeightsFile) -> StateDict | None:
    """The weights of one of pfcluster's nets by its names, as `pfcluster consolidate` writes them; None for others."""
    for group in ("model_ema/", "model/", ""):
        if any(group + name in file.tensors for name in OWN):
            names = [name for name in file.tensors if name.startswith(group)]
            return {name.removeprefix(group): file.tensors[name] for name in names}
    return None


def foreign_vit(file: WeightsFile, source: str, normalisation: Normalisation = "auto") -> ForeignViT:
    """The ViT in a file from elsewhere. Raises WeightsError if there is none, or if pfcluster's would compute
    something else.
    """
    prefix, is_hugging_face = _find_net(file.tensors, source)
    state = {name.removeprefix(prefix): value for name, value in file.tensors.items() if name.startswith(prefix)}
    if is_hugging_face:
        state = _by_timms_names(state, file.tensors, prefix.removesuffix("vit."))
        _check_config(file.config, source)
    check_supported(state, source)
    state = {name: _fp32(value, name, source) for name, value in state.items()}
    channels = state["patch_embed.proj.weight"].shape[1]
    mean, std, reason = _normalisation(file, state, is_hugging_face, normalisation, source)
    if channels == 1:
        mean, std = ((sum(values) / len(values),) for values in (mean, std))
    heads = file.config.get("num_attention_heads")
    return ForeignViT(state, mean, std, reason, heads if isinstance(heads, int) and heads > 0 else None)


def _find_net(tensors: StateDict, source: str) -> tuple[str, bool]:
    """The prefix of the net's names, and whether they are Hugging Face's. Of a teacher and a student, or a net and its
    average, the teacher's or the net's.
    """
    prefixes = {}
    for name in tensors:
        for anchor in (TIMM, f"embeddings.{HUGGING_FACE}"):
            if name == anchor or name.endswith(f".{anchor}"):
                prefixes[name.removesuffix(anchor)] = anchor != TIMM
    if not prefixes:
        some = ", ".join(list(tensors)[:3])
        raise WeightsError(
            f"model.init: {source} is not a supported ViT: it has no {TIMM} (timm, facebookresearch/mae) and no"
            f" embeddings.{HUGGING_FACE} (Hugging Face), but {some}, ...; use a ViT of one of these layouts"
        )
    ranks = {prefix: _preference(prefix) for prefix in prefixes}
    best = [prefix for prefix, rank in ranks.items() if rank == min(ranks.values())]
    if len(best) > 1:
        raise WeightsError(
            f"model.init: {source} holds {len(best)} nets, under {' and '.join(map(repr, sorted(best)))}; save"
            " the one to use in a file of its own"
        )
    return best[0], prefixes[best[0]]


def _preference(prefix: str) -> int:
    if "teacher" in prefix:
        return 0
    return 2 if any(word in prefix for word in ("student", "ema", "momentum", "optimizer")) else 1


def _by_timms_names(state: StateDict, everything: StateDict, root: str) -> StateDict:
    """Hugging Face's parameters by timm's names. `root`: prefix of `vit.` and `decoder.`."""
    renamed = _renamed(state, "")
    decoder = {
        name.removeprefix(f"{root}decoder."): value
        for name, value in everything.items()
        if name.startswith(f"{root}decoder.")
    }
    layers = {name: value for name, value in decoder.items() if name.startswith("decoder_layers.")}
    renamed |= _renamed(
        {f"encoder.layer.{name.partition('.')[2]}": value for name, value in layers.items()}, "decoder_"
    )
    return renamed | {name: value for name, value in decoder.items() if name not in layers}


def _renamed(state: StateDict, prefix: str) -> StateDict:
    names = {name: name for name in state}
    for name in state:
        for pattern, replacement in HUGGING_FACE_NAMES:
            if re.match(pattern, name):
                names[name] = re.sub(pattern, replacement, name)
        if names[name] == name and name.startswith("encoder.layer."):
            names[name] = f"blocks.{name.removeprefix('encoder.layer.')}"  # refused as foreign, by its name
    values = {prefix + new: state[name] for name, new in names.items() if not new.startswith("attention.")}
    separate = {new: state[name] for name, new in names.items() if new.startswith("attention.")}
    for name in separate:
        _, block, _, _, part, kind = name.split(".")
        if part == "query":
            parts = [
                separate.get(f"attention.{block}.attention.attention.{one}.{kind}") for one in ("query", "key", "value")
            ]
            if all(one is not None and one.shape == parts[0].shape for one in parts):  # type: ignore[union-attr]
                values[f"{prefix}blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)  # type: ignore[arg-type]
    return values


def _check_config(config: dict[str, Any], source: str) -> None:
    """Raises WeightsError for what a config.json says and no weight shows."""
    activation = config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise WeightsError(
            f"model.init: {source} has the activation {activation!r} (config.json, hidden_act), pfcluster's ViT has"
            " gelu; without it its output would differ"
        )


def check_supported(state: StateDict, source: str) -> None:
    """Raises WeightsError for architectures that ViT does not implement; ignoring their extra weights would change the
    output.
    """
    for name in (
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "cls_token",
        "pos_embed",
        "blocks.0.mlp.fc1.weight",
    ):
        if name not in state:
            raise WeightsError(f"model.init: {source} is not a supported ViT: it has no {name}")
    kernel = state["patch_embed.proj.weight"]
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3]:
        raise WeightsError(
            f"model.init: {source} is not a supported ViT: its patch embedding has shape {tuple(kernel.shape)}, not"
            " that of square patches of an image"
        )
    width, channels = kernel.shape[:2]
    if channels not in (1, 3):
        hybrid = " (a hybrid, which embeds features of a convolutional net)" if channels > 4 else ""
        raise WeightsError(
            f"model.init: {source} takes {channels} channels{hybrid}; pfcluster's images have 3: use a net for colour"
            " or grey images"
        )
    foreign = [name for name in state if re.match(CHANGES_THE_OUTPUT, name)]
    foreign = [name for name in foreign if not re.match(rf"{BLOCK_NAME}|patch_embed\.proj\.(weight|bias)$", name)]
    if foreign:
        raise WeightsError(
            f"model.init: {source} has {foreign[0]} and {len(foreign) - 1} more weights that pfcluster's ViT"
            " does not have; without them its output would differ"
        )
    _check_shapes(state, width, source)


def _check_shapes(state: StateDict, width: int, source: str) -> None:
    """Raises WeightsError for position embeddings that are not a square grid with a class token, and other odd
    shapes."""
    positions = state["pos_embed"]
    places = positions.shape[1] - 1 if positions.ndim == 3 else -1
    if places < 1 or math.isqrt(places) ** 2 != places:
        count = f"{places + 1} position embeddings are" if positions.ndim == 3 else "its position embeddings are"
        raise WeightsError(
            f"model.init: {source} is not a supported ViT: {count} not those of a class token and a square grid"
        )
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0] if state["blocks.0.mlp.fc1.weight"].ndim == 2 else 0
    expected = {
        "pos_embed": (1, places + 1, width),
        "cls_token": (1, 1, width),
        "patch_embed.proj.bias": (width,),
        "blocks.0.attn.qkv.weight": (3 * width, width),
        "blocks.0.mlp.fc1.weight": (hidden or 1, width),
    }
    for name, shape in expected.items():
        actual = tuple(state[name].shape) if name in state else None
        if actual != shape:
            raise WeightsError(
                f"model.init: {source} is not a supported ViT: {name} "
                + (f"has shape {actual}, a ViT of width {width} has {shape}" if actual is not None else "is missing")
            )


def _fp32(value: Tensor, name: str, source: str) -> Tensor:
    """Raises WeightsError for quantised and non-finite weights of the net."""
    used = re.match(rf"{BLOCK_NAME}|patch_embed|cls_token|pos_embed|norm\.|fc_norm|decoder|mask_token", name)
    if not used or value.is_meta:  # of a timm model whose sizes alone are asked for
        return value
    if not value.is_floating_point() or value.layout != torch.strided:
        raise WeightsError(
            f"model.init: {name} of {source} has the type {value.dtype}, not floating-point numbers: use weights that"
            " are not quantised"
        )
    value = value.detach().float()
    if not torch.isfinite(value).all():
        raise WeightsError(f"model.init: {name} of {source} holds values that are not finite: the file is damaged")
    return value


def _normalisation(
    file: WeightsFile, state: StateDict, is_hugging_face: bool, normalisation: Normalisation, source: str
) -> tuple[Mean, Mean, str]:
    """Mean and standard deviation of the images that a net was trained with, and why."""
    if normalisation != "auto":
        return *NAMED[normalisation], "as model.init_normalisation says"
    stated = _stated_normalisation(file, source)
    if stated is not None:
        return stated
    if "mask_token" in state or "decoder_embed.weight" in state or file.config.get("model_type") == "vit_mae":
        return *NAMED["imagenet"], "assumed for a masked autoencoder"
    if file.nested:
        return *NAMED["imagenet"], "assumed for the checkpoint of a training script"
    name = "Hugging Face's vit" if is_hugging_face else "a bare state dict, as of timm's augreg ViTs"
    return *NAMED["half"], f"assumed for {name}"


def _stated_normalisation(file: WeightsFile, source: str) -> tuple[Mean, Mean, str] | None:
    """The normalisation in config.json (timm) or preprocessor_config.json (Hugging Face)."""
    timms = file.config.get("pretrained_cfg", file.config)
    places = (
        (timms, "mean", "std", "config.json"),
        (file.preprocessor, "image_mean", "image_std", "preprocessor_config.json"),
    )
    for values, mean_key, std_key, place in places:
        if not isinstance(values, dict) or mean_key not in values:
            continue
        mean: Any = values[mean_key]
        std: Any = values.get(std_key)
        if not (_are_per_channel(mean) and _are_per_channel(std) and min(std) > 0):
            raise WeightsError(
                f"model.init: {place} of {source} must have {mean_key} and a positive {std_key} of three channels, got"
                f" {mean!r} and {std!r}; correct it, or set model.init_normalisation"
            )
        return tuple(mean * (3 // len(mean))), tuple(std * (3 // len(std))), f"from {place}"
    return None


def _are_per_channel(values: Any) -> bool:
    return isinstance(values, list) and len(values) in (1, 3) and all(type(value) in (int, float) for value in values)
