"""Helpers of the sweep tests: an in-process executor, a sweep's outcome, sweeps on the command line."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pfcluster.cli.sweep import evaluation_schedules
from pfcluster.distributed.signals import StopRequest
from pfcluster.launch.plan import TrainRun
from pfcluster.launch.worker import FAILED, FINISHED, INTERRUPTED, ExitStatus
from pfcluster.runs.folder import newest_checkpoint_step
from pfcluster.sweep.confirm import Confirmation
from pfcluster.sweep.driver import Sweep
from pfcluster.sweep.options import read
from pfcluster.sweep.spec import Spec, load, save
from pfcluster.sweep.state import SweepState
from pfcluster.system.locks import exclusive_lock
from pfcluster.training.trainer import TrainingError, run
from tests.tiny import OPTIONS, ROOT

LIMIT = 900
"""Seconds that anything may take on a loaded machine before a test gives up."""
SWEEP = [sys.executable, str(ROOT / "tune/sweep.py")]
TINY = [
    *OPTIONS,
    *shlex.split("--role scratch --space optim.lr=loguniform:1e-5,3e-3 --search random --trials 4 --rungs 1"),
    *shlex.split("--confirm 1 --fresh-seeds 7 --epochs 8 --optim.warmup-steps 2 --checkpoint.every-steps 5"),
]
"""Four trials of 48 steps, some of them stopped early, one confirmed with the baseline."""
LONG = [*TINY, *shlex.split("--trials 3 --reduction 2 --optim.lr 1e-2 --epochs 15 --evaluate.every-epochs 3")]
"""Three trials of 90 steps, the first better than the others: long enough to be killed in the middle."""


@dataclass
class InProcess:
    """Trains one run per poll, to its end or for some steps, in any order."""

    max_parallel: int = 2
    order: random.Random | None = None
    name: str = "in process"
    poll_seconds: float = 0.0
    interrupt_after: int | None = None
    """Number of runs that are trained before all others are interrupted."""
    trained: list[str] = field(default_factory=list)
    _waiting: list[TrainRun] = field(default_factory=list)

    def start(self, runs: Sequence[TrainRun]) -> None:
        self._waiting += runs
        assert len(self._waiting) <= self.max_parallel

    def poll(self) -> list[tuple[TrainRun, ExitStatus]]:
        if not self._waiting:
            return []
        number = self.order.randrange(len(self._waiting)) if self.order else 0
        train_run = self._waiting.pop(number)
        stop = StopRequest()
        if self.interrupt_after is not None and len(self.trained) >= self.interrupt_after:
            stop.ask(15)
        try:
            result = run(train_run.config, train_run.folder, "a test", stop)
        except TrainingError as error:
            return [(train_run, ExitStatus(FAILED, "training", str(error)))]
        self.trained.append("/".join(train_run.folder.parts[-2:]))
        return [(train_run, ExitStatus(INTERRUPTED if result["status"] == "interrupted" else FINISHED))]

    def stop(self) -> None:
        self._waiting.clear()


def sweep(spec: Spec, folder: Path, executor: InProcess, ticks: int = 1000) -> tuple[bool, list[str]]:
    """Run a sweep; whether it came to its end, and its log."""
    save(spec, folder)
    log: list[str] = []
    driver = Sweep(SweepState(spec, folder, evaluation_schedules()), executor, log.append)
    return any(driver.tick() for _ in range(ticks)), log


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that a sweep decided and measured."""
    state = SweepState(load(folder), folder, evaluation_schedules())
    state.refresh(())
    confirmation = Confirmation(state)
    return {
        "trials": [(one.values, one.parent, one.until, one.stop) for one in state.trials],
        "scores": [one.score for one in state.statuses],
        "failed": [one.failed and one.failed.kind for one in state.statuses],
        "confirmed": {number: confirmation.scores(number) for number in confirmation.selected() or []},
        "winner": confirmation.winner(),
    }


def reference(folder: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """The outcome of a command line's sweep, trained in this process."""
    spec = read([*arguments, "--executor", "local"]).spec
    assert sweep(spec, folder, InProcess())[0]
    return outcome(folder)


def shared_reference(session: pytest.TempPathFactory, arguments: Sequence[str]) -> dict[str, Any]:
    """`reference`, trained by the first test of the session that needs it, in whichever worker of pytest-xdist."""
    base = session.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = root / f"sweep-{hashlib.sha256(repr(arguments).encode()).hexdigest()[:8]}"
    with exclusive_lock(folder.with_suffix(".lock")):
        if not folder.with_suffix(".done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            reference(folder, arguments)
            folder.with_suffix(".done").touch()
    return outcome(folder)


def begin(folder: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start a sweep on the command line, in a process of its own."""
    command = [*SWEEP, *arguments, "--output", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, **options)


def wait_for(condition: Callable[[], bool], what: str, process: subprocess.Popen[str] | None = None) -> None:
    """Wait until a condition holds. Fails if the process ends before."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{what} did not happen in {LIMIT} s"
        time.sleep(0.05)


def step_of(folder: Path) -> int:
    """Last step in a run's metrics."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return max((json.loads(line)["step"] for line in lines), default=0)
    except (OSError, ValueError):
        return 0


def has_checkpoint(folder: Path) -> bool:
    """Whether a run has a complete checkpoint, from which a killed run goes on. Checkpoints are written beside the
    training, so a metric of a later step does not tell.
    """
    return newest_checkpoint_step(folder) > 0


def resumed(folder: Path) -> bool:
    """Whether a run was started again from a checkpoint, according to its log."""
    log = folder / "logs/rank-0.log"
    return log.exists() and re.search(r"from step [1-9]", log.read_text()) is not None


def processes_logging_to(folder: Path) -> list[int]:
    """Processes whose standard output is a rank's log in this folder or below it."""
    processes = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            target = os.readlink(process / "fd/1")
        except OSError:
            continue
        if target.startswith(f"{folder}/") and "/logs/rank-" in target:
            processes.append(int(process.name))
    return processes
