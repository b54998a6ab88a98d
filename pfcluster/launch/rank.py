"""One rank of a SLURM or Ray job: its place in the process group, and its log file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pfcluster.distributed.hosts import host_name
from pfcluster.launch import attempts
from pfcluster.runs.folder import LOG_HEADER, log_path
from pfcluster.system.redaction import redact_output
from pfcluster.system.streams import accept_all_characters


@dataclass(frozen=True)
class RankInfo:
    """A rank and the job that it belongs to."""

    rank: int
    size: int
    local_rank: int
    job: str
    """SLURM: the job id that every command accepts, also for a task of an array."""
    restart: int
    """How many times the job was restarted before."""
    nodes: str
    """Node list of the job."""
    threads: int


@contextmanager
def redirect_output(folder: Path, info: RankInfo) -> Iterator[None]:
    """Append this process's stdout and stderr to the rank's log, with secrets redacted. Attempts share the log."""
    path = log_path(folder, info.rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    accept_all_characters()
    redact_output()
    restarts = f", restart {info.restart}" if info.restart else ""
    header = f"{LOG_HEADER}{attempts.now()} job {info.job}{restarts}, rank {info.rank} of {info.size} on {host_name()}"
    print(header, flush=True)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
