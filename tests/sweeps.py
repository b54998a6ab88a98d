"""Sweeps for tests: an executor that trains in this process, what a sweep came to, and sweeps on the command line."""

from __future__ import annotations

import json
import random
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfcluster.cli.sweep import course_of
from pfcluster.distributed.signals import StopRequest
from pfcluster.launch.plan import TrainRun
from pfcluster.launch.worker import FAILED, FINISHED, INTERRUPTED, ExitStatus
from pfcluster.sweep.confirm import Confirmation
from pfcluster.sweep.driver import Sweep
from pfcluster.sweep.options import read
from pfcluster.sweep.spec import Spec, load, save
from pfcluster.sweep.state import SweepState
from pfcluster.training.trainer import TrainingError, run
from tests.tiny import OPTIONS, ROOT

SWEEP = [sys.executable, str(ROOT / "tune/sweep.py")]
TINY = [
    *OPTIONS,
    *shlex.split("--role scratch --space optim.lr=loguniform:1e-5,3e-3 --search random --trials 4 --rungs 1"),
    *shlex.split("--confirm 1 --fresh-seeds 7 --epochs 8 --optim.warmup-steps 2 --checkpoint.every-steps 5"),
]
"""Four trials of 48 steps, some of them stopped early, one confirmed beside the baseline."""
LONG = [*TINY, "--epochs", "30", "--evaluate.every-epochs", "3", "--search-seed", "3"]
"""The same with 180 steps: time enough to be killed in."""


@dataclass
class InProcess:
    """Trains each run to its end, or for some steps, where it is asked for endings; in any order."""

    at_once: int = 2
    order: random.Random | None = None
    name: str = "in process"
    poll_seconds: float = 0.0
    interrupt_after: int | None = None
    """Runs that are trained before all others are interrupted."""
    trained: list[str] = field(default_factory=list)
    _waiting: list[TrainRun] = field(default_factory=list)

    def start(self, jobs: Sequence[TrainRun]) -> None:
        self._waiting += jobs
        assert len(self._waiting) <= self.at_once

    def poll(self) -> list[tuple[TrainRun, ExitStatus]]:
        if not self._waiting:
            return []
        number = self.order.randrange(len(self._waiting)) if self.order else 0
        job = self._waiting.pop(number)
        stop = StopRequest()
        if self.interrupt_after is not None and len(self.trained) >= self.interrupt_after:
            stop.ask(15)
        try:
            result = run(job.config, job.folder, "a test", stop)
        except TrainingError as error:
            return [(job, ExitStatus(FAILED, "training", str(error)))]
        self.trained.append("/".join(job.folder.parts[-2:]))
        return [(job, ExitStatus(INTERRUPTED if result["status"] == "interrupted" else FINISHED))]

    def stop(self) -> None:
        self._waiting.clear()


def sweep(spec: Spec, folder: Path, executor: InProcess, ticks: int = 1000) -> tuple[bool, list[str]]:
    """Run a sweep; whether it came to its end, and what it said."""
    save(spec, folder)
    said: list[str] = []
    under_way = Sweep(SweepState(spec, folder, course_of()), executor, said.append)
    return any(under_way.tick() for _ in range(ticks)), said


def outcome(folder: Path) -> dict[str, Any]:
    """All that a sweep came to."""
    board = SweepState(load(folder), folder, course_of())
    board.refresh(())
    confirmation = Confirmation(board)
    return {
        "trials": [(one.values, one.parent, one.until, one.stop) for one in board.trials],
        "scores": [one.score for one in board.standings],
        "failed": [one.failed and one.failed.kind for one in board.standings],
        "confirmed": {number: confirmation.scores(number) for number in confirmation.chosen() or []},
        "winner": confirmation.winner(),
    }


def reference(folder: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """What a command's sweep comes to, trained in this process."""
    spec = read([*arguments, "--executor", "local"]).spec
    assert sweep(spec, folder, InProcess())[0]
    return outcome(folder)


def begin(folder: Path, *arguments: str, **more: Any) -> subprocess.Popen[str]:
    """A sweep on the command line, in a process of its own."""
    command = [*SWEEP, *arguments, "--output", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, **more)


def wait_for(happened: Callable[[], bool], what: str, process: subprocess.Popen[str] | None = None) -> None:
    """Wait until something is so. Fails where a process ends before."""
    limit = time.monotonic() + 300
    while not happened():
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit, f"{what} did not happen in 300 s"
        time.sleep(0.05)


def step_of(folder: Path) -> int:
    """Last step that a run has written down."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return max((json.loads(line)["step"] for line in lines), default=0)
    except (OSError, ValueError):
        return 0


def went_on(folder: Path) -> bool:
    """Whether a run was started again and found a checkpoint. Each start writes its log anew."""
    log = folder / "logs/rank-0.log"
    return log.exists() and re.search(r"from step [1-9]", log.read_text()) is not None
