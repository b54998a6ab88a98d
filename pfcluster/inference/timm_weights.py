"""The encoder by timm's names, as `timm.create_model(..., checkpoint_path=...)` loads it.

Legend: n patches, d channels, p patch side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from pfcluster.inference.errors import InferenceError
from pfcluster.inference.model_info import EncoderInfo, ModelInfo
from pfcluster.inference.runtime_info import TimmInfo

BASE = "vit_base_patch16_224"
"""timm's ViT with a class token, learned positions, biases, GELU and final norm; all sizes are options. Its
normalisation is pfcluster's."""


def timm_info(info: ModelInfo) -> TimmInfo:
    """How timm makes the encoder. Raises InferenceError for nets that timm's ViT cannot represent."""
    encoder = _encoder(info)
    return TimmInfo(
        name=BASE,
        options={
            "img_size": info.network.size,
            "patch_size": encoder.patch,
            "embed_dim": encoder.width,
            "depth": encoder.depth,
            "num_heads": encoder.heads,
            "mlp_ratio": encoder.mlp_ratio,
            "num_classes": len(info.classes) if _has_head(info) else 0,
        },
    )


def _encoder(info: ModelInfo) -> EncoderInfo:
    encoder = info.network.encoder
    if encoder is None:
        raise InferenceError(
            f"{info.name} cannot be exported to timm: it is the small convolutional net of `pfcluster judge`, which"
            " timm does not have; use --format onnx or torch-export"
        )
    if encoder.stem_channels:
        raise InferenceError(
            f"{info.name} cannot be exported to timm: it has a convolutional stem (model.stem_channels), and timm's ViT"
            " embeds patches linearly; use --format onnx or torch-export"
        )
    return encoder


def _has_head(info: ModelInfo) -> bool:
    """Whether the linear head reads the encoder's class token; PF-ViT's reads it after the separator."""
    return not info.generates


def timm_state(info: ModelInfo, net: nn.Module) -> bytes:
    """A safetensors file of the encoder, with the head where timm can have it."""
    encoder = _encoder(info)
    state: dict[str, Tensor] = {}
    for name, value in net.state_dict().items():
        room, _, rest = name.partition(".")
        if room == "encoder":
            state[rest] = value
        elif room in ("head", "classifier") and _has_head(info):
            state[f"head.{rest}"] = value
    patch = (encoder.width, 3, encoder.patch, encoder.patch)
    state["patch_embed.proj.weight"] = state.pop("patch_embed.weight").reshape(patch)
    state["patch_embed.proj.bias"] = state.pop("patch_embed.bias")
    positions = state.pop("positions")  # n d; the class token has none
    state["pos_embed"] = torch.cat([positions.new_zeros(1, encoder.width), positions])[None]
    return save({name: value.contiguous().clone() for name, value in state.items()}, {"format": "pt"})


def load_in_timm(described: TimmInfo, path: Path) -> nn.Module:
    """timm's net with the weights of a file."""
    import timm

    options: dict[str, Any] = dict(described.options)
    model: nn.Module = timm.create_model(described.name, checkpoint_path=str(path), **options)
    return model.eval()
