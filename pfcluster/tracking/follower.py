"""Copies a run folder's metrics, pictures and files to one tracker, from a thread, so that training never waits for it.

trackers.json keeps, for each tracker, the id of its run and what it has received. The next attempt continues that run
and first sends what is missing, whichever launcher starts it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pfcluster.config.json_files import convert, try_read_object
from pfcluster.runs.folder import GRIDS_DIR, PROVENANCE_FILE, RESULT_FILE, TRACKERS_FILE, read_result
from pfcluster.runs.metrics_file import MetricsTail
from pfcluster.runs.progress import warn
from pfcluster.system.atomic_files import write_atomically
from pfcluster.tracking.clients import TrackedRun, Tracker

POLL_SECONDS = 2.0
"""Between two looks at the run folder."""
RECORD_SECONDS = 30.0
"""Between two writes of trackers.json."""


@dataclass
class Received:
    """What one tracker has received of a run."""

    id: str
    steps: dict[str, int] = field(default_factory=dict)
    """Newest step of metrics.jsonl by split."""
    lines: dict[str, int] = field(default_factory=dict)
    """Number of its lines at that step by split: with `selection_split` test the last evaluation's and the final one's.
    """
    picture_step: int = 0
    """Step of the newest image grid."""


@dataclass
class _Newest:
    """The scalars of all lines of a split at its newest step, and the number of those lines that differ."""

    step: int
    values: dict[str, float] = field(default_factory=dict)
    lines: int = 0


class TrackerRecords:
    """trackers.json: a record for each tracker; shared by their threads."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / TRACKERS_FILE
        self._lock = threading.Lock()
        self._records: dict[str, Received] = {}
        for name, values in (try_read_object(self.path) or {}).items():
            self._records[name] = convert(Received, values, str(self.path), name)

    def get(self, name: str) -> Received | None:
        """The record of a tracker; None before it has started once."""
        return self._records.get(name)

    def put(self, name: str, received: Received) -> None:
        """Write the record of a tracker."""
        with self._lock:
            self._records[name] = received
            content = {each: asdict(record) for each, record in self._records.items()}
            write_atomically(self.path, json.dumps(content, indent=2) + "\n")


class TrackerFollower:
    """Sends what is new in a run folder to one tracker until `close`. An error ends the tracker with one warning, never
    the training.
    """

    def __init__(self, name: str, make: Callable[[], Tracker], run: TrackedRun, records: TrackerRecords) -> None:
        self.name, self.run, self.records = name, run, records
        self._make = make
        self._closing = threading.Event()
        self._status = "failed"
        self._recorded_at = time.monotonic()
        self._tail = MetricsTail(run.folder)
        self._newest: dict[str, _Newest] = {}
        self._thread = threading.Thread(target=self._follow, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def close(self, status: str) -> None:
        """Have the thread send the rest and end the tracker's run. `status`: see Tracker.finish."""
        self._status = status
        self._closing.set()

    def join(self, timeout: float) -> None:
        """Wait for the thread after `close`, for at most `timeout` seconds."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            message = f"tracker {self.name} was not done when the run ended; the next attempt sends what it lacks"
            warn(self.run.folder, message, True)

    def _follow(self) -> None:
        try:
            tracker = self._make()
            earlier = self.records.get(self.name)
            received = Received(tracker.start(self.run, None if earlier is None else earlier.id))
            if earlier is not None and earlier.id == received.id:
                received = earlier
            self.records.put(self.name, received)
            while not self._closing.wait(POLL_SECONDS):
                self._send_new(tracker, received)
                if time.monotonic() - self._recorded_at > RECORD_SECONDS:
                    self._record(tracker, received)
            self._send_new(tracker, received)
            self._send_final(tracker)
            self._record(tracker, received)
            tracker.finish(self._status)
        except Exception as error:  # a tracker's packages, its server, its disk: none may end a training
            warn(
                self.run.folder,
                f"tracker {self.name} stopped, training continues without it: {type(error).__name__}: {error}",
                True,
            )

    def _send_new(self, tracker: Tracker, received: Received) -> None:
        """Send the lines and grids that were added since the last call."""
        lines = list(self._tail.new_lines())
        grids = sorted((self.run.folder / GRIDS_DIR).glob("[0-9]*.jpg"))
        for line in lines:
            self._send_grids(tracker, received, [path for path in grids if int(path.stem) < line["step"]])
            self._send_line(tracker, received, line)
        self._send_grids(tracker, received, grids)

    def _send_line(self, tracker: Tracker, received: Received, line: dict[str, Any]) -> None:
        """Send the scalars of a line, unless the tracker has it or earlier lines of the same step say the same."""
        split, step = line["split"], line["step"]
        newest = self._newest.get(split)
        if newest is None or newest.step != step:
            newest = self._newest[split] = _Newest(step)
        new = {name: value for name, value in _scalars(line).items() if newest.values.get(name) != value}
        if not new:
            return
        newest.values |= new
        newest.lines += 1
        if (step, newest.lines) > (received.steps.get(split, 0), received.lines.get(split, 1)):
            tracker.log(new, step)
            received.steps[split], received.lines[split] = step, newest.lines

    def _send_grids(self, tracker: Tracker, received: Received, grids: list[Path]) -> None:
        for path in grids:
            if int(path.stem) > received.picture_step:
                tracker.picture("pictures/grid", path, int(path.stem))
                received.picture_step = int(path.stem)

    def _send_final(self, tracker: Tracker) -> None:
        """Send the final pictures and the result of a run that has ended."""
        result = read_result(self.run.folder)
        if result is None or self._status not in ("finished", "stopped"):
            return
        for name, path in (result.get("pictures") or {}).items():
            tracker.picture(f"pictures/{name}", self.run.folder / path, result["steps"])
        for file in (RESULT_FILE, PROVENANCE_FILE):
            tracker.file(self.run.folder / file)

    def _record(self, tracker: Tracker, received: Received) -> None:
        tracker.flush()
        self.records.put(self.name, received)
        self._recorded_at = time.monotonic()


def _scalars(line: dict[str, object]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl by "split/name", with the epoch."""
    values = {name: value for name, value in line.items() if name not in ("split", "step")}
    return {f"{line['split']}/{name}": float(value) for name, value in values.items() if isinstance(value, int | float)}
