"""Load pre-trained weights: of pfcluster runs, timm's supervised ViTs, and files in the layout of facebookresearch/mae.

Parameters are renamed to `encoder.*` and, if there is one, `decoder.*`. pfcluster's nets take images in -1..1; for nets
trained with another normalisation the difference is folded exactly into the patch embedding.

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
HALF_MEAN, HALF_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
BLOCK_NAME = r"(blocks\.\d+\.(?:norm1|attn\.qkv|attn\.proj|norm2|mlp\.fc1|mlp\.fc2)\.\w+)$"
"""Parameters of a block in timm and in facebookresearch/mae."""
StateDict = dict[str, Tensor]


class WeightsError(ValueError):
    """Weights that cannot be loaded or do not fit. The message says which, why, and the remedy."""


def read(source: str) -> StateDict:
    """Weights by pfcluster's names, from a run or checkpoint folder, a file, or `timm:NAME`. Raises WeightsError."""
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
    """A file's tensors and the image normalisation they were trained with: ImageNet's for files that wrap the weights
    in `model` or `model_state_dict` (facebookresearch/mae, the paper's authors), 0.5 for bare state dicts (timm's
    augreg ViTs).
    """
    if path.suffix == ".safetensors":
        return load_file(path), HALF_MEAN, HALF_STD
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # facebookresearch/mae also stores its options
            values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of pickle, zip and its own
        raise WeightsError(f"model.init: {path} holds no plain weights: {error}") from error
    for wrapper in ("model", "model_state_dict"):
        if isinstance(values, dict) and wrapper in values:
            return values[wrapper], IMAGENET_MEAN, IMAGENET_STD
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise WeightsError(f"model.init: {path} is no state dict")
    return values, HALF_MEAN, HALF_STD


def external_sizes(source: str) -> dict[str, float]:
    """Model sizes of a third-party file or a timm model, by config field. Empty for pfcluster's own weights and for
    missing files. Raises WeightsError.

    A file does not contain the number of heads. Assumed are 64 channels per head for ViT-T to ViT-L, 16 heads for
    ViT-H, and facebookresearch/mae's 32 channels per head for decoders.
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
    _check_supported(state, source)
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    side = math.isqrt(state["pos_embed"].shape[1] - 1)
    sizes = {
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
        sizes |= {"model.decoder_width": width, "model.decoder_depth": depth, "model.decoder_heads": heads}
    return sizes


def _depth(state: StateDict, blocks: str) -> int:
    return len({name.split(".")[1] for name in state if name.startswith(f"{blocks}.")})


def _plain_names(state: StateDict) -> StateDict:
    """Remove the prefix that DistributedDataParallel adds to each name."""
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


def _check_supported(state: StateDict, source: str) -> None:
    """Raises WeightsError for architectures that ViT does not implement; ignoring their extra weights would change the
    output."""
    for name in ("patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token", "pos_embed"):
        if name not in state:
            raise WeightsError(f"model.init: {source} is not a supported ViT: it has no {name}")
    foreign = [name for name in state if re.match(r"(blocks\.|norm_pre|reg_token|dist_token)", name)]
    foreign = [name for name in foreign if not re.match(BLOCK_NAME, name)]
    if foreign:
        raise WeightsError(
            f"model.init: {source} has {foreign[0]} and {len(foreign) - 1} more weights that pfcluster's ViT"
            " does not have; without them its output would differ"
        )
    places = state["pos_embed"].shape[1] - 1
    if math.isqrt(places) ** 2 != places:
        raise WeightsError(
            f"model.init: {source} is not a supported ViT: {places + 1} position embeddings are not those of"
            " a class token and a square grid"
        )


def _rename(state: StateDict, mean: tuple[float, ...], std: tuple[float, ...], source: str) -> StateDict:
    """Rename timm's and facebookresearch/mae's parameters, which agree on the encoder, to pfcluster's names."""
    state = _plain_names(state)
    _check_supported(state, source)
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
    """Reorder a head's outputs from (p p 3), facebookresearch/mae's order within a patch, to (3 p p)."""
    return head.reshape(patch, patch, 3, -1).permute(2, 0, 1, 3).reshape(head.shape)


def fold_normalisation(
    kernel: Tensor, bias: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """A patch embedding for images in -1..1, equivalent to the given one on (image - mean) / std with image in 0..1.

    kernel d 3 p p, bias d -> weight d (3 p p), bias d.
    """
    precise = kernel.double()
    deviation = torch.tensor(std, dtype=torch.float64).view(1, 3, 1, 1)
    shift = (0.5 - torch.tensor(mean, dtype=torch.float64).view(1, 3, 1, 1)) / deviation
    folded = bias.double() + (precise * shift).sum((1, 2, 3))
    return (precise * (0.5 / deviation)).flatten(1).to(kernel.dtype), folded.to(bias.dtype)


def resize_positions(positions: Tensor, count: int) -> Tensor:
    """Resize position embeddings to another square grid: n d -> count d, bicubic as in DeiT and MAE fine-tuning."""
    if len(positions) == count:
        return positions
    side, new_side = math.isqrt(len(positions)), math.isqrt(count)
    grid = positions.view(1, side, side, -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=(new_side, new_side), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(count, -1)


def load_part(module: nn.Module, weights: StateDict, part: str, source: str) -> None:
    """Load the weights under `part.` into a module. Raises WeightsError unless every parameter is there and fits."""
    loaded = {name.removeprefix(f"{part}."): value for name, value in weights.items() if name.startswith(f"{part}.")}
    expected = module.state_dict()
    grids = loaded.get("positions"), expected.get("positions")
    if grids[0] is not None and grids[1] is not None and grids[0].shape[1] == grids[1].shape[1]:
        loaded["positions"] = resize_positions(grids[0], len(grids[1]))
    missing = sorted(set(expected) - set(loaded))
    if missing:
        raise WeightsError(
            f"model.init: {source} lacks {part}.{missing[0]} and {len(missing) - 1} more; {_describe_sizes(loaded)}"
        )
    extra = sorted(name for name in loaded if name not in expected and name.startswith("blocks."))
    if extra:
        raise WeightsError(
            f"model.init: {source} has more {part} blocks than model.depth asks for; {_describe_sizes(loaded)}"
        )
    for name, value in expected.items():
        if loaded[name].shape != value.shape:
            raise WeightsError(
                f"model.init: {part}.{name} of {source} has shape {tuple(loaded[name].shape)}, this model's has"
                f" {tuple(value.shape)}; {_describe_sizes(loaded)}"
            )
    module.load_state_dict({name: loaded[name] for name in expected})


def _describe_sizes(weights: StateDict) -> str:
    """Model sizes according to the shapes of a part's weights, for error messages."""
    blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    sizes = [f"{len(blocks)} blocks"]
    if "patch_embed.weight" in weights:
        width, inputs = weights["patch_embed.weight"].shape
        sizes += [f"width {width}", f"patch {math.isqrt(inputs // 3)}"]
    elif "embed.weight" in weights:
        decoder_width, encoder_width = weights["embed.weight"].shape
        sizes += [f"decoder width {decoder_width}", f"encoder width {encoder_width}"]
    return "it holds " + ", ".join(sizes)
