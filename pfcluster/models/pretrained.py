"""Weights to start from: our own runs, timm's supervised ViTs, files in the manner of facebookresearch/mae.

All are turned into our names: `encoder.*`, and `decoder.*` where there is one. Our nets read images in -1..1; a net
trained on images normalised otherwise gets the difference folded into its patch embedding, exactly.

Legend: d channels, p patch side, n patches.
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from pfcluster.checkpoint import store

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OWN_MEAN, OWN_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
BLOCK_NAME = r"(blocks\.\d+\.(?:norm1|attn\.qkv|attn\.proj|norm2|mlp\.fc1|mlp\.fc2)\.\w+)$"
"""A block's weights in timm and in facebookresearch/mae."""
StateDict = dict[str, Tensor]


class WeightsError(ValueError):
    """Weights that cannot be had or do not fit: says which, why, and what would do."""


def read(source: str) -> StateDict:
    """Weights by our names from a run's or checkpoint's folder, a file, or `timm:NAME`. Raises WeightsError."""
    if source.startswith("timm:"):
        return _from_timm(source.removeprefix("timm:"))
    path = Path(source)
    if path.is_dir():
        try:
            return store.load(path).weights()
        except store.CheckpointError as error:
            raise WeightsError(f"model.init: {error}") from error
    if not path.is_file():
        raise WeightsError(f"model.init: neither a folder nor a file: {source}; give a run, a checkpoint or timm:NAME")
    state, mean, std = _read_file(path)
    if any(name.startswith("encoder.") for name in state):
        return state
    return _rename(state, mean, std, source)


def _read_file(path: Path) -> tuple[StateDict, tuple[float, ...], tuple[float, ...]]:
    """A file's tensors and the normalisation it was trained with: ImageNet's for facebookresearch/mae's and the
    authors' files (they wrap their weights in `model` or `model_state_dict`), 0.5 for bare state dicts (timm's augreg
    ViTs).
    """
    if path.suffix == ".safetensors":
        return load_file(path), OWN_MEAN, OWN_STD
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # facebookresearch/mae keeps its options beside
            values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its reader met: pickle, zip and runtime errors
        raise WeightsError(f"model.init: {path} holds no plain weights: {error}") from error
    for wrapper in ("model", "model_state_dict"):
        if isinstance(values, dict) and wrapper in values:
            return values[wrapper], IMAGENET_MEAN, IMAGENET_STD
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise WeightsError(f"model.init: {path} is no state dict")
    return values, OWN_MEAN, OWN_STD


