"""Executes trials on this machine, several in parallel."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from pfcluster.launch.plan import TrainRun
from pfcluster.launch.processes import RunProcesses, start_run
from pfcluster.launch.worker import ExitStatus
from pfcluster.sweep.executor import Resources, Retries


@dataclass
class _Slot:
    """Room for one run."""

    devices: list[str] | None
    running: RunProcesses | None = None


@dataclass
class LocalExecutor:
    """Starts each run in processes of its own and supervises them."""

    resources: Resources
    retries: int
    command: str
    gpus: Sequence[str] = ()
    name: str = "local"
    poll_seconds: float = 0.25
    _waiting: list[TrainRun] = field(default_factory=list)
    _slots: list[_Slot] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._retries = Retries(self.retries)
        self._slots = [_Slot(self._devices(number)) for number in range(self.resources.max_parallel)]

    @property
    def max_parallel(self) -> int:
        return self.resources.max_parallel

    def _devices(self, slot: int) -> list[str] | None:
        """CUDA_VISIBLE_DEVICES of each process of a slot; None on a machine without GPUs. Processes that share GPUs are
        distributed evenly, those of one run over different GPUs as far as there are.
        """
        processes, gpus = self.resources.processes, self.resources.gpus
        if not self.gpus:
            return None
        if not gpus:
            return [""] * processes
        first = slot * processes
        if gpus <= 1:
            return [self.gpus[(first + rank) % len(self.gpus)] for rank in range(processes)]
        count = int(gpus)
        return [",".join(self.gpus[(first + rank) * count : (first + rank + 1) * count]) for rank in range(processes)]

    def start(self, runs: Sequence[TrainRun]) -> None:
        self._waiting += runs
        self._fill_slots()

    def _fill_slots(self) -> None:
        for slot in self._slots:
            run = next((run for run in self._waiting if self._retries.may_start(run)), None)
            if slot.running is None and run is not None:
                self._waiting.remove(run)
                slot.running = start_run(
                    run,
                    processes=self.resources.processes,
                    threads=self.resources.cpus,
                    command=self.command,
                    devices=slot.devices,
                )

    def poll(self) -> list[tuple[TrainRun, ExitStatus]]:
        ended = []
        for slot in self._slots:
            code = None if slot.running is None else slot.running.poll()
            if slot.running is None or code is None:
                continue
            run, exit_status = slot.running.run, slot.running.exit_status(code)
            slot.running = None
            if self._retries.again(run, exit_status):
                self._waiting.insert(0, run)
            else:
                ended.append((run, exit_status))
        self._fill_slots()
        return ended

    def stop(self) -> None:
        self._waiting.clear()
        running = [slot.running for slot in self._slots if slot.running is not None]
        for one in running:
            one.signal(signal.SIGTERM)
        while any(one.poll() is None for one in running):
            time.sleep(self.poll_seconds)
        for slot in self._slots:
            slot.running = None
