"""A web page that shows a model's outputs for a face (`pfcluster app`), with Gradio.

The page works offline: nothing is loaded from other servers, and Gradio's analytics are off. Photos are kept in a
temporary folder, an hour at most, and never leave the machine.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image

from pfcluster.data import transforms
from pfcluster.data.synthetic.dataset import SyntheticFaces
from pfcluster.evaluate.attention import overlay
from pfcluster.evaluate.image_grid import pick_round_robin
from pfcluster.inference.errors import InferenceError
from pfcluster.inference.face_views import FaceViewer, FaceViews, NoFaceError
from pfcluster.inference.model import Model
from pfcluster.inference.model_card import EMOTION_LAW, POKER_FACE_LAW
from pfcluster.inference.model_info import ModelInfo
from pfcluster.inference.pictures import synthetic_picture
from pfcluster.system.extras import install_command

SIDE = 320
"""Side of the pictures of the page, in pixels."""
MIN_COLUMN = 260
"""Three pictures fit side by side on a laptop's screen."""
EXAMPLE_SIDE = 224
EXAMPLE_SEED = 0
KEPT_SECONDS = 3600
"""Age at which photos and pictures are deleted."""
MAX_FILE_SIZE = "50mb"
SYSTEM_FONTS = ("system-ui", "sans-serif")
ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",  # or photos stay in the browser's storage
}
CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
#law { font-size: 0.85em; opacity: 0.8; border-top: 1px solid var(--border-color-primary); padding-top: 0.8em; }
#latency { font-size: 0.9em; opacity: 0.85; min-height: 1.6em; }
#message:has(p), #transfer-message:has(p) {
  border-left: 4px solid #d97706; padding: 0.5em 0.9em; background: #d9770618;
}
"""


@dataclass(frozen=True)
class Address:
    """Where the page is served. None leaves it to Gradio, whose environment variables a Space sets."""

    host: str | None = "127.0.0.1"
    port: int | None = 7860
    share: bool = False
    """Ask Gradio's servers for a public link."""


def serve(model: Model, address: Address, *, detect: bool = True, started: Callable[[str], None] = print) -> None:
    """Serve the page until SIGINT or SIGTERM. `started` is called with its URL.

    Raises InferenceError without gradio, or if the address cannot be used.
    """
    gradio = gradio_module()
    _require_free(address)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with temporary_folder() as folder:
        viewer, examples = FaceViewer(model, detect=detect), example_faces(folder)
        with contextlib.suppress(NoFaceError):  # the first call takes longer, and would be shown as the latency
            viewer.views(str(examples[0]), "an example")
        page = build_page(gradio, viewer, examples)
        try:
            started(_launch(gradio, page, address))
            stop.wait()
        finally:
            page.close(verbose=False)


def gradio_module() -> ModuleType:
    """Gradio, without its analytics. Raises InferenceError if it is not installed."""
    os.environ |= ENVIRONMENT
    try:
        import gradio
    except ImportError as error:
        raise InferenceError(f"the page needs gradio ({error}): {install_command('app')}") from error
    return gradio


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for photos and pictures, which is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="pfcluster-app-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        yield Path(folder)


def example_faces(folder: Path) -> list[Path]:
    """Write a rendered face of each class as PNG; -> their files."""
    faces = SyntheticFaces(64, size=EXAMPLE_SIDE, nuisance=0.3, min_intensity=0.9, seed=EXAMPLE_SEED)
    labels = faces.true_labels()
    chosen = pick_round_robin(torch.as_tensor(labels), len(faces.classes), len(faces.classes))
    paths = []
    for index, pixels in zip(chosen.tolist(), faces.images(chosen), strict=True):
        paths.append(folder / f"{faces.classes[int(labels[index])]}.png")
        Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(paths[-1])
    return paths


