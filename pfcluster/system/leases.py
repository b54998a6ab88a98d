"""Locks on file systems without flock(2): files that are created atomically (O_EXCL) and kept fresh by their owner.

<lock>.lease held exclusively: host, process and id of the owner as JSON <lock>.lease-ID held by one of several that
share the lock

The owner touches its file every `BEAT` seconds. A file that was not touched for `STALE` seconds, or whose process has
ended on this machine, is abandoned and is removed. Times are those of the file server: clocks may differ.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

BEAT = 5.0
STALE = 60.0


class Lease:
    """A lock beside the file `path`. Not reentrant; each object is one holder."""

    def __init__(self, path: Path, owner: Mapping[str, Any]) -> None:
        self.id = uuid.uuid4().hex
        self._exclusive = path.with_name(f"{path.name}.lease")
        self._shared = path.with_name(f"{path.name}.lease-{self.id}")
        self._content = json.dumps({**owner, "id": self.id, "namespace": _pid_namespace()})
        self._held: Path | None = None
        self._ended = threading.Event()

    def acquire(self, *, shared: bool) -> bool:
        """Take the lock, or convert it; False if another holder is in conflict. Raises OSError."""
        wanted, other = (self._shared, self._exclusive) if shared else (self._exclusive, self._shared)
        if self._held == wanted:
            return True
        if not self._create(wanted):
            return False
        rivals = [self._exclusive] if shared else sorted(self._exclusive.parent.glob(f"{self._exclusive.name}-*"))
        if any(self._is_held(rival) for rival in rivals if rival != self._held):
            wanted.unlink(missing_ok=True)
            return False
        if self._held is None:
            threading.Thread(target=self._beat, daemon=True).start()
        else:
            other.unlink(missing_ok=True)
        self._held = wanted
        return True

    def release(self) -> None:
        """Give the lock up."""
        self._ended.set()
        if self._held is not None and _read(self._held).get("id") == self.id:
            self._held.unlink(missing_ok=True)
        self._held = None

    def _create(self, path: Path) -> bool:
        for _ in range(2):
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            except FileExistsError:
                if self._is_held(path):
                    return False
                continue
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(self._content)
            return True
        return False

    def _is_held(self, path: Path) -> bool:
        """Whether a lease has a living owner. Removes it if it has none, one process at a time: a lease that appears
        after another process has removed the old one must not be taken for it.
        """
        if self._is_abandoned(path):
            breaking = path.with_name(f".{path.name}.breaking")
            try:
                breaking.mkdir()
            except FileExistsError:
                if self._age(breaking) > STALE:  # of a process that was killed here
                    with suppress(OSError):
                        breaking.rmdir()
                return True
            try:
                if self._is_abandoned(path):
                    path.unlink(missing_ok=True)
            finally:
                with suppress(FileNotFoundError):  # this process stood still, and another one removed it
                    breaking.rmdir()
        return path.exists()

    def _is_abandoned(self, path: Path) -> bool:
        return path.exists() and (self._age(path) >= STALE or _has_ended(_read(path)))

    def _age(self, path: Path) -> float:
        """Seconds since a file was touched; 0 if there is none."""
        now = self._now()
        try:
            return now - path.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _now(self) -> float:
        """The file server's time."""
        probe = self._exclusive.with_name(f".{self._exclusive.name}.{uuid.uuid4().hex}.tmp")
        try:
            probe.touch(exist_ok=False)
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with suppress(OSError):  # an outage of the file server ends, or the lease becomes stale
                if self._held is not None:
                    os.utime(self._held)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _has_ended(owner: Mapping[str, Any]) -> bool:
    """Whether the owner was a process of this machine that is gone; False if that cannot be known."""
    if owner.get("host") != os.uname().nodename or owner.get("namespace") != _pid_namespace():
        return False
    try:
        os.kill(int(owner.get("pid", 0)), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return False


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
