"""Messages about missing packages name an extra that there is, in the one form that fits a checkout."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from pfcluster.inference.errors import InferenceError
from pfcluster.inference.faces import Faces
from pfcluster.system.extras import install_command
from pfcluster.tracking.clients import CLIENTS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_messages_name_extras_of_the_project() -> None:
    sources = {path: path.read_text() for path in (ROOT / "pfcluster").rglob("*.py")}
    named = {name for text in sources.values() for name in re.findall(r"install_command\([\"'](\w+)[\"']\)", text)}
    trackers = set(CLIENTS) - {"tensorboard"}  # which is always installed
    assert named | trackers == set(EXTRAS) - {"docs", "test"}
    assert [path.name for path, text in sources.items() if "pip install" in text] == ["extras.py"]


def test_the_page_of_optional_packages_has_every_extra() -> None:
    page = (ROOT / "docs/start.md").read_text()
    table = page[page.index("## Optional packages") : page.index("Several at once")]
    cells = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)[1:]
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == set(EXTRAS)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert install_command("pandas") == "pip install -e '.[pandas]'"
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InferenceError, match=r"^to_frame needs pandas: pip install -e '\.\[pandas\]'$"):
        Faces().to_frame()
