"""Load pre-trained weights: of pfcluster runs, timm's supervised ViTs, and files in the layouts of timm,
facebookresearch/mae and Hugging Face (`weight_layouts.py`).

Parameters are renamed to `encoder.*` and, if there is one, `decoder.*`. pfcluster's nets take images in -1..1; for nets
trained with another normalisation the difference is folded exactly into the patch embedding.

Legend: d channels, p patch side, n patches, c image channels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pfcluster.checkpoint import store
from pfcluster.models.weight_files import StateDict, WeightsError, WeightsFile, is_hub_folder, read_weights
from pfcluster.models.weight_layouts import BLOCK_NAME, ForeignViT, Normalisation, foreign_vit, own_weights

TIMM = "timm:"
RENAMED = (
    (BLOCK_NAME, r"encoder.\1"),
    (r"norm\.(\w+)$", r"encoder.norm.\1"),
    (r"fc_norm\.(\w+)$", r"encoder.norm.\1"),
    (r"decoder_blocks\.(.+)$", r"decoder.blocks.\1"),
    (r"decoder_norm\.(\w+)$", r"decoder.norm.\1"),
    (r"decoder_embed\.(\w+)$", r"decoder.embed.\1"),
    (r"mask_token$", "decoder.mask_token"),
)
"""Parameter names of timm and facebookresearch/mae, which agree on the encoder, and of pfcluster."""


def read(source: str, normalisation: Normalisation = "auto") -> StateDict:
    """Weights by pfcluster's names, from a run or checkpoint folder, a file, a folder of the Hugging Face hub, or
    `timm:NAME`. `normalisation`: of the images that a net from elsewhere was trained with. Raises WeightsError.
    """
    if not _is_external(source):
        try:
            return store.load(Path(source)).weights()
        except store.CheckpointError as error:
            raise WeightsError(f"model.init: {error}{_files_hint(Path(source))}") from error
    file = _open(source, pretrained=True)
    own = own_weights(file)
    return _rename(foreign_vit(file, source, normalisation), source) if own is None else own


def describe(source: str, normalisation: Normalisation = "auto") -> str | None:
    """The image normalisation that weights from elsewhere are read with, and why; None for pfcluster's own weights.

    Raises WeightsError.
    """
    if not _is_external(source):
        return None
    file = _open(source, pretrained=True)
    if own_weights(file) is not None:
        return None
    vit = foreign_vit(file, source, normalisation)
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (vit.mean, vit.std))
    return (
        f"model.init {source}: trained on images normalised with mean {mean} and std {std} ({vit.reason});"
        " model.init_normalisation sets another"
    )


def external_sizes(source: str) -> dict[str, float]:
    """Model sizes of weights from elsewhere, by config field. Empty for pfcluster's own weights and for missing files.
    Raises WeightsError.

    Files without a config.json do not contain the number of heads. Assumed are 64 channels per head for ViT-T to ViT-L,
    16 heads for ViT-H, and facebookresearch/mae's 32 channels per head for decoders.
    """
    if not _is_external(source) or not (source.startswith(TIMM) or Path(source).exists()):
        return {}
    heads = None
    if source.startswith(TIMM):
        with torch.device("meta"):
            model: Any = _timm_model(source.removeprefix(TIMM), pretrained=False)
        heads = getattr(getattr(model.blocks[0], "attn", None), "num_heads", None)
        vit = foreign_vit(WeightsFile(model.state_dict(), nested=False), source)
    else:
        file = _open(source, pretrained=False)
        if own_weights(file) is not None:
            return {}
        vit = foreign_vit(file, source)
    return _sizes(vit, heads)


def _sizes(vit: ForeignViT, heads: int | None) -> dict[str, float]:
    state = vit.state
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    side = math.isqrt(state["pos_embed"].shape[1] - 1)
    sizes = {
        "data.size": side * patch,
        "model.patch": patch,
        "model.width": width,
        "model.depth": _depth(state, "blocks"),
        "model.heads": heads or vit.heads or (16 if width == 1280 else max(1, width // 64)),
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


def _is_external(source: str) -> bool:
    """Whether a source is a file, a folder of the Hugging Face hub or timm's; else it is a run or a checkpoint."""
    return source.startswith(TIMM) or not Path(source).is_dir() or is_hub_folder(Path(source))


