"""system/locks.py: locks between processes."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from pfcluster.system.leases import STALE
from pfcluster.system.locks import FileLock, exclusive_lock, is_locked, lock_owner
from tests.syscalls import where_refused

T = TypeVar("T")

HOLDER = """
import sys
from pathlib import Path
from pfcluster.system.locks import FileLock
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


def test_the_file_names_the_owner_while_it_is_locked(tmp_path: Path) -> None:
    with FileLock(tmp_path / "lock", {"group": "a"}) as lock:
        assert not is_locked(tmp_path / "lock")
        lock.acquire()
        assert is_locked(tmp_path / "lock")
        assert lock_owner(tmp_path / "lock") == {"host": socket.gethostname(), "pid": os.getpid(), "group": "a"}
    assert not is_locked(tmp_path / "lock")


def test_waiting_ends_when_asked(tmp_path: Path) -> None:
    with FileLock(tmp_path / "lock") as holder, FileLock(tmp_path / "lock") as waiter:
        holder.acquire()
        assert not waiter.wait(lambda: True)


# A file system without flock: the kernel refuses the call with ENOLCK.

NO_LOCKS = "import errno; from tests.syscalls import refuse; refuse('flock', errno.ENOLCK)\n"


def without_flock(action: Callable[[], T]) -> T:
    return where_refused("flock", errno.ENOLCK, action)


def hold_without_flock(path: Path, mode: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", NO_LOCKS + HOLDER, str(path), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def acquires(path: Path, *, shared: bool = False) -> bool:
    with FileLock(path) as lock:
        return lock.acquire(shared=shared, blocking=False)


@pytest.mark.parametrize("mode", ["exclusive", "shared"])
def test_leases_exclude_like_locks_and_leave_nothing(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "lock"
    holder = hold_without_flock(path, mode)
    assert without_flock(lambda: (acquires(path), acquires(path, shared=True))) == (False, mode == "shared")
    assert without_flock(lambda: is_locked(path))
    holder.communicate("")
    assert without_flock(lambda: (acquires(path), acquires(path, shared=True))) == (True, True)
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]


def test_a_lease_is_converted_unless_another_shares_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"

    def convert() -> tuple[bool, bool, bool]:
        with FileLock(path) as lock:
            lock.acquire(shared=True)
            with FileLock(path) as second:
                second.acquire(shared=True)
                refused = lock.acquire(blocking=False)
            return refused, lock.acquire(blocking=False), acquires(path, shared=True)

    assert without_flock(convert) == (False, True, False)


def test_the_lease_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    holder = hold_without_flock(tmp_path / "lock", "exclusive")
    holder.kill()
    holder.communicate()
    assert (tmp_path / "lock.lease").exists()
    assert without_flock(lambda: acquires(tmp_path / "lock"))


@pytest.mark.parametrize(("age", "free"), [(0.0, False), (2 * STALE, True)])
def test_a_lease_of_another_machine_is_free_once_it_is_no_longer_touched(
    tmp_path: Path, age: float, free: bool
) -> None:
    lease = tmp_path / "lock.lease"
    lease.write_text(json.dumps({"host": "elsewhere", "pid": 1, "id": "x", "namespace": ""}))
    os.utime(lease, (time.time() - age, time.time() - age))
    assert without_flock(lambda: acquires(tmp_path / "lock")) is free


def test_one_of_many_breaks_a_stale_lease(tmp_path: Path) -> None:
    """Sixteen threads find a stale lease; never two hold the lock at a time."""
    lease = tmp_path / "lock.lease"
    lease.write_text("{}")
    os.utime(lease, (0, 0))
    inside, most = [], []

    def work(_: int) -> None:
        with exclusive_lock(tmp_path / "lock"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.005)
            inside.pop()

    def all_threads() -> None:
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(16)))

    without_flock(all_threads)
    assert most == [1] * 16
