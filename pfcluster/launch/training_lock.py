"""One trainer at a time in a run folder, whichever launcher started it: this machine, SLURM, Ray or a sweep."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pfcluster.runs.folder import TRAINING_LOCK
from pfcluster.system.locks import FileLock, is_locked, lock_owner, owner_text

POLL_SECONDS = 0.2
QUIET_SECONDS = 1.0
"""`pfcluster status` holds a free lock for a moment: a shorter wait is not reported."""


@contextmanager
def training_lock(folder: Path, stopped: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Hold the lock of a run folder, in rank 0; the other ranks wait until it is theirs or free.

    Waits for a process that still trains in the folder, as one whose launcher was killed does until its next
    checkpoint. Yields False if `stopped` returns True before that ends. Call it before anything is written there.
    """
    if os.environ.get("RANK", "0") != "0":
        yield _wait_for_main_rank(folder / TRAINING_LOCK, stopped)
        return
    try:
        lock = FileLock(folder / TRAINING_LOCK, {"group": _group()})
    except OSError:  # the run itself reports what is wrong with the folder
        yield True
        return
    with lock:
        deadline = time.monotonic() + QUIET_SECONDS
        acquired = lock.wait(lambda: stopped() or time.monotonic() > deadline)
        if not acquired and not stopped():
            print(f"waiting for another process that trains in {folder}{owner_text(lock.path)}", flush=True)
            acquired = lock.wait(stopped)
        yield acquired


def _group() -> str:
    """Identifies the process group of this rank."""
    return f"{os.environ.get('MASTER_ADDR', '')}:{os.environ.get('MASTER_PORT', '')}"


def _wait_for_main_rank(path: Path, stopped: Callable[[], bool]) -> bool:
    """Wait while another process group holds the lock, so that joining our own does not time out. False if stopped."""
    while is_locked(path) and lock_owner(path).get("group") != _group():
        if stopped():
            return False
        time.sleep(POLL_SECONDS)
    return True
