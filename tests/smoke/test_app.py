"""`pfcluster app` in a real browser, and `pfcluster export --format space` as a process."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import socket
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pfcluster
from pfcluster.cli.main import main
from pfcluster.inference.app import example_faces
from pfcluster.inference.face_views import FaceViewer, NoFaceError
from pfcluster.inference.model_card import EMOTION_LAW
from pfcluster.inference.pictures import DIGITAL_SOURCE
from tests import inference_models as models
from tests.browser import browser_page, free_port, needs_browser, served, upload

MODEL = "builtin:synthetic"
IMAGES = (".png", ".jpg", ".jpeg", ".webp")
needs_gradio = pytest.mark.skipif(not importlib.util.find_spec("gradio"), reason="missing: gradio")
WITHOUT_INSTALLATION = """
import importlib.metadata, runpy, sys
find = importlib.metadata.distribution
def distribution(name):
    if name == "pfcluster":
        raise importlib.metadata.PackageNotFoundError(name)
    return find(name)
importlib.metadata.distribution = distribution
sys.path.insert(0, ".")
import pfcluster
print(pfcluster.__file__)
runpy.run_path("app.py", run_name="__main__")
"""
"""Runs a Space's app.py as on a machine where pfcluster is not installed."""


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Class -> rendered face of it."""
    return {path.stem: path for path in example_faces(tmp_path_factory.mktemp("faces"))}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A served page, whose photos are gone at the end."""
    folder, port = tmp_path_factory.mktemp("app"), free_port()
    (folder / "temporary").mkdir()
    words = [sys.executable, "-m", "pfcluster", "app", "--model", MODEL, "--device", "cpu", "--port", str(port)]
    environment = {**os.environ, "TMPDIR": str(folder / "temporary")}
    with served(words, folder / "log.txt", port, env=environment) as served_url:
        yield served_url
    assert not [path for path in folder.rglob("*") if path.suffix in IMAGES]


