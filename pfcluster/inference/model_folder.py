"""Write and read a model folder, or one safetensors file that holds weights and config. Nothing is unpickled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pfcluster.inference.errors import InferenceError
from pfcluster.inference.model_card import model_card
from pfcluster.inference.model_info import (
    CARD_FILE,
    CONFIG_FILE,
    DISCRIMINATOR_FILE,
    METADATA_KEY,
    WEIGHTS_FILE,
    ModelInfo,
    parse_info,
    read_info,
    to_json,
)
from pfcluster.inference.runtime_info import RUNTIME_FILES
from pfcluster.inference.torch_predictor import not_finite, weights_sha256
from pfcluster.system.atomic_files import write_atomically

SHOWN = 3
"""Tensors that an error names."""
SUFFIX = ".safetensors"
StateDict = Mapping[str, Tensor]


def with_precision(info: ModelInfo, weights: StateDict, precision: str) -> tuple[ModelInfo, dict[str, Tensor]]:
    """The weights as "float32" or "float16", and the config with their checksum. Raises InferenceError if they are not
    finite, also if they exceed the range of float16.
    """
    kind = torch.float16 if precision == "float16" else torch.float32
    converted = {name: value.to(kind) if value.is_floating_point() else value for name, value in weights.items()}
    infinite = not_finite(converted)
    if infinite and not not_finite(weights):
        raise InferenceError(
            f"--precision {precision}: values of {', '.join(infinite[:SHOWN])} exceed its range; use float32"
        )
    if infinite:
        raise InferenceError(
            f"{info.name} is not written: {', '.join(infinite[:SHOWN])} hold values that are not finite numbers; export"
            " an earlier checkpoint, or train the run again"
        )
    return dataclasses.replace(info, weights_sha256=weights_sha256(converted)), converted


def write_model(output: Path, info: ModelInfo, weights: StateDict, discriminator: StateDict | None = None) -> None:
    """Write a model folder, or a single file if `output` ends in .safetensors; replaces an earlier model there.

    Raises InferenceError if something else is there, OSError.
    """
    if output.suffix == SUFFIX:
        require_free(output)
        if discriminator is not None:
            raise InferenceError("--discriminator needs a folder as --output: one file holds one net")
        output.parent.mkdir(parents=True, exist_ok=True)
        write_weights(output, info, weights)
        return
    files = {WEIGHTS_FILE: _serialised(info, weights)}
    if discriminator is not None:
        files[DISCRIMINATOR_FILE] = save(dict(discriminator), {"format": "pt"})
    write_folder(output, info, files)


def write_folder(output: Path, info: ModelInfo, files: Mapping[str, bytes]) -> None:
    """Write files, config and card into a folder; replaces an earlier model there. Raises InferenceError, OSError."""
    require_free(output)
    output.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS_FILE, DISCRIMINATOR_FILE, *RUNTIME_FILES):
        if name not in files:
            (output / name).unlink(missing_ok=True)
    for name, content in files.items():
        write_atomically(output / name, content)
    write_atomically(output / CONFIG_FILE, to_json(info))
    write_atomically(output / CARD_FILE, model_card(info))


def write_weights(path: Path, info: ModelInfo, weights: StateDict) -> None:
    """Write a safetensors file with the model's config in its metadata. Raises OSError."""
    write_atomically(path, _serialised(info, weights))


def _serialised(info: ModelInfo, weights: StateDict) -> bytes:
    tensors = {name: value.contiguous() for name, value in weights.items()}
    return save(tensors, {"format": "pt", METADATA_KEY: to_json(info)})


def require_free(output: Path) -> None:
    """Raises InferenceError if a folder, or a file that ends in .safetensors, holds something other than a model."""
    if output.suffix == SUFFIX:
        if output.is_dir():
            raise InferenceError(f"--output {output} is a folder; pass a file name, or a folder name without {SUFFIX}")
        if output.exists() and not _is_model_file(output):
            raise InferenceError(
                f"--output {output} exists and is not a model of `pfcluster export`, so it is not replaced; use another"
                " name, or remove the file"
            )
        return
    if output.is_file():
        raise InferenceError(f"--output {output} is a file; pass a folder, or a name that ends in {SUFFIX}")
    if output.is_dir() and any(output.iterdir()):
        try:
            read_info(output)
        except InferenceError as error:
            raise InferenceError(f"--output {output} holds other files; use a new folder") from error


def _is_model_file(path: Path) -> bool:
    """Whether it is a safetensors file with a model's config in its metadata."""
    try:
        with safe_open(path, framework="pt") as opened:
            return METADATA_KEY in (opened.metadata() or {})
    except (SafetensorError, ValueError):
        return False


def read_model(place: Path) -> tuple[ModelInfo, dict[str, Tensor]]:
    """Config and weights of a model folder or file. Raises InferenceError if one is missing, damaged or too old."""
    file = place / WEIGHTS_FILE if place.is_dir() else place
    info = read_info(place) if place.is_dir() else None
    if info is not None and info.runtime is not None:
        use = "; `pfcluster predict --engine onnx` reads it" if info.runtime.format == "onnx" else ""
        raise InferenceError(
            f"{place} holds the model for another runtime ({info.runtime.format}){use}; for this use export the run"
            " without --format"
        )
    if not file.is_file():
        raise InferenceError(f"{place} is not a model: it has no {file.name}; export one with `pfcluster export`")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata: dict[str, Any] = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, ValueError) as error:
        raise InferenceError(f"{file} is damaged, or no safetensors file: {error}; copy or export it again") from error
    if info is None:
        if METADATA_KEY not in metadata:
            raise InferenceError(f"{file} holds weights without a model's config; export a run with `pfcluster export`")
        info = parse_info(metadata[METADATA_KEY], f"the config in {file}")
    return info, weights
