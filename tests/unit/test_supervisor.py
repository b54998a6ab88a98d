"""The runs of a wave: their order, and what ends them. The backend plays back how each run ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import pytest
from rich.console import Console

from pfcluster.config import RunConfig
from pfcluster.launch.errors import LaunchError
from pfcluster.launch.plan import TrainRun
from pfcluster.launch.supervisor import EndedRun, train_runs
from pfcluster.launch.worker import FAILED, FINISHED, INTERRUPTED

RUNS = {name: TrainRun(RunConfig(name=name), Path(name)) for name in ("a", "b", "c")}


class PlayedRuns:
    """Ends one run at each poll, in the order of their start, with its code; interrupts all that are asked to stop."""

    display = nullcontext()

    def __init__(self, codes: Mapping[str, int] | None = None, signal_at: str = "") -> None:
        self.codes, self.signal_at = codes or {}, signal_at
        self.console = Console(quiet=True)
        self.events: list[str] = []
        self.running: list[TrainRun] = []
        self.stopping = False

    def start(self, run: TrainRun) -> None:
        self.events.append(f"start {run.config.name}")
        self.running.append(run)
        if run.config.name == self.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def poll(self) -> list[EndedRun]:
        run = self.running.pop(0)
        code = INTERRUPTED if self.stopping else self.codes.get(run.config.name, FINISHED)
        self.events.append(f"end {run.config.name}")
        return [EndedRun(run, code, LaunchError(f"{run.config.name} failed", 1) if code == FAILED else None)]

    def request_stop(self) -> None:
        self.events.append("stop")
        self.stopping = True

    def show_failure(self, failure: LaunchError) -> None:
        self.events.append(str(failure))


def train(backend: PlayedRuns, failures: dict[str, str] | None = None, *, max_parallel: int = 2) -> bool:
    """Train a, b and c, where b waits for a; failures go into `failures`, if given."""

    def on_failure(run: TrainRun, failure: LaunchError) -> None:
        assert failures is not None
        failures[run.config.name] = str(failure)

    return train_runs(
        backend,
        list(RUNS.values()),
        {Path("b"): [RUNS["a"]]},
        max_parallel=max_parallel,
        on_failure=None if failures is None else on_failure,
    )


@pytest.mark.parametrize(
    ("max_parallel", "events"),
    [
        (1, "start a, end a, start b, end b, start c, end c"),
        (2, "start a, start c, end a, start b, end c, end b"),
    ],
)
def test_a_run_starts_after_those_that_it_waits_for(max_parallel: int, events: str) -> None:
    backend = PlayedRuns()
    assert train(backend, max_parallel=max_parallel)
    assert ", ".join(backend.events) == events


def test_the_first_failure_stops_the_other_runs() -> None:
    backend = PlayedRuns({"a": FAILED})
    with pytest.raises(LaunchError, match="a failed"):
        train(backend)
    assert backend.events == ["start a", "start c", "end a", "stop", "end c"]


def test_a_failure_ends_only_the_runs_that_wait_for_it() -> None:
    backend, failures = PlayedRuns({"a": FAILED}), {}
    assert train(backend, failures)
    assert backend.events == ["start a", "start c", "end a", "a failed", "end c"]
    assert failures == {"a": "a failed"}


def test_a_run_that_a_signal_stops_alone_has_failed() -> None:
    backend, failures = PlayedRuns({"a": INTERRUPTED}), {}
    assert train(backend, failures)
    assert "was stopped by a signal to its own process" in failures["a"]
    assert "start b" not in backend.events


def test_a_signal_stops_all_runs_once_and_none_of_them_has_failed() -> None:
    backend, failures = PlayedRuns({"a": INTERRUPTED}, signal_at="c"), {}
    assert not train(backend, failures)
    assert backend.events == ["start a", "start c", "end a", "stop", "end c"]
    assert failures == {}