@needs_browser
@pytest.mark.slow
def test_a_browser_shows_expression_and_poker_face(url: str, faces: dict[str, Path]) -> None:
    expected = FaceViewer(pfcluster.load(MODEL, device="cpu")).views(str(faces["happiness"]), "a face")
    with browser_page(url) as page:
        upload(page, "photo", faces["happiness"])
        page.wait_for_function("document.querySelector('#expression')?.innerText.includes('%')")
        text = page.inner_text("#expression")
        assert text.split()[1] == expected.label == "happiness"
        shown = dict(re.findall(r"(\w+)\s+(\d+)%", text))
        assert shown == {name: f"{100 * value:.0f}" for name, value in expected.probabilities.items()}
        assert re.search(r"Latency \d+ ms on cpu: detection \d+ ms, classification", page.inner_text("#latency"))
        page.wait_for_function("document.querySelectorAll('#poker-face img').length == 2")
        sources = [image.get_attribute("src") for image in page.query_selector_all("#poker-face img")]
        pictures = [Image.open(io.BytesIO(page.request.get(source).body())) for source in sources]
        original, poker_face = sorted(pictures, key=lambda picture: "Description" in picture.info)
        assert DIGITAL_SOURCE in poker_face.info["XML:com.adobe.xmp"]
        assert expected.poker_face is not None
        for picture, pixels in ((original, expected.crop), (poker_face, expected.poker_face)):
            enlarged = Image.fromarray(pixels).resize(picture.size, Image.Resampling.BICUBIC)
            top = (slice(0, picture.size[1] // 2), slice(None))  # the mark is at the bottom
            np.testing.assert_array_equal(np.asarray(picture.convert("RGB"))[top], np.asarray(enlarged)[top])
        for name in ("emotion-view", "attention"):
            page.wait_for_selector(f"#{name} img")
        assert EMOTION_LAW in page.inner_text("#law")

        page.click("#transfer button")
        upload(page, "other", faces["surprise"])
        page.wait_for_selector("#transferred img")

        page.click("#photo button[aria-label='Remove Image']")
        page.wait_for_function("!document.querySelector('#poker-face img')")
        assert "%" not in page.inner_text("#expression")


@needs_browser
@pytest.mark.slow
def test_a_browser_gets_a_sentence_for_pictures_without_a_face(url: str, tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), "green").save(tmp_path / "<b>lawn.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with browser_page(url) as page:
        upload(page, "photo", tmp_path / "<b>lawn.png")
        page.wait_for_function("document.querySelector('#message p')")
        assert page.inner_text("#message").startswith("No face was found in <b>lawn.png: use a photo in which")
        assert page.query_selector("#message b") is None  # a name is text, not HTML
        assert "%" not in page.inner_text("#expression")
        assert page.query_selector("#poker-face img") is None

        page.click("#photo button[aria-label='Remove Image']")
        page.wait_for_function("!document.querySelector('#message p')")
        upload(page, "photo", tmp_path / "broken.png")
        page.wait_for_function("document.querySelector('#message')?.innerText.includes('The file broken.png cannot')")

        page.click("#photo button[aria-label='Remove Image']")
        page.wait_for_function("!document.querySelector('#message p')")
        page.click("#photo button[aria-label='Capture from camera']")
        page.click("#photo button:has-text('Webcam')")
        page.wait_for_function("document.querySelector('#photo video')?.videoWidth > 0")
        page.wait_for_function("document.querySelector('#photo video').currentTime > 0")
        page.click("#photo button[aria-label='capture photo']")  # of the browser's fake camera
        page.wait_for_function("document.querySelector('#message')?.innerText.includes('No face')")


@needs_browser
@pytest.mark.slow
def test_the_server_reads_uploads_only_and_listens_on_this_machine_only(url: str, faces: dict[str, Path]) -> None:
    port = int(url.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port), 5)
    photo = {"path": str(faces["happiness"]), "meta": {"_type": "gradio.FileData"}}
    names = [each["id"] for each in get_json(f"{url}config")["dependencies"] if len(each["inputs"]) == 1]
    for number, name in enumerate(names):
        call = {"data": [photo], "fn_index": name, "session_hash": f"session{number}"}
        get_json(f"{url}gradio_api/queue/join", call)
        with urllib.request.urlopen(f"{url}gradio_api/queue/data?session_hash=session{number}", timeout=60) as stream:
            events = stream.read().decode()
        assert '"success":false' in events


def get_json(url: str, data: object = None) -> Any:
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@needs_browser
@pytest.mark.slow
def test_a_space_runs_as_it_is(tmp_path: Path) -> None:
    """Of a classifier, whose page has no poker face."""
    models.write(tmp_path / "vit", "vit")
    space = tmp_path / "space"
    words = ["export", str(tmp_path / "vit"), "--format", "space", "--output", str(space)]
    assert main(words) == 0
    assert main(words) == 0  # replaces itself
    front = (space / "README.md").read_text().split("---")[1]
    assert "sdk: gradio" in front
    assert "app_file: app.py" in front
    lines = (space / "requirements.txt").read_text()
    assert re.search(r"^gradio\b", lines, re.MULTILINE)
    assert re.search(r"^torch>=", lines, re.MULTILINE)
    assert "deepspeed" not in lines
    assert not list(space.rglob("__pycache__"))
    [picture] = models.face_pictures(tmp_path, 1)
    port = free_port()
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1", "SYSTEM": "spaces"}
    words = [sys.executable, "-c", WITHOUT_INSTALLATION]
    with (
        served(words, tmp_path / "log.txt", port, cwd=space, env=environment) as url,
        browser_page(url) as page,
    ):
        upload(page, "photo", picture)
        page.wait_for_function("document.querySelector('#expression')?.innerText.includes('%')")
        page.wait_for_selector("#attention img")
        for name in ("poker-face", "emotion-view", "transfer"):
            assert page.query_selector(f"#{name}") is None
    assert str(space / "pfcluster") in (tmp_path / "log.txt").read_text()


@needs_gradio
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--model", "builtin:none"], "no model builtin:none"),
        (["--port", "0"], "--port must be in 1..65535"),
        (["--host", "192.0.2.1"], "--host must be an address of this machine"),
        ([], "is used by another program; choose another one with --port"),
    ],
)
def test_what_cannot_be_served_is_one_sentence(
    words: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models.write(tmp_path / "model", "cnn")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        given = ["--model", str(tmp_path / "model"), "--port", str(taken.getsockname()[1])]
        assert main(["app", *given, *words]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_a_missing_extra_of_the_app_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app", "--model", "anything"]) == 2
    error = capsys.readouterr().err
    assert "pip install -e '.[app]'" in error
    assert error.count("\n") == 1


def test_other_folders_are_not_overwritten_by_a_space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models.write(tmp_path / "vit", "vit")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "app.py").write_text("print()")
    words = ["export", str(tmp_path / "vit"), "--format", "space", "--output"]
    assert main([*words, str(tmp_path / "other")]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert (tmp_path / "other" / "app.py").read_text() == "print()"


@pytest.mark.parametrize("kind", ["cnn", "vit", "pf_vit"])
def test_views_are_those_that_a_model_has(kind: str, faces: dict[str, Path], tmp_path: Path) -> None:
    models.write(tmp_path / "model", kind)  # type: ignore[arg-type]
    model = pfcluster.load(tmp_path / "model", device="cpu")
    path = str(faces["anger"])
    views = FaceViewer(model, detect=False).views(path, "a face")
    [face] = model.predict(path, detect=False)
    assert views.probabilities == face.probabilities
    assert views.label == face.label
    np.testing.assert_array_equal(views.crop, face.crop)
    assert (views.attention is None) == (kind == "cnn")
    assert (views.poker_face is None) == (views.emotion_view is None) == (kind != "pf_vit")
    if views.poker_face is not None and views.emotion_view is not None:
        np.testing.assert_array_equal(views.poker_face, model.poker_face(path, detect=False)[0])
        assert (views.emotion_view != views.poker_face).any()


def test_a_transfer_takes_the_face_of_one_and_the_expression_of_the_other(
    faces: dict[str, Path], tmp_path: Path
) -> None:
    """A face with its own expression differs from both exchanges, and they differ from each other."""
    models.write(tmp_path / "model", "pf_vit")
    viewer = FaceViewer(pfcluster.load(tmp_path / "model", device="cpu"), detect=False)
    one, two = ((str(faces[name]), name) for name in ("anger", "surprise"))
    own, exchanged, reverse = viewer.transfer(one, one), viewer.transfer(one, two), viewer.transfer(two, one)
    predictor = viewer.model.predictor
    crops = [viewer.views(*photo).crop[None] for photo in (one, two)]
    np.testing.assert_array_equal(exchanged, predictor.transfer(crops[1], crops[0])[0])
    assert (own != exchanged).any()
    assert (exchanged != reverse).any()


def test_photos_without_a_face_say_so(tmp_path: Path) -> None:
    models.write(tmp_path / "model", "vit")
    viewer = FaceViewer(pfcluster.load(tmp_path / "model", device="cpu"))
    Image.new("RGB", (90, 90), "green").save(tmp_path / "lawn.png")
    with pytest.raises(NoFaceError, match=r"no face was found in lawn\.png"):
        viewer.views(str(tmp_path / "lawn.png"), "lawn.png")
