"""runs/locks.py: locks between processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pfcluster.runs.locks import FileLock, exclusive_lock

HOLDER = """
import sys
from pathlib import Path
from pfcluster.runs.locks import FileLock
with FileLock(Path(sys.argv[1])) as lock:
    lock.acquire(shared=sys.argv[2] == "shared")
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(path: Path, mode: str) -> subprocess.Popen[str]:
    """Another process that holds the lock until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_an_exclusive_lock_excludes_all_others(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = hold(path, "exclusive")
    with FileLock(path) as lock:
        assert not lock.acquire(blocking=False)
        assert not lock.acquire(shared=True, blocking=False)
        holder.communicate("")
        assert lock.acquire(blocking=False)


def test_shared_locks_exclude_an_exclusive_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = hold(path, "shared")
    with FileLock(path) as lock:
        assert lock.acquire(shared=True, blocking=False)
        assert not lock.acquire(blocking=False), "the other process still shares it"
        holder.communicate("")
        assert lock.acquire(blocking=False), "now it can be converted"


def test_a_killed_process_releases_its_lock(tmp_path: Path) -> None:
    holder = hold(tmp_path / "lock", "exclusive")
    holder.kill()
    holder.communicate()
    with FileLock(tmp_path / "lock") as lock:
        assert lock.acquire(blocking=False)


def test_leaving_the_block_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), exclusive_lock(tmp_path / "lock"):
        raise KeyError
    with FileLock(tmp_path / "lock") as lock:
        assert lock.acquire(blocking=False)


def test_a_blocking_lock_waits(tmp_path: Path) -> None:
    order = []

    def second() -> None:
        with exclusive_lock(tmp_path / "lock"):
            order.append("second")

    with exclusive_lock(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_lock_in_a_missing_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), exclusive_lock(tmp_path / "none" / "lock"):
        pass
