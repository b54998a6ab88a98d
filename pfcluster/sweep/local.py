"""Trials on this machine, a few at a time."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from pfcluster.launch.attempts import FINAL
from pfcluster.launch.plan import TrainRun
from pfcluster.launch.processes import Running, start
from pfcluster.launch.worker import ExitStatus
from pfcluster.sweep.executor import Resources


@dataclass
class _Place:
    """One run's share of the machine."""

    devices: list[str] | None
    running: Running | None = None


@dataclass
class LocalExecutor:
    """Each run in processes of its own, watched from here."""

    share: Resources
    retries: int
    command: str
    gpus: Sequence[str] = ()
    name: str = "local"
    poll_seconds: float = 0.25
    _waiting: list[TrainRun] = field(default_factory=list)
    _failures: dict[TrainRun, int] = field(default_factory=dict)
    _places: list[_Place] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._places = [_Place(self._devices(number)) for number in range(self.share.at_once)]

    @property
    def at_once(self) -> int:
        return self.share.at_once

    def _devices(self, place: int) -> list[str] | None:
        """The GPUs of a place's processes; None where there are none to share out."""
        if not self.gpus:
            return None
        if not self.share.gpus:
            return [""] * self.share.processes
        if self.share.gpus <= 1:
            first = place * self.share.processes
            a_gpu = round(1 / self.share.gpus)
            return [self.gpus[(first + rank) // a_gpu % len(self.gpus)] for rank in range(self.share.processes)]
        each = int(self.share.gpus)
        first = place * self.share.processes * each
        cuts = [self.gpus[first + rank * each : first + (rank + 1) * each] for rank in range(self.share.processes)]
        return [",".join(cut) for cut in cuts]

    def start(self, jobs: Sequence[TrainRun]) -> None:
        self._waiting += jobs
        self._fill()

    def _fill(self) -> None:
        for place in self._places:
            if place.running is None and self._waiting:
                place.running = start(
                    self._waiting.pop(0),
                    processes=self.share.processes,
                    threads=self.share.cpus,
                    command=self.command,
                    devices=place.devices,
                )

    def poll(self) -> list[tuple[TrainRun, ExitStatus]]:
        ended = []
        for place in self._places:
            code = None if place.running is None else place.running.poll()
            if place.running is None or code is None:
                continue
            job, ending = place.running.job, place.running.ending(code)
            place.running = None
            if self._again(job, ending):
                self._waiting.insert(0, job)
            else:
                ended.append((job, ending))
        self._fill()
        return ended

    def _again(self, job: TrainRun, ending: ExitStatus) -> bool:
        """Whether a failed run is tried again."""
        if ending.kind is None or ending.kind in FINAL:
            return False
        self._failures[job] = self._failures.get(job, 0) + 1
        return self._failures[job] <= self.retries

    def stop(self) -> None:
        self._waiting.clear()
        running = [place.running for place in self._places if place.running is not None]
        for one in running:
            one.signal(signal.SIGTERM)
        while any(one.poll() is None for one in running):
            time.sleep(self.poll_seconds)
        for place in self._places:
            place.running = None
