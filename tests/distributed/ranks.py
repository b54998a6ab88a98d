"""Starting real processes that find each other over gloo. They are forked from a server that has imported torch and
DeepSpeed: importing them takes longer than most of these tests train.
"""

from __future__ import annotations

import atexit
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver, get_context
from pathlib import Path
from unittest import mock

from pfcluster.distributed.hosts import free_port

HERE = Path(__file__).parent
PRELOADED = [
    "torch._dynamo",
    "torch._inductor.compile_fx",  # imported by DeepSpeed's engine
    "torch.utils.tensorboard",
    "deepspeed",
    "pfcluster.engine.fsdp2",
    "pfcluster.training",
    "pfcluster.evaluate.evaluators",
    "tests.distributed.ranks",
]


class Rank:
    """A process that runs a script, with the methods of a subprocess.Popen that these tests need."""

    def __init__(self, script: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        with tempfile.NamedTemporaryFile(prefix="rank-", delete=False) as file:
            self._output = Path(file.name)
        context = get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        with mock.patch.dict(os.environ, OMP_NUM_THREADS="1"):  # read when torch is loaded
            forkserver.ensure_running()
        words = (str(script), list(arguments), dict(environment), str(self._output))
        self._process = context.Process(target=_run, args=words)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def communicate(self, timeout: float) -> tuple[str, None]:
        """Wait for the end; returns the output. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._output.name, timeout)
        output = self._output.read_text(errors="replace")
        self._output.unlink()
        return output, None

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(script: str, arguments: list[str], environment: dict[str, str], output: str) -> None:
    """In the forked process: the script as `python SCRIPT ARGUMENTS` runs it."""
    with open(output, "wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves without them


def start(script: str, arguments: list[str], ranks: int) -> list[Rank]:
    """Start `ranks` processes of a script in this folder."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(ranks),
        "OMP_NUM_THREADS": "1",
    }
    return [
        Rank(HERE / script, arguments, os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(ranks)
    ]


def launch(script: str, arguments: list[str], ranks: int) -> None:
    """Run a script in this folder in `ranks` processes. Raises AssertionError with what they said."""
    started = start(script, arguments, ranks)
    said = [process.communicate(timeout=900)[0] for process in started]
    assert [process.returncode for process in started] == [0] * ranks, "\n".join(said)
