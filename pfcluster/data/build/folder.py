"""Who may write into a shard folder while it is built: one process, or the slices of one build."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pfcluster.data.build.plan import BuildError
from pfcluster.data.manifest import BUILD_FOLDER, MANIFEST

PLAN = "plan.json"
"""In the build folder, until the manifest stands."""


@contextmanager
def locked(output: Path, *, shared: bool) -> Iterator[None]:
    """The output folder, with its `.build`, for this process alone, or for slices of one build. Raises BuildError."""
    folder = output / BUILD_FOLDER
    try:
        if output.is_dir() and not (output / MANIFEST).exists() and not folder.is_dir() and any(output.iterdir()):
            raise BuildError(f"{output} holds other files and no build; give a new or empty folder as --output")
        lock = _opened(folder)
    except OSError as error:
        raise BuildError(f"--output {output} cannot be written: {error.strerror or error}") from error
    with lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            raise BuildError(f"another build is writing into {output}; wait for it, or end it first") from error
        try:
            yield
        finally:
            manifest = (output / MANIFEST).exists()
            over = not (folder / PLAN).exists() and (manifest or not shared)  # finished, or refused before it began
            if over and _last(lock):
                shutil.rmtree(folder, ignore_errors=True)
                if not any(output.iterdir()):
                    output.rmdir()


def _opened(folder: Path) -> TextIO:
    """The lock's file; its folder may vanish at the moment in which another slice ends the build."""
    for _ in range(10):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return open(folder / "lock", "w")
        except FileNotFoundError:
            continue
    return open(folder / "lock", "w")


def _last(lock: TextIO) -> bool:
    """Whether no other slice is at work in the folder any more; of several that leave at once one is the last."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """One slice at a time."""
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
