"""A folder that runs as a Hugging Face Space: the page of `pfcluster app` with one model and this package's source."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

from pfcluster.inference.builtin_models import builtin_folder
from pfcluster.inference.errors import InferenceError
from pfcluster.inference.export import export_run
from pfcluster.inference.model_card import EMOTION_LAW, POKER_FACE_LAW, yaml_text
from pfcluster.inference.model_info import CARD_FILE, ModelInfo
from pfcluster.system.atomic_files import write_atomically

MODEL_DIR = "model"
APP_FILE = "app.py"
PACKAGE = Path(__file__).parents[1]
APP = f'''"""The page of `pfcluster app` as a Hugging Face Space, whose environment gives Gradio host and port."""

from pathlib import Path

from pfcluster.inference.app import Address, serve
from pfcluster.inference.load import load

if __name__ == "__main__":
    serve(load(Path(__file__).parent / "{MODEL_DIR}"), Address(host=None, port=None))
'''
ATTRIBUTES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def export_space(
    run: Path, output: Path, *, precision: str = "float32", shards: str | None = None, license: str | None = None
) -> ModelInfo:
    """Write a run, or a model, as the folder of a Space; replaces an earlier one there. Options as in `export_run`.

    Raises InferenceError, CheckpointError, OSError.
    """
    _require_free(output)
    info = export_run(run, output / MODEL_DIR, precision=precision, shards=shards, license=license)
    package = output / PACKAGE.name
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(PACKAGE, package, ignore=_left_out)
    write_atomically(output / APP_FILE, APP)
    write_atomically(output / "requirements.txt", "\n".join(requirements()) + "\n")
    write_atomically(output / ".gitattributes", ATTRIBUTES)
    write_atomically(output / CARD_FILE, space_card(info))
    return info


def _require_free(output: Path) -> None:
    """Raises InferenceError if a folder holds something other than a Space of this module."""
    if output.is_file():
        raise InferenceError(f"--output {output} is a file; pass a folder")
    if output.is_dir() and any(output.iterdir()):
        app = output / APP_FILE
        if not app.is_file() or app.read_text(errors="replace") != APP:
            raise InferenceError(f"--output {output} holds other files; use a new folder")


def _left_out(folder: str, names: list[str]) -> list[str]:
    """What a Space does not need of the package: compiled files, and models that come with it."""
    return [name for name in names if name == "__pycache__" or Path(folder, name) == builtin_folder()]


def requirements() -> list[str]:
    """What the page imports: the dependencies of this package and of its extra `app`."""
    lines = []
    for text in metadata.requires("pfcluster") or []:
        requirement, _, marker = (part.strip() for part in text.partition(";"))
        extra = re.search(r"extra == [\"'](\w+)[\"']", marker)
        if extra is None:
            lines.append(f"{requirement}; {marker}" if marker else requirement)
        elif extra[1] == "app":
            lines.append(requirement)
    return lines


def space_card(info: ModelInfo) -> str:
    """README.md with the front matter that configures a Space."""
    kind = "Facial expression and poker face" if info.generates else "Facial expression"
    lines = ["---", f"title: {kind}", "emoji: 😐", "colorFrom: indigo", "colorTo: gray", "sdk: gradio"]
    with contextlib.suppress(metadata.PackageNotFoundError):  # without the line a Space takes the newest one
        lines.append(f"sdk_version: {metadata.version('gradio')}")
    lines.append(f'python_version: "{sys.version_info.major}.{sys.version_info.minor}"')
    lines += [f"app_file: {APP_FILE}", "pinned: false", f"license: {yaml_text(info.license)}"]
    lines += [f"short_description: {kind}", "---"]
    law = f"{EMOTION_LAW} {POKER_FACE_LAW}" if info.generates else EMOTION_LAW
    return "\n".join(
        [
            *lines,
            "",
            f"# {kind}",
            "",
            f"The page of `pfcluster app` for the model {info.name}; its card is [{MODEL_DIR}/{CARD_FILE}]"
            f"({MODEL_DIR}/{CARD_FILE}). The folder `{PACKAGE.name}` is the source of pfcluster {info.version}.",
            "",
            law,
            "",
        ]
    )
