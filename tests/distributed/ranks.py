"""Starting real processes that find each other over gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pfcluster.distributed.hosts import free_port
from tests.tiny import ROOT

HERE = Path(__file__).parent


def start(script: str, arguments: list[str], ranks: int) -> list[subprocess.Popen[str]]:
    """Start `ranks` processes of a script in this folder."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(ranks),
        "PYTHONPATH": str(ROOT),
    }
    return [
        subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]


def launch(script: str, arguments: list[str], ranks: int) -> None:
    """Run a script in this folder in `ranks` processes. Raises AssertionError with what they said."""
    started = start(script, arguments, ranks)
    said = [process.communicate(timeout=900)[0] for process in started]
    assert [process.returncode for process in started] == [0] * ranks, "\n".join(said)
