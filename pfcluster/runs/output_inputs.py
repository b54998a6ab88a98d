"""Which files an output was made from, and whether they have changed since: by content, as clocks may run ahead."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from pfcluster.config.json_files import try_read_object
from pfcluster.system.atomic_files import sha256, write_atomically

SUFFIX = ".inputs.json"


def input_states(paths: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of each file that exists. Take them before the output is made, so that later changes are noticed."""
    states = {}
    for path in paths:
        try:
            states[path] = sha256(path)
        except FileNotFoundError:
            continue
    return states


def record_inputs(output: Path, states: dict[Path, str]) -> None:
    """Write beside an output from which inputs it was made. Paths are relative to it, so that both can be moved."""
    values = {_key(output, path): state for path, state in states.items()}
    write_atomically(_record_file(output), json.dumps(values, indent=1) + "\n")


def is_made_from(output: Path, inputs: Iterable[Path]) -> bool:
    """Whether an output exists and was made from these inputs as they are now; false if that was not recorded."""
    recorded = try_read_object(_record_file(output))
    if recorded is None or not output.exists():
        return False
    try:
        return all(recorded.get(_key(output, path)) == sha256(path) for path in inputs)
    except OSError:
        return False


def _record_file(output: Path) -> Path:
    return output.with_name(f".{output.name}{SUFFIX}")


def _key(output: Path, path: Path) -> str:
    return os.path.relpath(path.resolve(), output.parent.resolve())
