"""The models that come with the package: folders of `python -m benchmarks.release_models` in weights/. No torch."""

from __future__ import annotations

from pathlib import Path

from pfcluster.inference.errors import InferenceError
from pfcluster.inference.model_info import WEIGHTS_FILE

BUILTIN = "builtin:"
FORMS = "a folder or file of `pfcluster export`, a run, user/name on the Hugging Face hub, or builtin:NAME"
DEFAULT_MODEL = "fer2013"
"""The one that is used where none is named: it was trained on photos."""


def builtin_folder() -> Path:
    """Folder of the models that come with the package."""
    return Path(__file__).parent / "weights"


def builtin_names() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in builtin_folder().glob(f"*/{WEIGHTS_FILE}"))


def builtin_model(name: str) -> Path:
    """The folder of a model that comes with the package. Raises InferenceError that lists the names."""
    if name not in builtin_names():
        raise InferenceError(f"no model {BUILTIN}{name}: {_installed()}")
    return builtin_folder() / name


def default_model() -> str:
    """The model that is used where none is named. Raises InferenceError if it did not come with the package."""
    if DEFAULT_MODEL not in builtin_names():
        raise InferenceError(f"no model is named, and {_installed()}; name one with --model: {FORMS}")
    return f"{BUILTIN}{DEFAULT_MODEL}"


def _installed() -> str:
    names = builtin_names()
    return f"this installation has {', '.join(BUILTIN + name for name in names) or 'no model of its own'}"