def _open(source: str, *, pretrained: bool) -> WeightsFile:
    """The content of an external source. Raises WeightsError."""
    if source.startswith(TIMM):
        model = _timm_model(source.removeprefix(TIMM), pretrained=pretrained)
        setup: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]
        stated = {"mean": list(setup["mean"]), "std": list(setup["std"])}
        return WeightsFile(model.state_dict(), nested=False, config=stated)
    if not Path(source).exists():
        raise WeightsError(f"model.init: neither a folder nor a file: {source}; pass a run, a checkpoint or timm:NAME")
    return read_weights(Path(source))


def _files_hint(folder: Path) -> str:
    """The file of weights in a folder that is not a run, for its error message."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".pth", ".pt", ".bin", ".ckpt", ".safetensors"))
    return f"; use a file in it, such as {files[0]}" if files else ""


def _timm_model(name: str, *, pretrained: bool) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, pretrained=pretrained)
    except Exception as error:  # timm and the hub raise many kinds: unknown names, no network, no such file
        raise WeightsError(
            f"model.init: cannot get timm's {name}: {error}; check the name with"
            " timm.list_models('vit_*', pretrained=True) and the network, or use a downloaded file"
        ) from error


def _rename(vit: ForeignViT, source: str) -> StateDict:
    """Rename the parameters to pfcluster's names, and fold the images' normalisation into the patch embedding."""
    state = vit.state
    renamed: StateDict = {}
    kernel = state["patch_embed.proj.weight"]
    renamed["encoder.patch_embed.weight"], renamed["encoder.patch_embed.bias"] = fold_normalisation(
        kernel, state["patch_embed.proj.bias"], vit.mean, vit.std
    )
    positions = state["pos_embed"][0]
    renamed["encoder.cls_token"] = state["cls_token"] + positions[:1]
    renamed["encoder.positions"] = positions[1:]
    for name, value in state.items():
        for pattern, replacement in RENAMED:
            if re.match(pattern, name):
                renamed[re.sub(pattern, replacement, name)] = value
    for part in ("weight", "bias"):
        if f"decoder_pred.{part}" in state:
            head = state[f"decoder_pred.{part}"]
            renamed[f"decoder.head.{part}"] = _channels_first(head, kernel.shape[-1], source)
    return renamed


def _channels_first(head: Tensor, patch: int, source: str) -> Tensor:
    """Reorder a head's outputs from (p p c), facebookresearch/mae's order within a patch, to (3 p p); the output of a
    net for grey images becomes all three channels. Raises WeightsError.
    """
    channels = len(head) // patch**2
    if channels not in (1, 3) or len(head) != channels * patch**2:
        raise WeightsError(
            f"model.init: the decoder of {source} predicts {len(head)} values per patch, not the {3 * patch**2} of"
            f" {patch} x {patch} pixels; use the encoder's weights alone"
        )
    grid = head.reshape(patch, patch, channels, -1).permute(2, 0, 1, 3).expand(3, -1, -1, -1)
    return grid.reshape(3 * patch**2, *head.shape[1:])


def fold_normalisation(
    kernel: Tensor, bias: Tensor, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """A patch embedding for images in -1..1, equivalent to the given one on (image - mean) / std with image in 0..1.
    One for grey images takes the mean of the three channels.

    kernel d c p p, bias d; mean and std c -> weight d (3 p p), bias d.
    """
    channels = len(mean)
    precise = kernel.double().expand(-1, 3, -1, -1) * (channels / 3)
    deviation = torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1)
    shift = (0.5 - torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1)) / deviation
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
    elif "patch_embed.out.weight" in weights:
        stages = [name for name in weights if re.fullmatch(r"patch_embed\.stages\.\d+\.conv\.bias", name)]
        channels = ", ".join(str(len(weights[name])) for name in stages)
        width = len(weights["patch_embed.out.weight"])
        sizes += [f"width {width}", f"a convolutional stem with model.stem_channels {channels}"]
    elif "embed.weight" in weights:
        decoder_width, encoder_width = weights["embed.weight"].shape
        sizes += [f"decoder width {decoder_width}", f"encoder width {encoder_width}"]
    return "it holds " + ", ".join(sizes)
