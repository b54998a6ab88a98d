"""Locks between processes: flock(2) on a file. Closing the file releases the lock, so a crash does, too.

On a file system without flock (ENOLCK: an NFS without lock service, Lustre without `-o flock`), the lock is a lease
instead (system/leases.py): a file that is created atomically and kept fresh by its owner.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from pfcluster.system.leases import Lease
from pfcluster.system.os_errors import NO_LOCKS, with_path

POLL_SECONDS = 0.2


class FileLock:
    """A lock file, created if missing; released at the end of the `with` block. `owner` is recorded in the file by an
    exclusive lock; shared locks have no owner.

    Raises OSError if the file cannot be opened, or neither locked nor accompanied by a lease.
    """

    def __init__(self, path: Path, owner: dict[str, Any] | None = None) -> None:
        self.path = path
        self._owner = {"host": socket.gethostname(), "pid": os.getpid(), **(owner or {})}
        self._file = _open(path)
        self._lease: Lease | None = None

    def __enter__(self) -> FileLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lease is not None:
            self._lease.release()
        self._file.close()

    def acquire(self, *, shared: bool = False, blocking: bool = True, record: bool = True) -> bool:
        """Take the lock, or convert one that is held between shared and exclusive. False if `blocking` is False and
        another process, or another FileLock of this one, holds it in conflict. `record`: write the owner into the file.
        """
        while not self._try(shared):
            if not blocking:
                return False
            time.sleep(POLL_SECONDS)
        if record and self._file.writable():
            _record(self._file, {} if shared else self._owner)
        return True

    def wait(self, stopped: Callable[[], bool]) -> bool:
        """Wait for the exclusive lock; False if `stopped` returns True before it is free."""
        while not self.acquire(blocking=False):
            if stopped():
                return False
            time.sleep(POLL_SECONDS)
        return True

    def _try(self, shared: bool) -> bool:
        if self._lease is None:
            try:
                fcntl.flock(self._file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise with_path(error, self.path) from error
                self._lease = Lease(self.path, self._owner)
            else:
                return True
        return self._lease.acquire(shared=shared)


def lock_owner(path: Path) -> dict[str, Any]:
    """What the newest holder of an exclusive lock recorded: host, pid and its `owner`; empty if nothing is readable."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def owner_text(path: Path) -> str:
    """ " (process 123 on host)" of the newest holder of an exclusive lock, for messages; empty if it is not known."""
    owner = lock_owner(path)
    return f" (process {owner['pid']} on {owner['host']})" if {"pid", "host"} <= owner.keys() else ""


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of a file; False if there is no such file or it cannot be opened."""
    if not path.exists():
        return False
    try:
        with FileLock(path) as lock:
            return not lock.acquire(blocking=False, record=False)
    except OSError:
        return False


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Wait for the exclusive lock of a file and hold it. Raises OSError as `FileLock`."""
    with FileLock(path) as lock:
        lock.acquire()
        yield


def _open(path: Path) -> io.FileIO:
    """The lock file for reading and writing; for reading alone if it exists and belongs to somebody else."""
    try:
        return io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+")
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS) or not path.exists():
            raise
        return io.FileIO(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "r")


def _record(file: io.FileIO, owner: dict[str, Any]) -> None:
    """Only messages need it: a full disk is not a reason to refuse the lock."""
    text = json.dumps(owner) + "\n"
    with suppress(OSError):
        os.pwrite(file.fileno(), text.encode(), 0)
        os.ftruncate(file.fileno(), len(text))
