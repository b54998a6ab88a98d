"""`pfcluster app` and Spaces as processes, and a headless Chromium that looks at their pages."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = [
    name
    for name, there in (
        ("gradio (pip install -e '.[app]')", importlib.util.find_spec("gradio")),
        ("playwright", importlib.util.find_spec("playwright")),
        ("a chromium in PATH", CHROMIUM),
    )
    if not there
]
needs_browser = pytest.mark.skipif(bool(MISSING), reason=f"missing: {', '.join(MISSING)}")
IN_CONTAINERS = ("--no-sandbox", "--disable-dev-shm-usage")
"""Chromium's sandbox refuses root and needs user namespaces; the page is our own."""
FAKE_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
START_SECONDS = 180
ANSWER_SECONDS = 120
"""Both are limits for a busy machine."""


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


@contextlib.contextmanager
def served(words: Sequence[str], log: Path, port: int, **options: Any) -> Iterator[str]:
    """Run a command that serves a page at `port` of 127.0.0.1; gives its URL when it answers."""
    with open(log, "wb") as output:
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, **options)
        try:
            _wait(process, port, log)
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.terminate()
            assert process.wait(60) == 0, log.read_text()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@contextlib.contextmanager
def browser_page(url: str) -> Iterator[Any]:
    """The page in a Chromium that reaches nothing but its server; fails at the end if it asked for something else."""
    from playwright.sync_api import sync_playwright

    outside: list[str] = []

    def route(handler: Any) -> None:
        if handler.request.url.startswith(url):
            handler.continue_()
        else:
            outside.append(handler.request.url)
            handler.abort()

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[*IN_CONTAINERS, *FAKE_CAMERA])
        page = chromium.new_page()
        page.set_default_timeout(1000 * ANSWER_SECONDS)
        page.route("**/*", route)
        page.goto(url)
        yield page
        chromium.close()
    assert not outside


def upload(page: Any, name: str, path: Path) -> None:
    """Give a file to the image input of an element id."""
    page.set_input_files(f"#{name} input[type=file]", str(path))
