"""Read files of weights from elsewhere without running anything in them: PyTorch, safetensors, Hugging Face folders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

StateDict = dict[str, Tensor]
SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
HUB_FILES = (SAFETENSORS, f"{SAFETENSORS}.index.json", PICKLE, f"{PICKLE}.index.json")
"""Weights in a folder of the Hugging Face hub, the preferred first; the index lists the parts of large ones."""
HUB_CONFIG, HUB_PREPROCESSOR = "config.json", "preprocessor_config.json"
WRAPPERS = frozenset(
    ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_modules", "_parameters", "_buffers")
)
"""Parts of a name that say how a net was wrapped or pickled: DistributedDataParallel, torch.compile, FSDP."""
OTHER_FORMATS = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: run `git lfs pull`, or download it again",
    b"<": "a web page or XML, not weights: the download went wrong",
    b"\x89HDF": "HDF5, as Keras writes it: convert it to safetensors",
    b"\x93NUMPY": "a NumPy array: convert it to safetensors",
    b"GGUF": "GGUF, a format for inference: use the original weights",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
}
"""First bytes of files that are mistaken for weights, and the message for each."""


class WeightsError(ValueError):
    """Weights that cannot be loaded or do not fit. The message says which, why, and the remedy."""


@dataclass(frozen=True)
class WeightsFile:
    """The content of a file of weights, or of a folder from the Hugging Face hub."""

    tensors: StateDict
    """By name; the names of dicts within dicts are joined by dots, without WRAPPERS."""
    nested: bool
    """Whether the tensors were in a dict within the file's dict, as training scripts save them."""
    config: dict[str, Any] = field(default_factory=dict)
    """`config.json` of the Hugging Face hub beside the file."""
    preprocessor: dict[str, Any] = field(default_factory=dict)
    """`preprocessor_config.json` beside the file."""


class _Inert(dict[Any, Any]):
    """Stands for an object of any class in a pickle: keeps items and attributes, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, Mapping):
                self.update(part)


def is_hub_folder(folder: Path) -> bool:
    """Whether a folder holds weights as the Hugging Face hub stores them."""
    return any((folder / name).is_file() for name in HUB_FILES)


def read_weights(path: Path, option: str = "model.init") -> WeightsFile:
    """All tensors of a file or of a folder of the Hugging Face hub. Raises WeightsError, which names the `option`."""
    if path.is_dir():
        name = next(name for name in HUB_FILES if (path / name).is_file())
        path = path / name
    try:
        values = _merged(path, option) if path.name.endswith(".index.json") else _read_file(path)
    except WeightsError:
        raise
    except _UnreadableError as error:
        raise WeightsError(f"{option}: {path} is {error}") from error
    except Exception as error:  # torch, zipfile, pickle and safetensors raise errors of their own
        raise WeightsError(f"{option}: {path} holds no weights that can be read: {_reason(error)}") from error
    tensors, nested = _named_tensors(values)
    if not tensors:
        raise WeightsError(f"{option}: {path} is not a state dict: it holds no named tensors")
    is_hub = path.name in HUB_FILES
    return WeightsFile(
        tensors,
        nested,
        _read_json(path.parent / HUB_CONFIG, option) if is_hub else {},
        _read_json(path.parent / HUB_PREPROCESSOR, option) if is_hub else {},
    )


class _UnreadableError(Exception):
    """A file of another format; the message continues "PATH is"."""


def _read_file(path: Path) -> Any:
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        raise _UnreadableError("empty: download or copy it again")
    for start, meaning in OTHER_FORMATS.items():
        if head.lstrip().startswith(start):
            raise _UnreadableError(meaning)
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return load_file(path)
    return _unpickle(path)


def _unpickle(path: Path) -> Any:
    """The content of torch.save's file. torch's restricted unpickler runs nothing in it; objects of classes that it
    does not allow (options, NumPy numbers, whole nets) become inert dicts.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # the format before torch 1.6
        names = []
    placeholders: list[Any] = [(type(name.rpartition(".")[2], (_Inert,), {}), name) for name in names]
    with torch.serialization.safe_globals(placeholders):
        return torch.load(path, map_location="cpu", weights_only=True)


def _merged(index: Path, option: str) -> StateDict:
    """The tensors of all parts that an index of the hub lists."""
    parts = _read_json(index, option).get("weight_map")
    if not isinstance(parts, dict) or not all(
        isinstance(part, str) and Path(part).name == part for part in parts.values()
    ):
        raise WeightsError(f"{option}: {index} does not say in which file each weight is (weight_map)")
    missing = sorted({part for part in parts.values() if not (index.parent / part).is_file()})
    if missing:
        raise WeightsError(f"{option}: {index} names {missing[0]}, which is missing; download the whole folder")
    values: StateDict = {}
    for part in sorted(set(parts.values())):
        values |= _read_file(index.parent / part)
    return values


def _read_json(path: Path, option: str) -> dict[str, Any]:
    """An object in a JSON file; empty if there is no file. Raises WeightsError, OSError."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{option}: {path} cannot be read: {error}; download it again") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{option}: {path} must hold an object, got {type(values).__name__}; download it again")
    return values


def _reason(error: Exception) -> str:
    """The first line of an error, without torch's advice to load the file in an unsafe way."""
    line = (str(error).splitlines() or [""])[0].strip()
    if not line or "weights_only" in line or "Weights only" in line:
        line = "it is damaged, or not written by torch.save"
    return f"{line[:200]} ({type(error).__name__}); use a file of torch.save or safetensors, or download it again"


def _named_tensors(values: Any) -> tuple[StateDict, bool]:
    """All tensors in dicts within dicts, by their joined names; and whether they are within another dict."""
    tensors: StateDict = {}
    nested = False
    for parts, depth, value in _walk(values, ()):
        tensors.setdefault(".".join(part for part in parts if part not in WRAPPERS), value)
        nested |= depth > 1
    return {name: value for name, value in tensors.items() if name}, nested


def _walk(values: Any, parts: tuple[str, ...], depth: int = 0) -> Iterator[tuple[tuple[str, ...], int, Tensor]]:
    """Tensors below `values` with the keys that lead to them, split at dots, and the number of these keys."""
    if isinstance(values, Tensor):
        yield parts, depth, values
    elif isinstance(values, Mapping) and depth < 64:
        for key, value in values.items():
            if isinstance(key, str):
                yield from _walk(value, (*parts, *key.split(".")), depth + 1)
