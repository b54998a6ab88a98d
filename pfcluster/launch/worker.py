"""One process of a run: reads the config that its launcher wrote and trains. Exit codes say how it ended."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pfcluster.distributed.signals import StopRequest
from pfcluster.launch.training_lock import training_lock
from pfcluster.runs.folder import PROFILE_DIR, exit_status_path
from pfcluster.system.atomic_files import write_atomically
from pfcluster.system.os_errors import describe, is_full, is_transient, is_users
from pfcluster.system.redaction import redact, redact_output
from pfcluster.system.streams import accept_all_characters

FINISHED, FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 75
"""75 is EX_TEMPFAIL of sysexits.h: the run continues when it is started again."""
MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
DEVICE = re.compile(r"CUDA error|NCCL|uncorrectable|device-side|cuDNN|CUBLAS|EFA|InfiniBand|EADDRINUSE", re.IGNORECASE)
"""Errors of PyTorch that usually come from a defective GPU or network."""
Kind = Literal["user", "training", "memory", "disk", "storage", "bug", "device", "lost rank", "killed"]


@dataclass(frozen=True)
class ExitStatus:
    """How a process of a run ended."""

    code: int
    kind: Kind | None = None
    """Kind of failure: an error of the user, a training that became non-finite, out of memory, a full disk, storage or
    network that failed, a bug, a device, another rank that was lost, or a signal."""
    error: str = ""


def informative_status(statuses: Sequence[ExitStatus]) -> ExitStatus | None:
    """The failure that explains the others: any before one that only reports a lost rank. None if none failed."""
    failures = [status for status in statuses if status.kind is not None]
    return min(failures, key=lambda status: status.kind == "lost rank") if failures else None


def main() -> int:
    """`python -m pfcluster.launch.worker CONFIG FOLDER [--threads N] [--command TEXT]`."""
    parser = argparse.ArgumentParser()  # internal: launchers start it, and it must start without tyro's import
    parser.add_argument("config", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--command", default=None)
    options = parser.parse_args()
    accept_all_characters()
    redact_output()
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    rank = int(os.environ.get("RANK", "0"))
    main_rank = StopRequest() if rank == 0 else nullcontext()  # a signal ends other ranks until they have joined
    status = ExitStatus(INTERRUPTED)
    with main_rank as stop, training_lock(options.folder, lambda: stop is not None and stop.requested) as acquired:
        if acquired:
            status = work(options.config, options.folder, options.command, options.threads, stop)
    path = exit_status_path(options.folder, rank)
    with suppress(OSError):  # disk full: the exit code is enough
        write_atomically(path, json.dumps(asdict(status)) + "\n")
    if status.kind == "lost rank":
        os._exit(status.code)  # exit handlers of libraries would wait for the lost rank
    return status.code


def work(config: Path, folder: Path, command: str | None, threads: int, stop: StopRequest | None = None) -> ExitStatus:
    """Train a config in this process. Errors are printed and returned, never raised."""
    import torch

    from pfcluster.config.io import load
    from pfcluster.distributed.heartbeat import LostRankError
    from pfcluster.profiling.training_cost import step_flops
    from pfcluster.training import run
    from pfcluster.training.errors import TrainingError

    try:
        loaded = load(config)
        on_gpu = loaded.engine.device != "cpu" and torch.cuda.is_available()
        if on_gpu or threads:
            # on a GPU the host only reads; each of the reader's threads would have a team of waiting OpenMP threads
            torch.set_num_threads(1 if on_gpu else threads)
        result = run(loaded, folder, command, stop, step_flops)
        return ExitStatus(INTERRUPTED if result["status"] == "interrupted" else FINISHED)
    except ValueError as error:
        status = ExitStatus(USER_ERROR, "user", str(error))
    except OSError as error:
        status = _status_of(error)
    except TrainingError as error:
        status = ExitStatus(FAILED, "training", str(error))
    except LostRankError as error:
        status = ExitStatus(FAILED, "lost rank", str(error))
    except Exception as error:  # any bug: classified, and printed with its traceback
        kind = _kind_of(error)
        if kind != "memory":
            traceback.print_exc()
            return ExitStatus(FAILED, kind, redact(f"{type(error).__name__}: {error}"))
        status = ExitStatus(FAILED, kind, _memory_advice(error, folder))
    print(f"error: {status.error}", file=sys.stderr, flush=True)
    return ExitStatus(status.code, status.kind, redact(status.error))


def _kind_of(error: Exception) -> Kind:
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and MEMORY.search(str(error))):
        return "memory"
    return "device" if isinstance(error, RuntimeError) and DEVICE.search(str(error)) else "bug"


def _memory_advice(error: Exception, folder: Path) -> str:
    """What to do about memory that ran out; writes a snapshot of a GPU's memory."""
    from pfcluster.training.step_profiler import write_memory_snapshot

    reason = next(iter(str(error).splitlines()), type(error).__name__)
    advice = (
        f"out of memory ({reason}): lower batch_size, or keep it and raise engine.grad_accumulation_steps, set"
        " engine.activation_checkpointing, or shard the weights over more devices with engine.backend fsdp2;"
        " --dry-run estimates the memory of each"
    )
    import torch

    if torch.cuda.is_initialized():
        path = folder / PROFILE_DIR / f"out-of-memory-rank-{os.environ.get('RANK', '0')}.pickle"
        with suppress(Exception):  # the advice matters more
            write_memory_snapshot(path)
            advice += f". What the GPU held: {path}, for pytorch.org/memory_viz; with --profile also who allocated it"
    return advice


def _status_of(error: OSError) -> ExitStatus:
    """A full disk fails again until somebody frees space; failing storage may not; paths and limits are the user's."""
    advice = "earlier checkpoints are complete"
    if is_full(error):
        return ExitStatus(FAILED, "disk", f"{describe(error)}; {advice}, the same command continues from them")
    if is_users(error):
        return ExitStatus(USER_ERROR, "user", describe(error))
    if is_transient(error):
        return ExitStatus(FAILED, "storage", f"{describe(error)}; {advice}")
    traceback.print_exc()
    return ExitStatus(FAILED, "bug", f"{type(error).__name__}: {describe(error)}")


def _end_with_parent(parent: int) -> None:
    """Stop with a checkpoint when the launcher has died."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
