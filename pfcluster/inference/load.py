"""`pfcluster.load`: a model from a folder, a file, a run, the Hugging Face hub, or this package."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

from pfcluster.inference.builtin_models import BUILTIN, FORMS, builtin_model
from pfcluster.inference.errors import InferenceError
from pfcluster.inference.model import Model
from pfcluster.inference.model_folder import read_model
from pfcluster.inference.torch_predictor import TorchPredictor, build_net, load_weights
from pfcluster.runs.folder import CHECKPOINT_FILE, CHECKPOINTS_DIR

HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w./-]+))?")


def load(source: str | Path, *, device: str = "auto") -> Model:
    """Load a model: a folder or a .safetensors file of `pfcluster export`, a run folder, `user/name` or
    `user/name@revision` on the Hugging Face hub, or `builtin:NAME`.

    `device`: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N". Existing paths take precedence over the hub,
    and `user/name` is not looked up there if the folder `user` exists: `user/name@main` is. Raises InferenceError,
    CheckpointError.
    """
    text, path = str(source), Path(source)
    if text.startswith(BUILTIN):
        return _from_files(builtin_model(text.removeprefix(BUILTIN)), device)
    if path.exists():
        if (path / CHECKPOINTS_DIR).is_dir() or (path / CHECKPOINT_FILE).is_file():
            return _from_run(path, device)
        return _from_files(path, device)
    match = HUB_ID.fullmatch(text)
    if match is None or isinstance(source, Path):
        raise InferenceError(f"no model {text}: give {FORMS}")
    if match["revision"] is None and path.parent.is_dir():
        raise InferenceError(
            f"no model {text}: the folder {path.parent} has {_content(path.parent)}; a model of that name on the"
            f" Hugging Face hub is {text}@main"
        )
    info, net = hub_module().pull(match["repo"], match["revision"])
    return Model(TorchPredictor(info, net, device))


def _content(folder: Path, shown: int = 8) -> str:
    """What lies in a folder, for an error message."""
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "") or "nothing"


def _from_files(place: Path, device: str) -> Model:
    info, weights = read_model(place)
    net = build_net(info)
    load_weights(net, weights, info, str(place))
    return Model(TorchPredictor(info, net, device))


def _from_run(run: Path, device: str) -> Model:
    from pfcluster.inference.export import read_run

    model = read_run(run)
    net = build_net(model.info)
    load_weights(net, model.weights, model.info, str(run))
    return Model(TorchPredictor(model.info, net, device))


def hub_module() -> ModuleType:
    """The module that talks to the Hugging Face hub. Raises InferenceError without huggingface_hub."""
    try:
        return importlib.import_module("pfcluster.inference.hub")
    except ImportError as error:
        raise InferenceError(
            f"the Hugging Face hub needs huggingface_hub ({error}): pip install 'pfcluster[hub]'"
        ) from error
