"""The two files of a benchmark's results: figures as JSON, and the tables made from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.steps import processor

Values = Mapping[str, Any]


def write_results(folder: Path, name: str, values: Values, markdown: Callable[[Values], str]) -> Path:
    """Write `name`.json and `name`.md; -> the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(values, indent=1) + "\n")
    table = folder / f"{name}.md"
    table.write_text(markdown(values))
    return table


def training_device(result: Mapping[str, Any]) -> str:
    """What a run was trained on: the card that its peak is of, or this machine's processor."""
    source = (result.get("efficiency") or {}).get("peak_source") or ""
    return source.removeprefix("data sheet of ").partition(",")[0] if result["device"] == "cuda" else processor()
