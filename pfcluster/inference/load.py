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
from pfcluster.system.extras import install_command

SHOWN = 8
"""Names of a folder's content in an error message."""
HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w./-]+))?")


def load(source: str | Path, *, device: str = "auto") -> Model:
    """Load a model: a folder or a .safetensors file of `pfcluster export`, a run folder, `user/name` or
    `user/name@revision` on the Hugging Face hub, or `builtin:NAME`.

    `device`: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N". Existing paths take precedence over the hub. If
    a folder `user` exists, `user/name` is taken as a path; use `user/name@main` for the hub. Raises InferenceError,
    CheckpointError.
    """
    text, path = str(source), Path(source)
    if text.startswith(BUILTIN):
        return _from_files(builtin_model(text.removeprefix(BUILTIN)), device)
    if path.exists():
        if is_run(path):
            return _from_run(path, device)
        return _from_files(path, device)
    match = None if isinstance(source, Path) else HUB_ID.fullmatch(text)
    if match is None or match["revision"] is None:
        _require_no_folder(text, path, on_hub=match is not None)
    if match is None:
        raise InferenceError(f"no model {text}: pass {FORMS}")
    info, net = hub_module().pull(match["repo"], match["revision"])
    return Model(TorchPredictor(info, net, device))


def is_run(path: Path) -> bool:
    """Whether `load` reads a path as a run or a checkpoint folder, even if it also holds other files."""
    return (path / CHECKPOINTS_DIR).is_dir() or (path / CHECKPOINT_FILE).is_file()


def _require_no_folder(text: str, path: Path, *, on_hub: bool) -> None:
    """Raise InferenceError for a missing path below a folder that exists; the message lists that folder's content."""
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    if folder in (Path(), Path(path.anchor)):
        return
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    shown = ", ".join(names[:SHOWN]) or "nothing"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    hub = f"; a model of that name on the Hugging Face hub is {text}@main" if on_hub else ""
    raise InferenceError(f"no model {text}: the folder {folder} has {shown}{more}{hub}")


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
            f"the Hugging Face hub needs huggingface_hub ({error}): {install_command('hub')}"
        ) from error
