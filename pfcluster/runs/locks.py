"""Locks between processes: flock(2) on a file. Closing the file releases the lock, so a crash does, too."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType


class FileLock:
    """A lock file, created if missing; closed, and thereby released, at the end of the `with` block.

    Raises OSError if the file cannot be opened or its file system does not support locks.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w")  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> FileLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def acquire(self, *, shared: bool = False, blocking: bool = True) -> bool:
        """Take the lock, or convert one that is held between shared and exclusive. False if `blocking` is False and
        another process, or another FileLock of this one, holds it in conflict.
        """
        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(self._file, mode if blocking else mode | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Wait for the exclusive lock of a file and hold it. Raises OSError as `FileLock`."""
    with FileLock(path) as lock:
        lock.acquire()
        yield
