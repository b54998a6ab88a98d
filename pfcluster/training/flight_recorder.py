"""torch's flight recorder: the last collectives of every rank, kept in memory and written where a run loses a rank."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from pfcluster.runs.folder import FLIGHT_RECORDER_DIR
from pfcluster.system.atomic_files import write_atomically

COLLECTIVES = "2000"
"""That a rank remembers."""


def record_collectives(folder: Path) -> None:
    """Enable the recorder for a run of several processes, and let NCCL's watchdog write it on a time-out. Call before
    the process group is created. Variables that are already set are kept.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    path = folder / FLIGHT_RECORDER_DIR
    if torch.cuda.is_available():
        path.mkdir(parents=True, exist_ok=True)  # the watchdog makes no folders
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", COLLECTIVES)
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", f"{path.resolve()}/nccl-timeout-rank-")  # torch adds the rank


def write_collectives(folder: Path, rank: int) -> None:
    """Write what this rank has recorded, gloo's and NCCL's collectives apart, as torch pickles them. Never raises: it
    is called where a run fails for another reason.
    """
    with suppress(Exception):
        from torch._C import _distributed_c10d

        c10d: Any = _distributed_c10d  # the recorder has no public interface
        dumps: dict[str, Callable[[], bytes]] = {"gloo": c10d._dump_fr_trace, "nccl": c10d._dump_nccl_trace}
        (folder / FLIGHT_RECORDER_DIR).mkdir(exist_ok=True)
        for backend, dump in dumps.items():
            write_atomically(folder / FLIGHT_RECORDER_DIR / f"{backend}-rank-{rank}.pickle", dump())
