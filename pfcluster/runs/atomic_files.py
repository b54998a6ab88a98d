"""Atomic file writes (temporary file, fsync, rename) and checksums."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from pfcluster.runs.os_errors import retry_transient

TEMPORARY_FILES = ".*.tmp"
"""Glob of the temporary files of `write_via_temporary`; a killed process leaves one behind."""


def write_via_temporary(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Have `fill` write a temporary file in the folder of `path`, fsync it, and rename it to `path`. Readers see the
    complete old or the complete new file. The temporary file is removed on errors.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


def write_atomically(path: Path, content: str | bytes) -> None:
    """`write_via_temporary` for text (UTF-8) or bytes; repeated while the storage fails."""
    data = content.encode() if isinstance(content, str) else content
    retry_transient(lambda: write_via_temporary(path, lambda file: file.write(data)))


def fsync(path: Path) -> None:
    """Flush a file's data, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
