"""Locks of an output folder during a build: one process, or the slices of one build."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pfcluster.data.build.errors import BuildError
from pfcluster.data.manifest import BUILD_FOLDER, BUILD_LOCK, MANIFEST
from pfcluster.system.locks import FileLock

PLAN = "plan.json"
"""In the build folder, until the manifest is written."""
LOCK_ATTEMPTS = 10


@contextmanager
def build_lock(output: Path, *, shared: bool) -> Iterator[None]:
    """Hold the lock of an output folder and its `.build`: exclusively, or shared by the slices of one build. Removes
    `.build` when the last holder leaves a finished build, or one that was refused before it began. Raises BuildError.
    """
    folder = output / BUILD_FOLDER
    try:
        if output.is_dir() and not (output / MANIFEST).exists() and not folder.is_dir() and any(output.iterdir()):
            raise BuildError(f"{output} contains other files and no build; use a new or empty folder as --output")
        lock = _open_lock(folder)
    except OSError as error:
        raise BuildError(f"--output {output} cannot be written: {error.strerror or error}") from error
    with lock:
        if not _acquire(lock, output, shared):
            raise BuildError(f"another build is writing to {output}; wait for it, or stop it first")
        try:
            yield
        finally:
            has_manifest = (output / MANIFEST).exists()
            over = not (folder / PLAN).exists() and (has_manifest or not shared)  # finished, or refused at the start
            if over and lock.acquire(blocking=False):  # False while other slices hold it
                shutil.rmtree(folder, ignore_errors=True)
                if not any(output.iterdir()):
                    output.rmdir()


def _open_lock(folder: Path) -> FileLock:
    """Open the lock file; retries because another slice may remove the folder at the end of its build."""
    for _ in range(LOCK_ATTEMPTS):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return FileLock(folder / BUILD_LOCK)
        except FileNotFoundError:
            continue
    return FileLock(folder / BUILD_LOCK)


def _acquire(lock: FileLock, output: Path, shared: bool) -> bool:
    try:
        return lock.acquire(shared=shared, blocking=False)
    except OSError as error:
        raise BuildError(f"--output {output} cannot be locked: {error.strerror or error}") from error
