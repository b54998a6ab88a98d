"""Atomic file writes (temporary file, fsync, rename) and checksums."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from pfcluster.system.os_errors import retry_transient

TEMPORARY_FILES = ".*.tmp"
"""Glob of the temporary files of `write_via_temporary`; a killed process leaves one behind."""

MAX_NAME = 255
"""Bytes of a file name, on nearly all file systems."""


def hidden_beside(path: Path, suffix: str) -> Path:
    """The hidden file `.NAME` + `suffix` beside a file. A name that leaves no room for it is cut and made unique by its
    checksum.
    """
    room = MAX_NAME - len(f".{suffix}")
    name = path.name
    if len(os.fsencode(name)) > room:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        name = f"{cut_encoded(name, room - len(digest) - 1)}.{digest}"
    return path.with_name(f".{name}{suffix}")


def cut_encoded(text: str, size: int) -> str:
    """The start of a text that has at most `size` bytes in UTF-8, without half a character."""
    return text.encode(errors="surrogateescape")[:size].decode(errors="ignore")


def write_via_temporary(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Have `fill` write a temporary file in the folder of `path`, fsync it, and rename it to `path`. Readers see the
    complete old or the complete new file. The temporary file is removed on errors.
    """
    temporary = hidden_beside(path, f".{os.getpid()}.tmp")
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
