"""One process of a run: reads the config that its launcher wrote and calls `train.run`. Exit codes tell how it
ended.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pfcluster.launch.redaction import redact, redact_output
from pfcluster.runs.atomic_files import write_atomically
from pfcluster.runs.folder import TRAINING_LOCK, exit_status_path
from pfcluster.runs.locks import FileLock

if TYPE_CHECKING:
    from pfcluster.distributed.signals import StopRequest

FINISHED, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 75
"""75 is sysexits.h's EX_TEMPFAIL: start again to go on."""
MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
DEVICE = re.compile(r"CUDA error|NCCL|uncorrectable|device-side|cuDNN|CUBLAS|EFA|InfiniBand|EADDRINUSE", re.IGNORECASE)
"""Errors of PyTorch that a broken GPU or network gives, and a broken program now and then."""


@dataclass(frozen=True)
class ExitStatus:
    """How a process of a run ended."""

    code: int
    kind: Literal["user", "training", "memory", "disk", "bug", "device", "lost rank", "killed"] | None = None
    """Of a failure: what the user can mend, a training that cannot go on, too little memory, a disk, a fault of a
    program or of a device, another rank that is gone, or a signal that left no time for words."""
    error: str = ""


def main() -> int:
    """`python -m pfcluster.launch.worker CONFIG FOLDER [--threads N] [--command TEXT]`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--command", default=None)
    options = parser.parse_args()
    redact_output()
    threading.Thread(target=_follow_parent, args=(os.getppid(),), daemon=True).start()
    with _alone(options.folder):
        ending = work(options.config, options.folder, options.command, options.threads)
    path = exit_status_path(options.folder, int(os.environ.get("RANK", "0")))
    with suppress(OSError):  # a full disk: the exit code tells enough
        write_atomically(path, json.dumps(asdict(ending)) + "\n")
    if ending.kind == "lost rank":
        os._exit(ending.code)  # libraries' own ends would wait for the lost rank
    return ending.code


def work(config: Path, folder: Path, command: str | None, threads: int, stop: StopRequest | None = None) -> ExitStatus:
    """Run a config in this process; what fails is printed, and told in a word."""
    import torch

    from pfcluster.config.io import load
    from pfcluster.distributed.heartbeat import LostRankError
    from pfcluster.training import run
    from pfcluster.training.errors import TrainingError

    if threads:
        torch.set_num_threads(threads)
    try:
        result = run(load(config), folder, command, stop)
        return ExitStatus(INTERRUPTED if result["status"] == "interrupted" else FINISHED)
    except ValueError as error:
        ending = ExitStatus(USER_ERROR, "user", str(error))
    except OSError as error:  # a full disk, a lost file system
        full = "disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) or error.errno is None else "device"
        advice = "checkpoints from before are whole: mend it and give the same command"
        ending = ExitStatus(FAILED, full, f"{error}; {advice}")  # type: ignore[arg-type]
    except TrainingError as error:
        ending = ExitStatus(FAILED, "training", str(error))
    except LostRankError as error:
        ending = ExitStatus(FAILED, "lost rank", str(error))
    except Exception as error:  # told by its kind, and shown whole
        traceback.print_exc()
        return ExitStatus(FAILED, _kind(error), redact(f"{type(error).__name__}: {error}"))  # type: ignore[arg-type]
    print(f"error: {ending.error}", file=sys.stderr, flush=True)
    return ExitStatus(ending.code, ending.kind, redact(ending.error))


def _kind(error: Exception) -> str:
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and MEMORY.search(str(error))):
        return "memory"
    return "device" if isinstance(error, RuntimeError) and DEVICE.search(str(error)) else "bug"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for a process that still trains in this folder: one whose launcher was killed saves itself and ends. Rank 0
    alone; the others wait for it.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    try:
        lock = FileLock(folder / TRAINING_LOCK)
    except OSError:  # the run itself will say what is wrong with the folder
        yield
        return
    with lock:
        if not lock.acquire(blocking=False):
            print(f"waiting for another process that trains in {folder}", flush=True)
            lock.acquire()
        yield


def _follow_parent(parent: int) -> None:
    """A launcher that was killed takes its workers with it, at a step's end and with a checkpoint."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