def build_page(gradio: ModuleType, viewer: FaceViewer, examples: list[Path]) -> Any:
    """The page, a `gradio.Blocks`."""
    info = viewer.model.info
    outputs: dict[str, Any] = {}
    with gradio.Blocks(
        title="pfcluster", analytics_enabled=False, delete_cache=(KEPT_SECONDS // 6, KEPT_SECONDS)
    ) as page:
        gradio.Markdown(heading(info, detect=viewer.detect))
        with gradio.Row():
            with gradio.Column(scale=4):
                photo = _photo_input(gradio, "Photo", "photo")
                message = gradio.Markdown(elem_id="message")
                _add_examples(gradio, examples, photo, "Rendered faces")
            with gradio.Column(scale=5):
                outputs["label"] = gradio.Label(label="Expression", elem_id="expression", num_top_classes=None)
                outputs["latency"] = gradio.Markdown(elem_id="latency")
        with gradio.Row():
            if info.generates:
                outputs["poker_face"] = _slider(gradio, "Original and poker face", "poker-face")
                outputs["emotion_view"] = _picture(gradio, "Emotion view", "emotion-view")
            if info.network.encoder is not None:
                outputs["attention"] = _picture(gradio, "Grad-CAM++ of the label", "attention")
        show = _show(viewer, list(outputs))
        photo.change(show, photo, [message, *outputs.values()], preprocess=False, api_visibility="private")
        if info.generates:
            _add_transfer(gradio, viewer, examples, photo)
        gradio.Markdown(f"{EMOTION_LAW} {POKER_FACE_LAW if info.generates else ''}", elem_id="law")
    return page


def heading(info: ModelInfo, *, detect: bool) -> str:
    """What the model is, in Markdown."""
    figures, training = info.figures, info.training
    accuracy = "" if figures is None else f", accuracy {100 * figures.accuracy:.1f} % on its {figures.split} split"
    kind = "facial expression and poker face" if info.generates else "facial expression"
    lines = [
        f"## pfcluster: {kind}",
        f"**{info.name}**, {info.network.size} px, trained on {training.dataset}{accuracy}.",
    ]
    if training.dataset == "synthetic":
        lines.append("It was trained on rendered faces only: on real photos it is a demonstration at most.")
    if not detect:
        lines.append("Photos are taken as crops of one face (`--no-detect`).")
    return f"{lines[0]}\n\n{' '.join(lines[1:])} An expression is not an emotion."


def _photo_input(gradio: ModuleType, label: str, name: str) -> Any:
    """An image that stays as it was uploaded, so that it is prepared as in training."""
    return gradio.Image(
        label=label,
        elem_id=name,
        sources=["upload", "webcam", "clipboard"],
        type="filepath",
        image_mode=None,
        height=SIDE,
    )


def _slider(gradio: ModuleType, caption: str, name: str) -> Any:
    with gradio.Column(min_width=MIN_COLUMN):
        gradio.Markdown(f"#### {caption}")
        return gradio.ImageSlider(elem_id=name, format="png", max_height=SIDE, show_label=False)


def _picture(gradio: ModuleType, caption: str, name: str) -> Any:
    with gradio.Column(min_width=MIN_COLUMN):
        gradio.Markdown(f"#### {caption}")
        return gradio.Image(
            elem_id=name,
            format="png",
            interactive=False,
            show_label=False,
            buttons=["download", "fullscreen"],
        )


def _add_examples(gradio: ModuleType, examples: list[Path], photo: Any, label: str) -> None:
    gradio.Examples([[str(path)] for path in examples], photo, label=label, cache_examples=False)


def _add_transfer(gradio: ModuleType, viewer: FaceViewer, examples: list[Path], photo: Any) -> None:
    """The part of the page that gives the photo's face the expression of another."""
    title = "Expression transfer: the photo's face with the expression of another"
    with gradio.Accordion(title, open=False, elem_id="transfer"), gradio.Row():
        with gradio.Column(scale=4):
            other = _photo_input(gradio, "Expression of", "other")
            _add_examples(gradio, examples, other, "Rendered faces")
        with gradio.Column(scale=5):
            message = gradio.Markdown(elem_id="transfer-message")
            result = _picture(gradio, "The photo's face with this expression", "transferred")

    def transfer(face: dict[str, Any] | None, expression: dict[str, Any] | None) -> tuple[str, Image.Image | None]:
        if face is None or expression is None:
            return "" if expression is None else "Choose a photo above, too.", None
        try:
            return "", synthetic_picture(viewer.transfer(_file(face), _file(expression)), SIDE)
        except InferenceError as error:
            return _sentence(error), None

    gradio.on(
        [photo.change, other.change],
        transfer,
        [photo, other],
        [message, result],
        preprocess=False,
        api_visibility="private",
    )


def _show(viewer: FaceViewer, names: list[str]) -> Callable[[dict[str, Any] | None], list[Any]]:
    """The function that fills the page: an uploaded photo -> message, and the outputs of the given names."""

    def show(photo: dict[str, Any] | None) -> list[Any]:
        if photo is None:
            return ["", *[None] * len(names)]
        try:
            views = viewer.views(*_file(photo))
        except InferenceError as error:
            return [_sentence(error), *[None] * len(names)]
        values = page_values(views, str(viewer.model.predictor.device))
        return ["", *(values[name] for name in names)]

    return show


def page_values(views: FaceViews, device: str) -> dict[str, Any]:
    """What the page shows of a face."""
    original = Image.fromarray(views.crop).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    values: dict[str, Any] = {"label": views.probabilities, "latency": latency(views, device)}
    if views.poker_face is not None and views.emotion_view is not None:
        values["poker_face"] = (original, synthetic_picture(views.poker_face, SIDE))
        values["emotion_view"] = synthetic_picture(views.emotion_view, SIDE)
    if views.attention is not None:
        values["attention"] = _attention_picture(original, views.attention)
    return values


def latency(views: FaceViews, device: str) -> str:
    """Time of each step, and their sum."""
    steps = ", ".join(f"{step} {value:.0f} ms" for step, value in views.milliseconds.items())
    return f"Latency {sum(views.milliseconds.values()):.0f} ms on {device}: {steps}"


def _attention_picture(original: Image.Image, attention: np.ndarray) -> Image.Image:
    """A map z z over the original, at the original's size."""
    enlarged = np.asarray(Image.fromarray(attention).resize(original.size, Image.Resampling.BILINEAR))
    pixels = transforms.to_float(torch.from_numpy(np.array(original)).permute(2, 0, 1)[None])
    return Image.fromarray(overlay(pixels, torch.from_numpy(enlarged.copy())[None])[0].numpy())


def _file(photo: dict[str, Any]) -> tuple[str, str]:
    """Path and name of an uploaded photo. Gradio has checked that the path is that of an upload."""
    return photo["path"], photo.get("orig_name") or "image"


def _sentence(error: InferenceError) -> str:
    """An error's message for the page; characters that mean something in Markdown or HTML are shown as they are."""
    text = str(error)
    text = "".join(f"&#{ord(letter)};" if letter in "\\`*_{}[]<>()#!|&$~" else letter for letter in text)
    return f"{text[:1].upper()}{text[1:]}."


def _launch(gradio: ModuleType, page: Any, address: Address) -> str:
    """Start the server; -> its URL. Raises InferenceError."""
    theme = gradio.themes.Soft(font=SYSTEM_FONTS, font_mono=("ui-monospace", "monospace"))
    try:
        _, local, public = page.launch(
            server_name=address.host,
            server_port=address.port,
            share=address.share,
            prevent_thread_lock=True,
            quiet=True,
            ssr_mode=False,
            footer_links=[],
            max_file_size=MAX_FILE_SIZE,
            theme=theme,
            css=CSS,
        )
    except (OSError, RuntimeError, gradio.exceptions.ServerFailedToStartError) as error:
        raise InferenceError(f"the page cannot be served: {error}") from error
    if address.share and public is None:
        raise InferenceError(
            "--share: Gradio's servers gave no public link; check the network, or leave the option out"
        )
    return str(public or local)


def _require_free(address: Address) -> None:
    """Raises InferenceError if the host is not this machine's, or another program has the port."""
    if address.host is None or address.port is None:
        return
    if not 1 <= address.port <= 65535:
        raise InferenceError(f"--port must be in 1..65535, got {address.port}")
    try:
        family, kind, _, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(place)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InferenceError(
                f"port {address.port} of {address.host} is used by another program; choose another one with --port"
            ) from error
        raise InferenceError(
            f"the page cannot be served at {address.host}, port {address.port}: {error.strerror or error}; --host must"
            " be an address of this machine"
        ) from error