def external_sizes(source: str) -> dict[str, float]:
    """What a file of others or a timm model says of its own sizes, by the names of our options. Empty for our own
    weights, and where there is no such file. Raises WeightsError.

    Heads leave no trace in a file: taken is what every ViT has, 64 channels a head from T to L and 16 heads for H, and
    for a decoder facebookresearch/mae's 32 channels.
    """
    heads = None
    if source.startswith("timm:"):
        with torch.device("meta"):
            model: Any = _timm_model(source.removeprefix("timm:"), pretrained=False)
        state, heads = model.state_dict(), getattr(getattr(model.blocks[0], "attn", None), "num_heads", None)
    elif Path(source).is_file():
        state = _plain_names(_read_file(Path(source))[0])
    else:
        return {}
    if any(name.startswith("encoder.") for name in state):
        return {}
    _check_known(state, source)
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    side = math.isqrt(state["pos_embed"].shape[1] - 1)
    found = {
        "data.size": side * patch,
        "model.patch": patch,
        "model.width": width,
        "model.depth": _depth(state, "blocks"),
        "model.heads": heads or (16 if width == 1280 else max(1, width // 64)),
        "model.mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / width,
    }
    if "decoder_embed.weight" in state:
        width = state["decoder_embed.weight"].shape[0]
        depth = _depth(state, "decoder_blocks")
        heads = max(1, width // 32)
        found |= {"model.decoder_width": width, "model.decoder_depth": depth, "model.decoder_heads": heads}
    return found


def _depth(state: StateDict, blocks: str) -> int:
    return len({name.split(".")[1] for name in state if name.startswith(f"{blocks}.")})


def _plain_names(state: StateDict) -> StateDict:
    """Without what DistributedDataParallel puts before each name."""
    return {name.removeprefix("module."): value for name, value in state.items()}


def _from_timm(name: str) -> StateDict:
    model = _timm_model(name, pretrained=True)
    setup: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    return _rename(model.state_dict(), setup["mean"], setup["std"], f"timm:{name}")


def _timm_model(name: str, *, pretrained: bool) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, pretrained=pretrained)
    except Exception as error:  # timm and the hub raise many kinds: unknown names, no network, no such file
        raise WeightsError(
            f"model.init: cannot get timm's {name}: {error}; check the name with"
            " timm.list_models('vit_*', pretrained=True) and the network, or give a downloaded file"
        ) from error


def _check_known(state: StateDict, source: str) -> None:
    """Raises WeightsError for a net that ours cannot compute: to leave a part of it out would go unseen."""
    for name in ("patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token", "pos_embed"):
        if name not in state:
            raise WeightsError(f"model.init: {source} is no ViT that we know: it has no {name}")
    foreign = [name for name in state if re.match(r"(blocks\.|norm_pre|reg_token|dist_token)", name)]
    foreign = [name for name in foreign if not re.match(BLOCK_NAME, name)]
    if foreign:
        raise WeightsError(
            f"model.init: {source} has {foreign[0]} and {len(foreign) - 1} more weights that our ViT has no place for;"
            " it would compute something else without them"
        )
    places = state["pos_embed"].shape[1] - 1
    if math.isqrt(places) ** 2 != places:
        raise WeightsError(
            f"model.init: {source} is no ViT that we know: {places + 1} positions are not a class token's and a square"
            " grid's"
        )


def _rename(state: StateDict, mean: tuple[float, ...], std: tuple[float, ...], source: str) -> StateDict:
    """timm's and facebookresearch/mae's names, which agree on the encoder, to ours."""
    state = _plain_names(state)
    _check_known(state, source)
    renamed: StateDict = {}
    kernel = state["patch_embed.proj.weight"]
    renamed["encoder.patch_embed.weight"], renamed["encoder.patch_embed.bias"] = fold_normalisation(
        kernel, state["patch_embed.proj.bias"], mean, std
    )
    positions = state["pos_embed"][0]
    renamed["encoder.cls_token"] = state["cls_token"] + positions[:1]
    renamed["encoder.positions"] = positions[1:]
    patterns = [
        (BLOCK_NAME, r"encoder.\1"),
        (r"norm\.(\w+)$", r"encoder.norm.\1"),
        (r"fc_norm\.(\w+)$", r"encoder.norm.\1"),
        (r"decoder_blocks\.(.+)$", r"decoder.blocks.\1"),
        (r"decoder_norm\.(\w+)$", r"decoder.norm.\1"),
        (r"decoder_embed\.(\w+)$", r"decoder.embed.\1"),
        (r"mask_token$", "decoder.mask_token"),
    ]
    for name, value in state.items():
        for pattern, replacement in patterns:
            if re.match(pattern, name):
                renamed[re.sub(pattern, replacement, name)] = value
    if "decoder_pred.weight" in state:
        patch = kernel.shape[-1]
        for part in ("weight", "bias"):
            renamed[f"decoder.head.{part}"] = _channels_first(state[f"decoder_pred.{part}"], patch)
    return renamed


def _channels_first(head: Tensor, patch: int) -> Tensor:
    """Reorder a head's outputs from (p p 3), facebookresearch/mae's order within a patch, to our (3 p p)."""
    return head.reshape(patch, patch, 3, -1).permute(2, 0, 1, 3).reshape(head.shape)


def fold_normalisation(
    kernel: Tensor, bias: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """A patch embedding for images in -1..1 that equals the given one on (image - mean) / std, image in 0..1.

    kernel d 3 p p, bias d -> weight d (3 p p), bias d.
    """
    precise = kernel.double()
    deviation = torch.tensor(std, dtype=torch.float64).view(1, 3, 1, 1)
    shift = (0.5 - torch.tensor(mean, dtype=torch.float64).view(1, 3, 1, 1)) / deviation
    folded = bias.double() + (precise * shift).sum((1, 2, 3))
    return (precise * (0.5 / deviation)).flatten(1).to(kernel.dtype), folded.to(bias.dtype)


def resize_positions(positions: Tensor, count: int) -> Tensor:
    """Position embeddings for another square grid: n d -> count d, bicubic as in DeiT and MAE fine-tuning."""
    if len(positions) == count:
        return positions
    side, wanted = math.isqrt(len(positions)), math.isqrt(count)
    grid = positions.view(1, side, side, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=(wanted, wanted), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(count, -1)


def load_part(module: nn.Module, weights: StateDict, part: str, source: str) -> None:
    """Fill a module with the weights under `part.`. Raises WeightsError unless every parameter is there and fits."""
    own = {name.removeprefix(f"{part}."): value for name, value in weights.items() if name.startswith(f"{part}.")}
    wanted = module.state_dict()
    if "positions" in own and "positions" in wanted and own["positions"].shape[1] == wanted["positions"].shape[1]:
        own["positions"] = resize_positions(own["positions"], len(wanted["positions"]))
    missing = sorted(set(wanted) - set(own))
    if missing:
        raise WeightsError(f"model.init: {source} lacks {part}.{missing[0]} and {len(missing) - 1} more; {_sizes(own)}")
    extra = sorted(name for name in own if name not in wanted and name.startswith("blocks."))
    if extra:
        raise WeightsError(f"model.init: {source} has more {part} blocks than model.depth asks for; {_sizes(own)}")
    for name, value in wanted.items():
        if own[name].shape != value.shape:
            raise WeightsError(
                f"model.init: {part}.{name} of {source} has shape {tuple(own[name].shape)}, this model's has"
                f" {tuple(value.shape)}; {_sizes(own)}"
            )
    module.load_state_dict({name: own[name] for name in wanted})


def _sizes(own: StateDict) -> str:
    """What a checkpoint's shapes say of its model, in the words of the options."""
    blocks = {name.split(".")[1] for name in own if name.startswith("blocks.")}
    words = [f"{len(blocks)} blocks"]
    if "patch_embed.weight" in own:
        width, inputs = own["patch_embed.weight"].shape
        words += [f"width {width}", f"patch {math.isqrt(inputs // 3)}"]
    elif "embed.weight" in own:
        words += [f"decoder width {own['embed.weight'].shape[0]}", f"encoder width {own['embed.weight'].shape[1]}"]
    return "it holds " + ", ".join(words)
