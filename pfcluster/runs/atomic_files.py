"""Files that are whole or not there: written aside, synced, renamed; and their checksums."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

ASIDE = ".*.tmp"
"""Names of the files that `write_aside` fills; a process that was killed leaves one behind."""


def write_aside(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Let `fill` write a file beside `path`, sync it, and rename it to `path`: readers see the old one or the new one,
    whole. Nothing is left behind on an error.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    flush(path.parent)


def write_atomically(path: Path, content: str | bytes) -> None:
    """`write_aside` of a text (UTF-8) or bytes."""
    data = content.encode() if isinstance(content, str) else content
    write_aside(path, lambda file: file.write(data))


def flush(path: Path) -> None:
    """Have the disk hold what was written to a file, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Checksum of a file's bytes, in hexadecimal."""
    hashed = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            hashed.update(block)
    return hashed.hexdigest()
