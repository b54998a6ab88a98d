"""A copy of the code beside the runs: what is edited later does not reach jobs that wait."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pfcluster
from pfcluster.runs.provenance import SNAPSHOT, git_commit

COPIED = ("pfcluster", "jobs", "shards", "tune")
CODE = ".code"
KINDS = (".py", ".j2", ".toml", ".typed")


def snapshot(folder: Path) -> Path:
    """Copy the code into `folder/.code/DIGEST`, unless that very code is there; what PYTHONPATH must name."""
    root = Path(pfcluster.__file__).resolve().parent.parent
    files = sorted(
        path for name in COPIED for path in (root / name).rglob("*") if path.suffix in KINDS and path.is_file()
    )
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    target = folder.resolve() / CODE / digest.hexdigest()[:12]
    if target.is_dir():
        return target
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    for path in files:
        copy = aside / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    (aside / SNAPSHOT).write_text(json.dumps({"git_commit": git_commit()}) + "\n")
    try:
        os.replace(aside, target)
    except OSError:  # another launcher was faster
        shutil.rmtree(aside, ignore_errors=True)
    return target
