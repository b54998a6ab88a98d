"""A copy of the package beside the runs, so that later edits or upgrades do not affect queued jobs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pfcluster
from pfcluster.runs.provenance import SNAPSHOT, git_commit

CODE_DIR = ".code"
SUFFIXES = (".py", ".j2", ".toml", ".typed")


def snapshot(folder: Path) -> Path:
    """Copy the package, from a checkout or from site-packages, into `folder/.code/DIGEST` unless that copy exists.

    Returns the folder to put on PYTHONPATH.
    """
    package = Path(pfcluster.__file__).resolve().parent
    root = package.parent
    files = sorted(path for path in package.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    target = folder.resolve() / CODE_DIR / digest.hexdigest()[:12]
    if target.is_dir():
        return target
    staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    for path in files:
        copy = staging / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    (staging / SNAPSHOT).write_text(json.dumps({"git_commit": git_commit()}) + "\n")
    try:
        os.replace(staging, target)
    except OSError:  # another launcher has made the same copy
        shutil.rmtree(staging, ignore_errors=True)
    return target
