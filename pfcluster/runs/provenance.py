"""Provenance of a run: command, package versions, commit and machine, in provenance.json."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pfcluster.config.json_files import JsonFileError, read_object, try_read_object
from pfcluster.runs.folder import PROVENANCE_FILE
from pfcluster.system.atomic_files import write_atomically
from pfcluster.system.credentials import hide_credentials

SNAPSHOT = "snapshot.json"
"""In a copy of the code (launch/code_snapshot.py): the commit that was copied."""
PACKAGES = ("pfcluster", "torch", "torchvision", "timm", "torchmetrics", "webdataset", "numpy")


def write(folder: Path, command: str | None) -> None:
    """Record how a run was started. Later starts only append their time to `started`."""
    path = folder / PROVENANCE_FILE
    values = read(folder) if path.exists() else _collect(command)
    values["started"].append(datetime.now(timezone.utc).isoformat(timespec="seconds"))
    write_atomically(path, json.dumps(values, indent=2) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """The record; result.json contains it, too. Raises JsonFileError."""
    path = folder / PROVENANCE_FILE
    values = read_object(path)
    if not isinstance(values.get("started"), list):
        raise JsonFileError(f"{path} must have the list `started`; remove it, and the next start writes it anew")
    return values


def _collect(command: str | None) -> dict[str, Any]:
    return {
        "command": hide_credentials(command or shlex.join(["python", *sys.argv])),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "git_commit": git_commit(),
        "machine": f"{platform.system()} {platform.machine()}",
        "started": [],
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def git_commit() -> str | None:
    """Commit of the checkout that this code runs in or was copied from, with `-dirty` if tracked files are modified.
    None outside of git.
    """
    snapshot = Path(__file__).parents[2] / SNAPSHOT
    if snapshot.is_file():
        copied_commit: str | None = (try_read_object(snapshot) or {}).get("git_commit")
        return copied_commit
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # fails for a package that is installed inside of another project's repository
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changes.stdout.strip() else commit
